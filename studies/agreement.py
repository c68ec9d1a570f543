"""How far two encoders of text with the same weights are from each other."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn


def measure(
    ours: Callable[[], nn.Module],
    theirs: Callable[[], nn.Module],
    sizes: Sequence[int],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """The differences of their features and gradients, on one batch of random tokens, in float32.

    Matrices are drawn with a standard deviation of 1/√inputs, so that layers say as much as what
    goes past them; as training begins, they would hardly show in the features.

    Args:
        ours, theirs: make a `lit_models.text.encoder.TextEncoder`, of equal parameters.
        sizes: tokens of each sentence.
        seed: of weights, tokens and cotangent.

    Returns:
        {"test": {"output": …, "gradient": …}}: the largest difference over theirs' largest number,
        of the features, and of the gradient of the parameter where that is largest.
    """
    torch.manual_seed(seed)
    nets = [ours(), theirs()]
    for weight in nets[0].parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    nets[1].load_state_dict(nets[0].state_dict())
    tokens = torch.randint(0, cast(int, nets[0].vocabulary), (1, sum(sizes)))
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    cotangent = torch.randn(1, sum(sizes), cast(int, nets[0].width))
    results = []
    for net in nets:
        y = net(tokens, torch.zeros_like(tokens), ptr=ptr)
        results.append([y.detach(), *torch.autograd.grad(y, list(net.parameters()), cotangent)])
    far = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]
    return {"test": {"output": far[0], "gradient": max(far[1:])}}
