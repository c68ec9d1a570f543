"""Burgers' equation in one dimension, as in the data of FNO and of PDEBench."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import SpectralEquation
from datamodules.pde.random_fields import SineState, gaussian
from datamodules.pde.torus import Torus, smooth_resample


@dataclass(frozen=True)
class GaussianState:
    """Initial states of N(0, σ² (−∂_x² + τ²)^−α), with their mean.

    Args:
        variance: σ².
        shift: τ.
        power: α.

    Source: Li et al., ICLR 2021, arXiv:2010.08895, sec. 5.1.
    """

    variance: float = 625.0
    shift: float = 5.0
    power: float = 2.0

    def draw(self, torus: Torus, generator: torch.Generator) -> Tensor:
        """float64 [1, *points]."""
        covariance = self.variance * (self.shift**2 - torus.laplacian) ** -self.power
        return gaussian(torus, generator, covariance.sqrt(), 1)


@dataclass(frozen=True)
class Burgers(SpectralEquation):
    """u_t + (u²/2)_x = ν u_xx, periodic.

    FNO's data have ν = .1 in the paper's text and .01 or 1e-3 in others', u at t = 1 and 8192
    points. PDEBench's ν is divided by π: its .001 is a viscosity of .001 / π here; its states are
    SineState(), with 1024 points up to t = 2. Fronts are as wide as 4 ν over their jump: where that
    is less than some 10 points, `oversample` must make up for it.

    Args:
        sizes: the saved points, one number.
        length: of the domain.
        viscosity: ν.
        start: of what law initial states are.
        step: longest time step.
        oversample: see SpectralEquation.

    Source: Li et al., arXiv:2010.08895; Takamoto et al., arXiv:2210.07182.
    """

    channels = ("u",)

    sizes: tuple[int, ...] = (1024,)
    length: float = 1.0
    viscosity: float = 0.01
    start: GaussianState | SineState = GaussianState()
    step: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sizes) != 1 or self.viscosity <= 0:
            raise DataError(f"Burgers has one axis and a positive viscosity, got {self.key}.")

    def linear(self, torus: Torus) -> Tensor:
        return self.viscosity * torus.laplacian

    def nonlinear(self, torus: Torus) -> Callable[[Tensor], Tensor]:
        half_slope = -0.5 * torus.gradient[0] * torus.kept
        return lambda v: torus.forward(torus.inverse(v).square_()).mul_(half_slope)

    def initial(self, generator: torch.Generator) -> Tensor:
        if isinstance(self.start, SineState):
            # Known between the saved points too: interpolated, kinks and windows would ring.
            return self.start.draw(self.torus(), generator)
        return smooth_resample(self.start.draw(self.saved_torus(), generator), self.torus().sizes)
