"""The Boussinesq equations with buoyancy on a periodic square, for Rayleigh–Taylor flows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import SpectralEquation
from datamodules.pde.navier_stokes import advection, biot_savart
from datamodules.pde.random_fields import sines
from datamodules.pde.torus import Torus


@dataclass(frozen=True)
class Boussinesq(SpectralEquation):
    """ω_t + u·∇ω = ν ∇²ω + ∂_x b, b_t + u·∇b = κ ∇²b − N² v for ω = ∂_x v − ∂_y u, in a square.

    The first axis is x, the second y, upwards. b is the upward acceleration of light fluid, v_t =
    … + b, whose curl is ∂_x b; it comes on top of a background N² y, which v carries along. Waves
    of wavevector k have, but for diffusion, the frequency N |k_x| / |k|; they grow where N² < 0.

    Initial states are at rest, in two layers: b = ½ jump · tanh(sin k(y − η) / (k thickness)) of
    k = 2π / length. The interface at length / 2, where the fluid above is the heavier, is unstable,
    the one at 0 is stable. Both are displaced by η(x) = Σ_i A_i sin(k_i x + φ_i) of `waves` terms,
    A ~ U(−displacement, displacement), φ ~ U(0, 2π), with whole wavenumbers from `band`. Waves much
    longer than the thickness grow at the rate (½ jump k)^½.

    Args:
        sizes: saved points of both axes.
        length: of both axes.
        viscosity: ν.
        diffusivity: κ, of the buoyancy.
        stratification: N², of the background; negative where it is unstable.
        jump: of the buoyancy, from one layer to the other.
        thickness: of the interfaces.
        displacement: highest amplitude of a wave of the interfaces.
        band: lowest and highest whole wavenumber of the interfaces.
        waves: number of terms of their displacement.
        step: longest time step; the default's flow is right to 1e-6 at t = 4.
        oversample: see SpectralEquation.

    Source: Chandrasekhar, Hydrodynamic and Hydromagnetic Stability (1961), ch. 10.
    """

    channels = ("vorticity", "buoyancy")

    sizes: tuple[int, int] = (128, 128)
    length: float = 1.0
    viscosity: float = 1e-3
    diffusivity: float = 1e-3
    stratification: float = 0.0
    jump: float = 1.0
    thickness: float = 0.03
    displacement: float = 1e-2
    band: tuple[int, int] = (1, 4)
    waves: int = 10
    step: float = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thickness <= 0:
            raise DataError(f"Boussinesq needs a positive thickness, got {self.thickness}.")

    def linear(self, torus: Torus) -> Tensor:
        return torch.stack([self.viscosity * torus.laplacian, self.diffusivity * torus.laplacian])

    def nonlinear(self, torus: Torus) -> Callable[[Tensor], Tensor]:
        induced, (shear, strain) = biot_savart(torus), advection(torus)
        x, y = torus.slopes * torus.kept
        lift = -self.stratification * induced[1] * torus.kept

        def advect(state: Tensor) -> Tensor:
            vorticity, buoyancy = state.unbind(dim=1)
            fields = state.new_empty(len(state), 3, *state.shape[2:])
            torch.mul(vorticity.unsqueeze(1), induced, out=fields[:, :2])
            fields[:, 2] = buoyancy
            u, v, b = torus.inverse(fields).unbind(dim=1)
            products = u.new_empty(len(u), 4, *torus.sizes)
            torch.mul(u, v, out=products[:, 0])
            torch.mul(u + v, u - v, out=products[:, 1])
            torch.mul(u, b, out=products[:, 2])
            torch.mul(v, b, out=products[:, 3])
            uv, difference, ub, vb = torus.forward(products).unbind(dim=1)
            change = torch.empty_like(state)
            torch.mul(uv, shear, out=change[:, 0])
            change[:, 0].addcmul_(difference, strain).addcmul_(buoyancy, x)
            torch.mul(vorticity, lift, out=change[:, 1])
            change[:, 1].addcmul_(ub, x, value=-1).addcmul_(vb, y, value=-1)
            return change

        return advect

    def initial(self, generator: torch.Generator) -> Tensor:
        torus, scale = self.torus(), 2 * math.pi / self.length
        line = Torus(torus.sizes[:1], torus.lengths[:1])
        amplitude = (-self.displacement, self.displacement)
        shift = sines(line, generator, self.waves, self.band, amplitude).reshape(-1, 1)
        height = torch.sin(scale * (torus.points[1] - shift)) / (scale * self.thickness)
        buoyancy = self.jump / 2 * torch.tanh(height)
        return torch.stack([torch.zeros_like(buoyancy), buoyancy])
