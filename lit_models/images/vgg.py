"""VGG for small images: convolutions of 3 × 3, and a maximum over 2 × 2 after every stage.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", arXiv:1409.1556; as is usual for 32 × 32 pixels, of which one place is left, the two
hidden linear layers are no wider than the last stage. There is no dropout.
"""

from jaxtyping import Float
from torch import Tensor, nn

from lit_models.images.convolutions import initialise_rectified

STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
"""Convolutions of every stage, by VGG's depth."""


class VGG(nn.Module):
    """Maps images to features on a grid of a 32nd of their sides.

    Args:
        depth: 11 or 16.
        channels: of the first stage, 64 as published; those of the last are eight times as many.
        batch_norm: after every convolution.

    Attributes:
        width: D, number of features.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, depth: int = 11, channels: int = 64, batch_norm: bool = False):
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"Expected VGG of depth 11 or 16, got {depth}.")
        self.width = 8 * channels
        layers: list[nn.Module] = []
        before = 3
        for stage, convolutions in enumerate(STAGES[depth]):
            for _ in range(convolutions):
                after = min(2**stage, 8) * channels
                layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(after))
                layers.append(nn.ReLU())
                before = after
            layers.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*layers)
        hidden = (nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU()) for _ in range(2))
        self.hidden = nn.Sequential(*hidden)
        initialise_rectified(self)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R K D"]:
        return self.hidden(self.stages(images).movedim(1, -1))
