"""Linear advection in one dimension."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import Evolution, check_states, check_times
from datamodules.pde.random_fields import sines
from datamodules.pde.torus import Torus


@dataclass(frozen=True)
class Advection(Evolution):
    """u_t + c u_x = 0, periodic: u(x, t) = u0(x − c t), taken exactly for every Fourier mode.

    Initial states are Σ_i A_i sin(2π n_i x / length + φ_i), A ~ U(0, 1), φ ~ U(0, 2π), n from
    `band`, both ends included.

    Args:
        size: points.
        length: of the domain.
        speed: c; β of PDEBench.
        waves: number of terms of the initial states.
        band: their lowest and highest whole wavenumber.

    Source: Takamoto et al., PDEBench, NeurIPS 2022, arXiv:2210.07182, app. D.
    """

    channels = ("u",)

    size: int = 1024
    length: float = 1.0
    speed: float = 0.1
    waves: int = 2
    band: tuple[int, int] = (1, 8)

    def __post_init__(self) -> None:
        if self.size < 8 or self.length <= 0 or 2 * self.band[1] >= self.size:
            raise DataError(
                "Advection needs at least 8 points, more than two a wave, and a positive length, "
                f"got {self.key}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def coordinates(self) -> list[Tensor]:
        return self.torus().points

    def torus(self, device: torch.device | str = "cpu") -> Torus:
        """The points."""
        return Torus((self.size,), (self.length,), device)

    def initial(self, generator: torch.Generator) -> Tensor:
        return sines(self.torus(), generator, self.waves, self.band, (0.0, 1.0))

    def solve(self, initial: Tensor, times: Sequence[float]) -> Tensor:
        check_times(times)
        check_states(self, initial, (1, self.size))
        torus = self.torus(initial.device)
        v = torus.forward(initial)
        moved = [v * torch.exp(-self.speed * time * torus.gradient[0]) for time in times]
        return torus.inverse(torch.stack(moved, dim=1))
