"""What all equations share: parameters that are a data set's key, initial states, a solution."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.etdrk4 import ETDRK4
from datamodules.pde.torus import Torus

SOLVER_VERSION = 1
"""Raise it with every change of what a solver returns: data made by another are not used."""

UNRESOLVED = 0.02
"""Amplitude of the highest modes over that of all but the mean, beyond which a solution is none."""

NEGLIGIBLE = 1e-9
"""Amplitude of a channel over that of all, below which it is rounding noise."""


class SolverError(DataError):
    """A solution that is not to be trusted, with what to change."""


@dataclass(frozen=True)
class Equation(ABC):
    """A differential equation with all that its solutions depend on but the random numbers.

    Shapes: B samples, T saved times, C channels, then the points of every axis.

    Attributes:
        channels: names of the fields of a solution.
    """

    channels: ClassVar[tuple[str, ...]]

    @property
    def periodic(self) -> bool:
        """Whether the last point of an axis is beside the first."""
        return True

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Number of saved points of each axis."""

    @property
    @abstractmethod
    def coordinates(self) -> list[Tensor]:
        """float64, one per axis: where the saved points are."""

    @abstractmethod
    def initial(self, generator: torch.Generator) -> Tensor:
        """What one solution starts from, random, float64, [C, *points of the solver]."""

    @property
    def key(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"equation": type(self).__name__, "solver": SOLVER_VERSION, **asdict(self)}

    @property
    def smoothers(self) -> list[str]:
        """The names of its options of which more makes solutions smoother."""
        return [f.name for f in fields(self) if f.name.startswith(("viscosity", "diffus"))]


@dataclass(frozen=True)
class Evolution(Equation):
    """An equation whose solution is a trajectory from an initial state."""

    @abstractmethod
    def solve(self, initial: Tensor, times: Sequence[float]) -> Tensor:
        """The states at `times`, which increase from 0 or more, where `initial` is.

        Args:
            initial: float64, [B, C, *points of the solver].
            times: when to save; 0 saves the initial state.

        Returns:
            float64, [B, T, C, *shape].

        Raises:
            SolverError: a solution blew up, or ceased to be resolved.
        """


@dataclass(frozen=True)
class Steady(Equation):
    """An equation whose solution is one state, for a coefficient or a forcing.

    Attributes:
        inputs: names of the fields that a solution is for, as `solve` returns them.
    """

    inputs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def solve(self, initial: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients at the saved points, [B, len(inputs), *shape], and the solutions, [B, C,
        *shape], both float64.

        Args:
            initial: what `initial` draws, float64: coefficients, or, where pairs are manufactured,
                what both follow from.

        Raises:
            SolverError: no solution was found.
        """


def either(names: Sequence[str]) -> str:
    """Names of options in a sentence: a, b or c."""
    return " or ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def check_states(equation: Equation, initial: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse what is not [B, *expected] in float64."""
    if initial.shape[1:] != expected or initial.dtype != torch.float64:
        raise DataError(
            f"{type(equation).__name__} expects initial states [B, {', '.join(map(str, expected))}]"
            f" in float64, got {list(initial.shape)} in {initial.dtype}."
        )


def check_times(times: Sequence[float]) -> None:
    """Refuse times that do not increase from 0 or more."""
    if list(times) != sorted(set(times)) or min(times, default=0) < 0:
        raise DataError(f"Times to save must increase from 0 or more, got {list(times)}.")


@dataclass(frozen=True)
class SpectralEquation(Evolution):
    """An equation on a periodic box, solved by Fourier collocation and ETDRK4.

    Args:
        sizes: saved points of each axis.
        length: of every axis.
        step: longest time step.
        oversample: the solver has so many times more points on each axis than are saved. Where
            viscosity is too low for the saved points, this is what keeps it right.

    Products of two fields, or of as many as `factors` says, are dealiased: see Torus.kept. A
    solution whose highest kept modes have more than `UNRESOLVED` of the largest amplitude is
    refused.
    """

    factors: ClassVar[int] = 2

    sizes: tuple[int, ...]
    length: float
    step: float
    oversample: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.sizes, Sequence) or not self.sizes:
            raise DataError(
                f"{name} needs as sizes a list, of one number of points an axis, got {self.sizes}."
            )
        object.__setattr__(self, "sizes", tuple(self.sizes))
        whole = all(isinstance(n, int) for n in (*self.sizes, self.oversample))
        few = not whole or min(self.sizes) < 8 or self.oversample < 1
        if few or self.step <= 0 or self.length <= 0:
            raise DataError(
                f"{name} needs at least 8 points an axis, a positive step and length, and a whole "
                f"oversample of 1 or more, got {self.key}."
            )

    @abstractmethod
    def linear(self, torus: Torus) -> Tensor:
        """L, of a shape that broadcasts to coefficients [B, C, *modes]."""

    @abstractmethod
    def nonlinear(self, torus: Torus) -> Callable[[Tensor], Tensor]:
        """N, a map of coefficients [B, C, *modes] to fresh ones."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def coordinates(self) -> list[Tensor]:
        return [x.flatten() for x in self.saved_torus().points]

    def torus(self, device: torch.device | str = "cpu") -> Torus:
        """The solver's own points."""
        sizes = tuple(self.oversample * n for n in self.sizes)
        return Torus(sizes, (self.length,) * len(sizes), device, 1 / (self.factors + 1))

    def saved_torus(self) -> Torus:
        """The saved points."""
        return Torus(self.sizes, (self.length,) * len(self.sizes))

    def solve(self, initial: Tensor, times: Sequence[float]) -> Tensor:
        torus = self.torus(initial.device)
        check_times(times)
        check_states(self, initial, (len(self.channels), *torus.sizes))
        linear, nonlinear = self.linear(torus), self.nonlinear(torus)
        every = (..., *[slice(None, None, self.oversample)] * len(torus.sizes))
        steppers: dict[float, ETDRK4] = {}
        v, now, saved = torus.forward(initial) * torus.kept, 0.0, []
        for time in times:
            steps = math.ceil(round((time - now) / self.step, 6))
            if steps:
                # Intervals that are equal but for rounding share their coefficients.
                h = float(f"{(time - now) / steps:.13g}")
                if h not in steppers:
                    steppers[h] = ETDRK4(linear, nonlinear, h)
                for _ in range(steps):
                    v = steppers[h](v)
                self.check(v, torus, time)
            now = time
            saved.append(torus.inverse(v)[every])
        return torch.stack(saved, dim=1)

    def check(self, v: Tensor, torus: Torus, time: float) -> None:
        """Refuse coefficients [B, C, *modes] that are infinite or fill the whole spectrum."""
        name, size = type(self).__name__, v.abs()
        bad = ~size.flatten(1).isfinite().all(dim=1)
        if bad.any():
            raise SolverError(
                f"{name}: {int(bad.sum())} of {len(v)} trajectories blew up before t = {time:g}: "
                f"lower step (now {self.step:g})."
            )
        largest = size.flatten(2)[..., 1:].amax(dim=2)  # but for the mean
        highest = (size * torus.outer).flatten(2).amax(dim=2)
        counts = largest > NEGLIGIBLE * size.flatten(1).amax(dim=1, keepdim=True)
        bad = (counts & (highest > UNRESOLVED * largest)).any(dim=1)
        if bad.any():
            raise SolverError(
                f"{name}: {int(bad.sum())} of {len(v)} trajectories are not resolved by "
                f"{'×'.join(map(str, torus.sizes))} points at t = {time:g}: raise "
                f"{either([f'oversample (now {self.oversample})', 'sizes', *self.smoothers])}."
            )
