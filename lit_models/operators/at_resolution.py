"""A network that sees every field at one resolution, whatever the resolution of the field is."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


class AtResolution(nn.Module):
    """Every n-th point of a field, the network, and its output interpolated to all points.

    The control of what a network does at another resolution than it was trained at: it meets
    what it was trained on, and what is beyond its grid is left to interpolation.

    Args:
        net: maps [B, C, *points] to [B, D, *points].
        points: of every axis, at which the network works.
        periodic: interpolate by trigonometric polynomials, points at i / N; else, with points at
            i / (N − 1), linearly in one dimension, by bicubic or trilinear splines in two or three.

    Raises:
        ValueError: in `forward`, if the field's grid is no refinement of the network's.
    """

    def __init__(self, net: nn.Module, points: Sequence[int], *, periodic: bool = True):
        super().__init__()
        self.net, self.points, self.periodic = net, tuple(points), periodic

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        fine, ends = x.shape[2:], 0 if self.periodic else 1
        for N, n in zip(fine, self.points, strict=True):
            if n > N or (N - ends) % (n - ends):
                raise ValueError(
                    f"Expected a refinement of the grid of {list(self.points)} points at which the "
                    f"network works, got {list(fine)}."
                )
        steps = [(N - ends) // (n - ends) for N, n in zip(fine, self.points)]
        coarse = self.net(x[(..., *(slice(None, None, step) for step in steps))])
        if fine == self.points:
            return coarse
        if self.periodic:
            return interpolate_periodic(coarse, fine)
        return F.interpolate(coarse, fine, mode=MODES[len(fine)], align_corners=True)


def interpolate_periodic(
    x: Float[Tensor, "B C *points"], points: Sequence[int]
) -> Float[Tensor, "B C *more"]:
    """The trigonometric polynomials through a periodic field, at more points, axis by axis."""
    for axis, N in enumerate(points, start=2):
        n = x.shape[axis]
        spectrum = torch.fft.rfft(x, dim=axis, norm="forward")
        if n % 2 == 0 and n < N:  # its highest mode is both k = n / 2 and its conjugate
            low, highest = spectrum.tensor_split([n // 2], dim=axis)
            spectrum = torch.cat([low, highest / 2], dim=axis)
        x = torch.fft.irfft(spectrum, n=N, dim=axis, norm="forward")
    return x
