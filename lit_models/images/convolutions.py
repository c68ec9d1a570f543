"""What convolutional networks share."""

from torch import nn


def initialise_rectified(network: nn.Module) -> None:
    """Weights of layers before ReLUs, which keep the variance of activations, and no biases.

    Source: He et al., "Delving Deep into Rectifiers", arXiv:1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
