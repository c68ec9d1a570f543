"""Fisher's equation, reaction and diffusion of one species in one dimension."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import SpectralEquation
from datamodules.pde.random_fields import sines
from datamodules.pde.torus import Torus, smooth_resample


@dataclass(frozen=True)
class Fisher(SpectralEquation):
    """u_t = ν u_xx + ρ u (1 − u), periodic.

    From u > 0 somewhere, fronts of the speed 2 √(ν ρ) carry u = 1 everywhere. Initial states are
    |Σ_i A_i sin(2π n_i x / length + φ_i)| over its highest value, A ~ U(0, 1), φ ~ U(0, 2π), n from
    `band`, smoothed by a Gaussian, as the absolute value has kinks.

    Args:
        sizes: the saved points, one number.
        length: of the domain.
        viscosity: ν.
        rate: ρ.
        waves: number of terms of the initial states.
        band: their lowest and highest whole wavenumber.
        smoothing: standard deviation of what smooths them, over the length.
        step: longest time step.
        oversample: see SpectralEquation.

    Source: Takamoto et al., PDEBench, NeurIPS 2022, arXiv:2210.07182, app. D, without its windows;
    Fisher, Ann. Eugenics 7 (1937) 355.
    """

    channels = ("u",)

    sizes: tuple[int, ...] = (1024,)
    length: float = 1.0
    viscosity: float = 0.5
    rate: float = 1.0
    waves: int = 2
    band: tuple[int, int] = (1, 8)
    smoothing: float = 5e-3
    step: float = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sizes) != 1 or self.viscosity <= 0:
            raise DataError(f"Fisher has one axis and a positive viscosity, got {self.key}.")

    def linear(self, torus: Torus) -> Tensor:
        return self.viscosity * torus.laplacian + self.rate

    def nonlinear(self, torus: Torus) -> Callable[[Tensor], Tensor]:
        weight = -self.rate * torus.kept
        return lambda v: torus.forward(torus.inverse(v).square_()).mul_(weight)

    def initial(self, generator: torch.Generator) -> Tensor:
        torus = self.saved_torus()
        state = sines(torus, generator, self.waves, self.band, (0.0, 1.0)).abs()
        width = self.smoothing * self.length
        smooth = torus.forward(state / state.max()) * torch.exp(torus.laplacian * width**2 / 2)
        return smooth_resample(torus.inverse(smooth), self.torus().sizes)
