"""The compressible Navier–Stokes equations of an ideal gas in one dimension."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from datamodules.errors import DataError
from datamodules.pde.equation import Evolution, SolverError, check_states, check_times
from datamodules.pde.random_fields import fold_and_cut, sines, uniform
from datamodules.pde.torus import Torus

WINDOW_EDGE = 0.005
"""Over the length: how wide the edges of a window are."""


def log_uniform(generator: torch.Generator, interval: tuple[float, float], *shape: int) -> Tensor:
    """float64, the logarithm uniform in an interval of positive numbers."""
    return uniform(generator, math.log(interval[0]), math.log(interval[1]), *shape).exp()


@dataclass(frozen=True)
class RandomSines:
    """Initial states of which each field is a sum of sines A sin(2πnx/L + φ), A ~ U(0, 1).

    Some of the sums are folded or cut to a window, see `fold_and_cut`. The velocity is such a sum;
    density and pressure are one that is scaled to [0, 1], times an amplitude, plus an offset, both
    log-uniform.

    Args:
        waves: number of terms.
        band: lowest and highest n.
        density: interval of its amplitude, and of its offset.
        pressure: the same.
        folded: probability of the absolute value.
        windowed: probability of the window.
        left: where a window begins, uniform, over the length.
        right: where it ends.

    Source: Takamoto et al., NeurIPS 2022, arXiv:2210.07182, app. D; intervals, probabilities and
    windows are of the program that made its data.
    """

    waves: int = 2
    band: tuple[int, int] = (1, 3)
    density: tuple[float, float] = (1.0, 10.0)
    pressure: tuple[float, float] = (10.0, 100.0)
    folded: float = 0.1
    windowed: float = 0.5
    left: tuple[float, float] = (0.55, 0.725)
    right: tuple[float, float] = (0.775, 0.95)

    def draw(self, cells: int, generator: torch.Generator) -> Tensor:
        """float64 [3, cells]."""
        density, velocity, pressure = (self._sum(cells, generator) for _ in range(3))
        return torch.stack(
            [
                self._positive(density, self.density, generator),
                velocity,
                self._positive(pressure, self.pressure, generator),
            ]
        )

    def _sum(self, cells: int, generator: torch.Generator) -> Tensor:
        # Of twice as many points every other one is the middle of a cell.
        torus = Torus((2 * cells,), (1.0,))
        x = torus.points[0][1::2]
        u = sines(torus, generator, self.waves, self.band, (0.0, 1.0))[0, 1::2]
        chances = (self.folded, self.windowed)
        return fold_and_cut(u, x, generator, *chances, self.left, self.right, WINDOW_EDGE)

    def _positive(
        self, u: Tensor, interval: tuple[float, float], generator: torch.Generator
    ) -> Tensor:
        amplitude, offset = log_uniform(generator, interval, 2)
        return (u - u.min()) / (u.max() - u.min()) * amplitude + offset


@dataclass(frozen=True)
class RandomTube:
    """Initial states of one jump between two constant ones: shock tubes.

    Args:
        density: interval of both sides' densities, log-uniform.
        velocity: of their velocities, uniform.
        pressure: of their pressures, log-uniform.
        jump: where it is, uniform, over the length.

    Source: Takamoto et al., NeurIPS 2022, arXiv:2210.07182, app. D. In the program that made its
    data the fields jump at different places, and the velocity is the exponential of this one.
    """

    density: tuple[float, float] = (1.0, 10.0)
    velocity: tuple[float, float] = (-0.5, 0.5)
    pressure: tuple[float, float] = (10.0, 100.0)
    jump: tuple[float, float] = (0.25, 0.75)

    def draw(self, cells: int, generator: torch.Generator) -> Tensor:
        """float64 [3, cells]."""
        sides = torch.stack(
            [
                log_uniform(generator, self.density, 2),
                uniform(generator, *self.velocity, 2),
                log_uniform(generator, self.pressure, 2),
            ]
        )
        middles = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        return torch.where(middles < uniform(generator, *self.jump, 1), sides[:, :1], sides[:, 1:])


@dataclass(frozen=True)
class CompressibleNavierStokes(Evolution):
    """ρ_t + (ρu)_x = 0, (ρu)_t + (ρu² + p − σ)_x = 0, E_t + ((E + p − σ) u)_x = 0 for an ideal gas.

    E = p / (γ − 1) + ½ ρu² and σ = (ζ + 4/3 η) u_x; heat is not conducted. Finite volumes: van
    Leer's limited slopes of ρ, u and p, HLLC fluxes with wave speeds that keep density and pressure
    positive at first order, central differences for σ, and Heun's method (SSP-RK2). Every
    trajectory has steps of its own, so that it is the same in every batch. σ is explicit too: where
    it limits the step, cost is proportional to the viscosity and to the cube of `size`.

    The default is a data set of PDEBench, 1D CFD "Rand periodic", but that theirs have `kinematic`.

    Args:
        size: saved cells.
        length: of the domain, which begins at 0; theirs at −1.
        gamma: γ, ratio of specific heats.
        shear: η, shear viscosity.
        bulk: ζ, bulk viscosity.
        kinematic: η and ζ are per density, σ = ρ (ζ + 4/3 η) u_x, as in the program that made
            PDEBench's data; in its paper they are not.
        boundary: "outflow" continues the outermost cells.
        start: of what law initial states are.
        cfl: so much of the longest step at which no wave crosses a cell and σ is stable.
        oversample: the solver has so many times more cells than are saved; means of their density,
            momentum and energy are.

    Source: Takamoto et al., NeurIPS 2022, arXiv:2210.07182; slopes: van Leer, J. Comput. Phys. 32
    (1979) 101; fluxes: Toro, Spruce and Speares, Shock Waves 4 (1994) 25; their speeds: Batten,
    Clarke, Lambert and Causon, SIAM J. Sci. Comput. 18 (1997) 1553.
    """

    channels = ("density", "Vx", "pressure")

    size: int = 1024
    length: float = 2.0
    gamma: float = 5 / 3
    shear: float = 1e-2
    bulk: float = 1e-2
    kinematic: bool = False
    boundary: Literal["periodic", "outflow"] = "periodic"
    start: RandomSines | RandomTube = RandomSines()
    cfl: float = 0.4
    oversample: int = 1

    def __post_init__(self) -> None:
        if self.size < 8 or self.oversample < 1 or self.length <= 0 or not 0 < self.cfl <= 1:
            raise DataError(
                f"CompressibleNavierStokes needs at least 8 cells, a positive length, an oversample"
                f" of 1 or more and a cfl in (0, 1], got {self.key}."
            )
        if self.gamma <= 1 or self.shear < 0 or self.bulk < 0:
            raise DataError(
                f"CompressibleNavierStokes needs a gamma above 1 and viscosities of 0 or more, got "
                f"{self.gamma}, {self.shear} and {self.bulk}."
            )
        if self.boundary not in ("periodic", "outflow"):
            raise DataError(
                f"CompressibleNavierStokes needs a boundary of 'periodic' or 'outflow', got "
                f"{self.boundary!r}."
            )

    @property
    def periodic(self) -> bool:
        return self.boundary == "periodic"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def coordinates(self) -> list[Tensor]:
        return [(torch.arange(self.size, dtype=torch.float64) + 0.5) * (self.length / self.size)]

    @property
    def cells(self) -> int:
        """The solver's own."""
        return self.oversample * self.size

    @property
    def width(self) -> float:
        """Of the solver's cells."""
        return self.length / self.cells

    @property
    def viscosity(self) -> float:
        """σ over u_x, and over the density if kinematic."""
        return self.bulk + 4 / 3 * self.shear

    def initial(self, generator: torch.Generator) -> Tensor:
        return self.start.draw(self.cells, generator)

    def conserved(self, w: Tensor) -> Tensor:
        """Density, momentum and energy of density, velocity and pressure, both [..., 3, cells]."""
        density, velocity, pressure = w.unbind(dim=-2)
        momentum = density * velocity
        energy = pressure / (self.gamma - 1) + momentum * velocity / 2
        return torch.stack([density, momentum, energy], dim=-2)

    def primitive(self, state: Tensor) -> Tensor:
        """The inverse of `conserved`."""
        density, momentum, energy = state.unbind(dim=-2)
        velocity = momentum / density
        pressure = (self.gamma - 1) * (energy - momentum * velocity / 2)
        return torch.stack([density, velocity, pressure], dim=-2)

    def solve(self, initial: Tensor, times: Sequence[float]) -> Tensor:
        check_times(times)
        check_states(self, initial, (3, self.cells))
        state, now, saved = self.conserved(initial), 0.0, []
        for time in times:
            left = initial.new_full((len(initial), 1, 1), time - now)
            while True:
                rate = self.rate(self.primitive(state), time)
                if not left.any():
                    break
                # Of a trajectory that has arrived the steps are 0, which leaves it as it is.
                step = left / torch.ceil(left * rate).clamp(min=1)
                ahead = state + step * self.change(state)
                state = (state + (ahead + step * self.change(ahead))) / 2
                left = left - step
            now = time
            means = state.unflatten(-1, (self.size, self.oversample)).mean(dim=-1)
            saved.append(self.primitive(means))
        return torch.stack(saved, dim=1)

    def rate(self, w: Tensor, time: float) -> Tensor:
        """One over the longest step, [B, 1, 1], where density, velocity and pressure are `w`."""
        density, velocity, pressure = w.unbind(dim=1)
        sound = torch.sqrt(self.gamma * pressure / density)
        diffusion = self.viscosity if self.kinematic else self.viscosity / density
        rate = (velocity.abs() + sound) / self.width + 2 * diffusion / self.width**2
        lowest = torch.minimum(density, pressure).amin(dim=1)
        rate = rate.amax(dim=1)
        bad = ~((lowest > 0) & rate.isfinite())
        if bad.any():
            raise SolverError(
                f"CompressibleNavierStokes: {int(bad.sum())} of {len(w)} trajectories came to a "
                f"density or pressure that is not positive before t = {time:g}: lower cfl (now "
                f"{self.cfl:g}), or raise oversample (now {self.oversample}), shear or bulk."
            )
        return (rate / self.cfl)[:, None, None]

    def change(self, state: Tensor) -> Tensor:
        """Of density, momentum and energy, over time, [B, 3, cells]."""
        mode = "circular" if self.periodic else "replicate"
        w = pad(self.primitive(state), (2, 2), mode=mode)
        differences = w.diff(dim=-1)
        before, after = differences[..., :-1], differences[..., 1:]
        product = before * after
        half_slope = torch.where(product > 0, product / (before + after), 0)
        middle = w[..., 1:-1]
        flux = self.flux((middle + half_slope)[..., :-1], (middle - half_slope)[..., 1:])
        stress = self.viscosity * differences[:, 1, 1:-1] / self.width
        means = (middle[..., 1:] + middle[..., :-1]) / 2
        if self.kinematic:
            stress = stress * means[:, 0]
        flux[:, 1] -= stress
        flux[:, 2] -= stress * means[:, 1]
        return flux.diff(dim=-1) / -self.width

    def flux(self, left: Tensor, right: Tensor) -> Tensor:
        """HLLC's, [B, 3, faces], between densities, velocities and pressures [B, 3, faces]."""
        sides = torch.stack([left, right])
        states = self.conserved(sides)
        density, velocity, pressure = sides.unbind(dim=-2)
        _, momentum, energy = states.unbind(dim=-2)
        sound = torch.sqrt(self.gamma * pressure / density)

        share = density.sqrt()
        share = share / (share[0] + share[1])
        mean = share[0] * velocity[0] + share[1] * velocity[1]
        enthalpy = share * ((energy + pressure) / density)
        mean_sound = torch.sqrt((self.gamma - 1) * (enthalpy[0] + enthalpy[1] - mean * mean / 2))
        slowest = torch.minimum(velocity[0] - sound[0], mean - mean_sound)
        fastest = torch.maximum(velocity[1] + sound[1], mean + mean_sound)

        ahead = torch.stack([slowest, fastest]) - velocity
        inflow = density * ahead
        force = pressure - inflow * velocity
        contact = (force[1] - force[0]) / (inflow[0] - inflow[1])
        # In this form a contact at rest has no flux at all but the pressure.
        squeeze = ahead / (ahead + (velocity - contact))
        work = (contact - velocity) * (density * contact + pressure / ahead)
        middle = torch.stack([density, density * contact, energy + work], dim=-2)
        middle = middle * squeeze.unsqueeze(-2)
        bound = torch.stack([slowest.clamp(max=0), fastest.clamp(min=0)]).unsqueeze(-2)
        carried = [momentum, momentum * velocity + pressure, (energy + pressure) * velocity]
        # A clamp lets NaN pass, where a choice by the signs of the speeds would hide it.
        fluxes = torch.stack(carried, dim=-2) + bound * (middle - states)
        return torch.where((contact >= 0).unsqueeze(-2), fluxes[0], fluxes[1])
