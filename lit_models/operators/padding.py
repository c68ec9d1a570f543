"""Room behind a field that is not periodic, for layers that take it to be."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Padding(nn.Module):
    """Zeros behind the last point of every axis, of the same length at every resolution.

    Args:
        fraction: of the domain that is added.
        closed: the domain's points are at i / (N − 1), not at i / N.
    """

    def __init__(self, fraction: float, *, closed: bool):
        super().__init__()
        self.fraction, self.ends = fraction, int(closed)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B C *more"]:
        if not self.fraction:
            return x
        behind = [(0, self._padded(N) - N) for N in reversed(x.shape[2:])]
        return F.pad(x, [zeros for pair in behind for zeros in pair])

    def cut(
        self, x: Float[Tensor, "B C *more"], points: Sequence[int]
    ) -> Float[Tensor, "B C *points"]:
        """The field without them."""
        return x[(..., *map(slice, points))] if self.fraction else x

    def _padded(self, N: int) -> int:
        return max(N, round((1 + self.fraction) * (N - self.ends)))
