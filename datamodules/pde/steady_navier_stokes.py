"""The steady Navier–Stokes equations on a periodic square: pairs of a forcing and a vorticity."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import SolverError, Steady
from datamodules.pde.navier_stokes import peaked, velocity, with_speed
from datamodules.pde.torus import Torus, smooth_resample

RESIDUAL = 1e-8
"""Of a pair, relative to the forcing, beyond which it is refused; rounding makes 1e-13."""


@dataclass(frozen=True)
class SteadyNavierStokes(Steady):
    """u·∇ω = ν ∇²ω + f for ω = ∂_x v − ∂_y u: f, the curl of a forcing, to the vorticity ω.

    A substitute for the data of FNO-DEQ, whose generator is not available. The pairs are
    manufactured: what is drawn is ω, of a given wavenumber and highest speed, and f is what holds
    it steady. Nothing says that ω is stable, nor that it is the only vorticity of f: −ω, for
    instance, has the same u·∇ω, so that only the viscous part of f, 2 ν ∇²ω, tells them apart.

    ω has no mode of a quarter of the points or more: f has all of its modes on the same points.

    Args:
        sizes: points of both axes, of the solver too.
        length: of both axes.
        viscosity: ν.
        peak: whole wavenumber of the highest velocity; see `peaked`.
        speed: the highest at a point.

    Source: Marwah et al., NeurIPS 2023, arXiv:2312.00234.
    """

    channels = ("vorticity",)
    inputs = ("forcing",)

    sizes: tuple[int, int] = (128, 128)
    length: float = 2 * math.pi
    viscosity: float = 1e-2
    peak: float = 1.0
    speed: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if min(self.sizes) < 16 or min(self.length, self.viscosity, self.peak, self.speed) <= 0:
            raise DataError(
                f"SteadyNavierStokes needs at least 16 points an axis and a positive length, "
                f"viscosity, peak and speed, got {self.key}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def coordinates(self) -> list[Tensor]:
        return [x.flatten() for x in self.torus().points]

    def torus(self, device: torch.device | str = "cpu") -> Torus:
        """The points."""
        return Torus(self.sizes, (self.length, self.length), device)

    def initial(self, generator: torch.Generator) -> Tensor:
        """A vorticity, [1, *sizes]."""
        half = Torus(tuple(n // 2 for n in self.sizes), (self.length, self.length))
        vorticity = smooth_resample(peaked(half, generator, self.peak), self.sizes)
        return with_speed(vorticity, self.length, self.speed)

    def solve(self, initial: Tensor) -> tuple[Tensor, Tensor]:
        """The forcings that hold vorticities steady, and these, both float64 [B, 1, *sizes].

        Args:
            initial: vorticities, float64, [B, 1, *sizes].

        Raises:
            SolverError: between the points, a pair is no solution: the vorticity has modes of a
                quarter of the points or more.
        """
        if initial.shape[1:] != (1, *self.sizes) or initial.dtype != torch.float64:
            raise DataError(
                f"SteadyNavierStokes expects vorticities [B, 1, "
                f"{', '.join(map(str, self.sizes))}] in float64, got {list(initial.shape)} in "
                f"{initial.dtype}."
            )
        torus = self.torus(initial.device)
        v = torus.forward(initial)
        carried = velocity(initial[:, 0], self.length) * torus.inverse(v * torus.slopes)
        forcing = carried.sum(dim=1, keepdim=True)
        forcing -= self.viscosity * torus.inverse(v * torus.laplacian)
        residual = self.residual(forcing, initial)
        if not residual.max() < RESIDUAL:
            raise SolverError(
                f"SteadyNavierStokes: {int((~(residual < RESIDUAL)).sum())} of {len(initial)} "
                f"pairs have a residual of up to {residual.max():.1e} between the points: raise "
                f"sizes or lower peak (now {self.peak:g})."
            )
        return forcing, initial

    def residual(self, forcing: Tensor, vorticity: Tensor) -> Tensor:
        """‖∇·(u ω) − ν ∇²ω − f‖ / ‖f‖ on twice the points, of fields [B, 1, *sizes]; [B]."""
        sizes = tuple(2 * n for n in self.sizes)
        torus = Torus(sizes, (self.length, self.length), vorticity.device)
        forcing, vorticity = smooth_resample(forcing, sizes), smooth_resample(vorticity, sizes)
        flux = torus.forward(velocity(vorticity[:, 0], self.length) * vorticity)
        diffused = self.viscosity * torus.laplacian * torus.forward(vorticity)
        change = torus.inverse((flux * torus.slopes).sum(dim=1, keepdim=True) - diffused)
        return (change - forcing).flatten(1).norm(dim=1) / forcing.flatten(1).norm(dim=1)
