"""The Kuramoto–Sivashinsky equation in one or two dimensions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.pde.equation import SpectralEquation
from datamodules.pde.random_fields import sines
from datamodules.pde.torus import Torus


@dataclass(frozen=True)
class KuramotoSivashinsky(SpectralEquation):
    """u_t = −u u_x − u_xx − ν u_xxxx; in two dimensions u_t = −½ |∇u|² − ∇²u − ν ∇⁴u.

    In two dimensions the mean of ½ |∇u|² is left out: it moves the mean of u, which moves nothing.
    Waves 0 < k² < 1/ν grow, those of k² = 1/(2ν) fastest, at the rate 1/(4ν).

    Initial states are Σ_i A_i sin(k_i · x + φ_i) of `waves` terms, A ~ U(−½, ½), φ ~ U(0, 2π); the
    whole wavenumbers of every axis are drawn from `band`, both ends included.

    Args:
        sizes: points of one or two axes.
        length: of every axis.
        viscosity: ν.
        step: longest time step; 1.25e-3 is right to 1e-5 at t = 2.5, ν ≥ .075 and a band up to 8.
        band: lowest and highest whole wavenumber of the initial states.
        waves: number of terms of the initial states.
        oversample: see SpectralEquation.

    Source: one dimension and initial states: Buitrago Ruiz et al., MemNO, arXiv:2409.02313; two:
    Kalogirou, Keaveny and Papageorgiou, Proc. R. Soc. A 471 (2015) 20140932.
    """

    channels = ("u",)

    sizes: tuple[int, ...] = (512,)
    length: float = 64.0
    viscosity: float = 0.1
    step: float = 1.25e-3
    band: tuple[int, int] = (1, 2)
    waves: int = 10

    def linear(self, torus: Torus) -> Tensor:
        return -torus.laplacian - self.viscosity * torus.laplacian.square()

    def nonlinear(self, torus: Torus) -> Callable[[Tensor], Tensor]:
        if len(torus.sizes) == 1:
            half_slope = -0.5 * torus.gradient[0] * torus.kept
            return lambda v: torus.forward(torus.inverse(v).square_()).mul_(half_slope)
        weight = -0.5 * torus.kept
        weight[0, 0] = 0

        def half_square(v: Tensor) -> Tensor:
            slopes = torus.inverse(v.unsqueeze(1) * torus.slopes[:, None])
            return torus.forward(slopes.square_().sum(dim=1)).mul_(weight)

        return half_square

    def initial(self, generator: torch.Generator) -> Tensor:
        return sines(self.torus(), generator, self.waves, self.band)
