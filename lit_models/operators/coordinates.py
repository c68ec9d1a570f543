"""Coordinates of a grid's points as further channels of a field."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Coordinates(nn.Module):
    """Appends one channel an axis, from 0 at the first point; the first axis comes first.

    The same place has the same coordinates at every resolution, so that a network can be applied at
    another one than it was trained at.

    Args:
        grid: `periodic`, the i-th of N points is at i / N; `closed`, both ends are points, it is at
            i / (N − 1); None appends nothing.

    Raises:
        ValueError: if the grid is none of these.

    Source: the grid embedding of Li et al., "Fourier Neural Operator", arXiv:2010.08895.
    """

    def __init__(self, grid: str | None):
        super().__init__()
        if grid not in ("periodic", "closed", None):
            raise ValueError(f"Expected coordinates 'periodic', 'closed' or None, got {grid!r}.")
        self.grid = grid

    def channels(self, axes: int) -> int:
        """How many are appended to a field of so many axes."""
        return axes if self.grid else 0

    def of(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B d *points"]:
        """The coordinates alone, d = `channels(axes)`, in the field's type."""
        if self.grid is None:
            return x[:, :0]
        last = 0 if self.grid == "periodic" else 1
        lines = [torch.arange(n, device=x.device) / max(n - last, 1) for n in x.shape[2:]]
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij")).to(x.dtype)
        return grid.expand(len(x), *grid.shape)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B C_plus_d *points"]:
        """The field, then the coordinates."""
        return torch.cat([x, self.of(x)], dim=1)
