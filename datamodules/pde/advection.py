"""Linear advection in one dimension."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import Evolution, check_states, check_times
from datamodules.pde.random_fields import SineState
from datamodules.pde.torus import Torus


@dataclass(frozen=True)
class Advection(Evolution):
    """u_t + c u_x = 0, periodic: u(x, t) = u0(x − c t), taken exactly for every Fourier mode.

    Args:
        size: points.
        length: of the domain.
        speed: c; β of PDEBench.
        start: of what law initial states are.
        oversample: so many times more points are moved than are saved; between too few, kinks and
            windows of the initial states would ring.

    Source: Takamoto et al., PDEBench, NeurIPS 2022, arXiv:2210.07182, app. D.
    """

    channels = ("u",)

    size: int = 1024
    length: float = 1.0
    speed: float = 0.1
    start: SineState = field(default_factory=SineState)
    oversample: int = 1

    def __post_init__(self) -> None:
        few = self.size < 8 or 2 * self.start.band[1] >= self.size
        if few or self.length <= 0 or self.oversample < 1:
            raise DataError(
                "Advection needs at least 8 points, more than two a wave, a positive length and an "
                f"oversample of 1 or more, got {self.key}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def coordinates(self) -> list[Tensor]:
        return [self.torus().points[0][:: self.oversample]]

    def torus(self, device: torch.device | str = "cpu") -> Torus:
        """The points that are moved."""
        return Torus((self.oversample * self.size,), (self.length,), device)

    def initial(self, generator: torch.Generator) -> Tensor:
        return self.start.draw(self.torus(), generator)

    def solve(self, initial: Tensor, times: Sequence[float]) -> Tensor:
        check_times(times)
        torus = self.torus(initial.device)
        check_states(self, initial, (1, *torus.sizes))
        v = torus.forward(initial)
        moved = [v * torch.exp(-self.speed * time * torus.gradient[0]) for time in times]
        return torus.inverse(torch.stack(moved, dim=1))[..., :: self.oversample]
