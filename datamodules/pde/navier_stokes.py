"""The incompressible Navier–Stokes equations on a periodic square, as one for the vorticity."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import SpectralEquation
from datamodules.pde.random_fields import gaussian
from datamodules.pde.torus import Torus, smooth_resample


def biot_savart(torus: Torus) -> Tensor:
    """complex128 [2, *modes]: the velocity's coefficients over the vorticity's.

    u = ∂_y ψ and v = −∂_x ψ of the stream function, −∇²ψ = ω. The mean velocity is zero, and the
    mean vorticity, which no periodic velocity has, is passed over.
    """
    stream = torch.where(torus.laplacian == 0, 0, -1 / torus.laplacian)
    x, y = torus.gradient
    return torch.stack([y * stream, -x * stream])


def advection(torus: Torus) -> Tensor:
    """complex128 [2, *modes]: −u·∇ω is the first times u v plus the second times u² − v².

    Source: Basdevant, J. Comput. Phys. 50 (1983) 209. With these, two transforms of the velocity
    and two of products are all; every other form takes five.
    """
    x, y = torus.gradient
    return torch.stack([y * y - x * x, x * y]) * torus.kept


def velocity(vorticity: Tensor, length: float) -> Tensor:
    """(u, v), [..., 2, *points], of ω = ∂_x v − ∂_y u, [..., *points], on a square of `length`."""
    torus = Torus(tuple(vorticity.shape[-2:]), (length, length), vorticity.device)
    return torus.inverse(torus.forward(vorticity).unsqueeze(-3) * biot_savart(torus))


def peaked(torus: Torus, generator: torch.Generator, peak: float) -> Tensor:
    """A Gaussian vorticity whose velocity is strongest at a wavenumber, float64 [1, *points].

    The velocity's coefficients are the log-normal density of |k| with the mode `peak`, over |k|.

    Args:
        torus: a square.
        generator: of white noise on its points.
        peak: in whole wavenumbers.

    Source: the initial states of Kochkov et al., PNAS 118 (2021) e2101784118.
    """
    k = (-torus.laplacian).sqrt() * (torus.lengths[0] / (2 * math.pi))
    deviation = torch.exp(-2 * (torch.log(k / peak) - 0.25).square()) / k
    return gaussian(torus, generator, torch.where(k == 0, 0, deviation), 1)


def with_speed(vorticity: Tensor, length: float, speed: float) -> Tensor:
    """Vorticities [..., *points] times what makes the highest speed at a point `speed`."""
    highest = velocity(vorticity, length).norm(dim=-3).amax(dim=(-2, -1), keepdim=True)
    return vorticity * (speed / highest)


@dataclass(frozen=True)
class GaussianVorticity:
    """Initial vorticities of N(0, σ² (−∇² + τ²)^−α), without their mean.

    Args:
        variance: σ². The script that the data of Li et al. were published with has 2 · 7³.
        shift: τ, over a length.
        power: α.

    Source: Li et al., ICLR 2021, arXiv:2010.08895, sec. 5.3.
    """

    variance: float = 7**1.5
    shift: float = 7.0
    power: float = 2.5

    def draw(self, torus: Torus, generator: torch.Generator) -> Tensor:
        """float64 [1, *points]."""
        covariance = self.variance * (self.shift**2 - torus.laplacian) ** -self.power
        return gaussian(
            torus, generator, torch.where(torus.laplacian == 0, 0, covariance.sqrt()), 1
        )


@dataclass(frozen=True)
class PeakedVorticity:
    """Initial vorticities of most velocity at one wavenumber; see `peaked`.

    Args:
        peak: in whole wavenumbers.
        speed: the highest at a saved point.
    """

    peak: float = 4.0
    speed: float = 7.0

    def draw(self, torus: Torus, generator: torch.Generator) -> Tensor:
        """float64 [1, *points]."""
        return with_speed(peaked(torus, generator, self.peak), torus.lengths[0], self.speed)


@dataclass(frozen=True)
class NavierStokes(SpectralEquation):
    """ω_t + u·∇ω = ν ∇²ω − μ ω + f for ω = ∂_x v − ∂_y u, in a square; the first axis is x.

    The default is the data set of Li et al., but for the solver's points: theirs are 256 × 256, of
    which they saved 64 × 64, up to t = 50 for ν = 1e-3, 30 for 1e-4 and 20 for 1e-5. Kolmogorov
    flow as of Kochkov et al. is length 2π, forcing "kolmogorov" of amplitude 1 and wavenumber 4,
    drag 0.1, viscosity 1e-3 and PeakedVorticity(); it takes more than 192 points an axis.

    Args:
        sizes: saved points of both axes.
        length: of both axes.
        viscosity: ν.
        drag: μ.
        forcing: with k = 2π wavenumber / length, "fno" is f = amplitude (sin k(x + y) + cos k(x +
            y)), "kolmogorov" the curl of a force amplitude · sin ky along x.
        amplitude: of the forcing; 0 lets the flow decay.
        wavenumber: of the forcing, whole.
        start: of what law initial states are.
        step: longest time step. The default's flow is right to 1e-8 at t = 50. What blows up is
            beyond 2.8 over the highest kept wavenumber and |u| + |v|, so shorter for finer points.
        oversample: see SpectralEquation. Of the flow of Li et al. on 64 × 64 points, 1 is right to
            1e-8 at ν = 1e-3, 2 to 1e-3 at ν = 1e-4 and 2e-2 at ν = 1e-5, at their last times.

    Source: Li et al., ICLR 2021, arXiv:2010.08895; Kochkov et al., PNAS 118 (2021) e2101784118.
    """

    channels = ("vorticity",)

    sizes: tuple[int, int] = (64, 64)
    length: float = 1.0
    viscosity: float = 1e-3
    drag: float = 0.0
    forcing: Literal["fno", "kolmogorov"] = "fno"
    amplitude: float = 0.1
    wavenumber: int = 1
    start: GaussianVorticity | PeakedVorticity = GaussianVorticity()
    step: float = 2e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.wavenumber == int(self.wavenumber) and self.wavenumber > 0
        if self.forcing not in ("fno", "kolmogorov") or not whole:
            raise DataError(
                f"NavierStokes needs a forcing of 'fno' or 'kolmogorov' and a wavenumber of 1, 2, "
                f"…, got {self.forcing!r} and {self.wavenumber}."
            )
        if 3 * self.wavenumber >= self.oversample * min(self.sizes):
            raise DataError(
                f"NavierStokes' forcing of wavenumber {self.wavenumber} needs more than "
                f"{3 * self.wavenumber} points an axis: raise sizes or oversample."
            )

    def linear(self, torus: Torus) -> Tensor:
        return self.viscosity * torus.laplacian - self.drag

    def force(self, torus: Torus) -> Tensor:
        """f, float64 [*points]."""
        k = 2 * math.pi * self.wavenumber / self.length
        x, y = torus.points
        if self.forcing == "fno":
            return self.amplitude * (torch.sin(k * (x + y)) + torch.cos(k * (x + y)))
        return (-self.amplitude * k * torch.cos(k * y)).expand(torus.sizes)

    def nonlinear(self, torus: Torus) -> Callable[[Tensor], Tensor]:
        induced, (shear, strain) = biot_savart(torus), advection(torus)
        force = torus.forward(self.force(torus)) * torus.kept

        def advect(vorticity: Tensor) -> Tensor:
            flow = torus.inverse(vorticity * induced)
            u, v = flow.unbind(dim=1)
            products = torch.empty_like(flow)
            torch.mul(u, v, out=products[:, 0])
            torch.mul(u + v, u - v, out=products[:, 1])
            products = torus.forward(products)
            change = torch.addcmul(force, products[:, :1], shear)
            return change.addcmul_(products[:, 1:], strain)

        return advect

    def initial(self, generator: torch.Generator) -> Tensor:
        return smooth_resample(self.start.draw(self.saved_torus(), generator), self.torus().sizes)
