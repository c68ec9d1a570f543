"""Time and memory of a training step of an encoder of images, against the number of patches.

Lahoti et al., arXiv:2510.12111: on a grid's DAGs a state-space layer is linear in the number of
patches where attention is quadratic.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from studies.cost_of_length import costs


def measure(
    encoder: Callable[[], nn.Module], sides: Sequence[int], *, seed: int
) -> dict[str, dict]:
    """Seconds and peak memory of forward and backward pass on one image of every size.

    From the embedded patches on, whose gradient is computed too. A size's first step tells its
    memory and warms up, the faster of two more its time.

    Args:
        encoder: makes a `lit_models.images.encoder.ImageEncoder`.
        sides: rows, and columns, of the grid of patches, rising, at least two.
        seed: of weights and patches.

    Returns:
        {"test": …}: seconds_<side>, mib_<side>, and the slopes of the logarithm of both against
        that of the number of patches from the third-largest on.
    """
    torch.manual_seed(seed)
    net = encoder()
    width, encode = cast(int, net.width), cast(Callable[[Tensor], Tensor], net.encode)

    def step_at(side: int) -> Callable[[], None]:
        x = torch.randn(1, side, side, width, requires_grad=True)

        def step() -> None:
            net.zero_grad()
            x.grad = None
            encode(x).sum().backward()

        return step

    return costs(step_at, sides, [side**2 for side in sides])
