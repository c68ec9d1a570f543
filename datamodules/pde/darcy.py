"""Darcy flow in the unit square: the pressure of a fluid in a random porous medium."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.sparse import csc_matrix, diags
from scipy.sparse.linalg import splu
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import SolverError, Steady, check_states


def stiffness(a: np.ndarray) -> csc_matrix:
    """−h² ∇·(a ∇) on the inner of n × n points, five of them a row, zero on the boundary.

    Between two points a is their arithmetic mean. Where a jumps, this is right to first order only,
    as any rule is that does not know where between the points the jump is; it is the rule of the
    published data.

    Args:
        a: float64, [n, n].

    Returns:
        Symmetric, [(n − 2)², (n − 2)²], points in the order of `a[1:-1, 1:-1].ravel()`.
    """
    n = len(a) - 2
    down = (a[1:, 1:-1] + a[:-1, 1:-1]) / 2
    right = (a[1:-1, 1:] + a[1:-1, :-1]) / 2
    here = down[1:] + down[:-1] + right[:, 1:] + right[:, :-1]
    below = -down[1:-1].ravel()
    # The last point of a row has no neighbour in the first of the next.
    beside = -np.pad(right[:, 1:-1], ((0, 0), (0, 1))).ravel()[:-1]
    bands, offsets = [here.ravel(), beside, beside, below, below], [0, 1, -1, n, -n]
    # scipy declares no types, and those of its defaults are not all that it takes and returns.
    return diags(bands, offsets, format="csc")  # pyright: ignore[reportArgumentType, reportReturnType]


def pressure(a: np.ndarray, forcing: np.ndarray) -> np.ndarray:
    """u of −∇·(a ∇u) = f on the unit square, zero on its boundary; all are float64 [n, n]."""
    # Without pivots, of which no positive definite matrix has need, an order that minds the
    # pattern alone is kept, and the factors have half of the entries. Overshoots of "cells" can
    # cost the definiteness; there u was that with pivots to 2e-15.
    factors = splu(
        stiffness(a),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0,
        options={"SymmetricMode": True},
    )
    inner = forcing[1:-1, 1:-1] / (len(a) - 1) ** 2
    return np.pad(factors.solve(inner.ravel()).reshape(inner.shape), 1)


@dataclass(frozen=True)
class Darcy(Steady):
    """−∇·(a ∇u) = f in the unit square, u = 0 on its boundary, f constant.

    g is a Gaussian field of the covariance τ^(2α−2) (−∇² + τ²)^−α with Neumann's boundary condition
    and mean zero: g = Σ_k c_k ξ_k φ_k, c_k = τ^(α−1) (π²|k|² + τ²)^(−α/2), c_0 = 0, φ_k products of
    √2 cos(πkx). a is `high` where g ≥ 0 and `low` elsewhere, or exp g.

    Solved on the CPU by finite differences of second order (of first where a jumps, see
    `stiffness`) and a sparse LU factorisation; saved at every (solver_size − 1) / (size − 1)-th
    point.

    Args:
        size: saved points of both axes.
        solver_size: of the solver's own, with solver_size − 1 a multiple of size − 1.
        law: of a, given g.
        high: a where g ≥ 0, under the law "threshold".
        low: a elsewhere. The published data have 3, the script published with them 4.
        power: α.
        shift: τ.
        forcing: f.
        grid: "nodes" has points i / (n − 1), with the boundary. "cells" is as the published data
            were made: points (i + ½) / n, from which cubic splines carry a to nodes, and u back.
            There a overshoots its jumps, to below zero at some points of the boundary, and the
            first u is not zero; solutions differ by .5 % from those of "nodes".

    Source: Li et al., ICLR 2021, arXiv:2010.08895, sec. 5.2.
    """

    inputs = ("a",)
    channels = ("u",)

    size: int = 85
    solver_size: int = 421
    law: Literal["threshold", "lognormal"] = "threshold"
    high: float = 12.0
    low: float = 3.0
    power: float = 2.0
    shift: float = 3.0
    forcing: float = 1.0
    grid: Literal["nodes", "cells"] = "nodes"

    def __post_init__(self) -> None:
        if self.size < 3 or (self.solver_size - 1) % (self.size - 1) or self.solver_size < 5:
            raise DataError(
                f"Darcy needs a size of 3 or more, a solver_size of 5 or more, and solver_size − 1 "
                f"to be a multiple of size − 1, got {self.size} and {self.solver_size}."
            )
        if self.law not in ("threshold", "lognormal") or self.grid not in ("nodes", "cells"):
            raise DataError(
                f"Darcy needs a law of 'threshold' or 'lognormal' and a grid of 'nodes' or 'cells',"
                f" got {self.law!r} and {self.grid!r}."
            )
        if min(self.high, self.low, self.shift) <= 0 or self.power <= 1:
            raise DataError(
                f"Darcy needs positive high, low and shift and a power above 1, got {self.high}, "
                f"{self.low}, {self.shift} and {self.power}."
            )

    @property
    def periodic(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size, self.size

    @property
    def coordinates(self) -> list[Tensor]:
        return [self.points[:: self.every]] * 2

    @property
    def every(self) -> int:
        """A saved point is so many of the solver's from the next."""
        return (self.solver_size - 1) // (self.size - 1)

    @property
    def points(self) -> Tensor:
        """float64 [solver_size]: the coordinates of the solver's points, on either axis."""
        i, n = torch.arange(self.solver_size, dtype=torch.float64), self.solver_size
        return i / (n - 1) if self.grid == "nodes" else (i + 0.5) / n

    def initial(self, generator: torch.Generator) -> Tensor:
        n = self.solver_size
        k = torch.arange(n, dtype=torch.float64)
        deviation = self.shift ** (self.power - 1) * (
            math.pi**2 * (k[:, None].square() + k.square()) + self.shift**2
        ) ** (-self.power / 2)
        deviation[0, 0] = 0
        cosines = math.sqrt(2) * torch.cos(math.pi * torch.outer(self.points, k))
        cosines[:, 0] = 1
        noise = torch.randn((n, n), generator=generator, dtype=torch.float64)
        field = (cosines @ (deviation * noise) @ cosines.T)[None]
        if self.law == "lognormal":
            return field.exp()
        return torch.where(field >= 0, self.high, self.low).double()

    @cached_property
    def splines(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrices that interpolate from `points` to nodes and back, along an axis."""
        points, nodes = self.points.numpy(), np.linspace(0, 1, self.solver_size)
        pairs = (points, nodes), (nodes, points)
        return tuple(make_interp_spline(x, np.eye(len(x)))(y) for x, y in pairs)

    def solve(self, initial: Tensor) -> tuple[Tensor, Tensor]:
        check_states(self, initial, (1, self.solver_size, self.solver_size))
        if not (initial > 0).all():
            raise SolverError(
                f"Darcy: coefficients down to {initial.min():g} have no solution: make all of them "
                f"positive."
            )
        solutions = [torch.from_numpy(self._solve(a)) for a in initial[:, 0].cpu().numpy()]
        u = torch.stack(solutions)[:, None].to(initial.device)
        if not u.isfinite().all():
            remedy = "bring high and low together" if self.law == "threshold" else "raise power"
            raise SolverError(f"Darcy: a solution is infinite: {remedy}.")
        every = (..., slice(None, None, self.every), slice(None, None, self.every))
        return initial[every], u[every]

    def _solve(self, a: np.ndarray) -> np.ndarray:
        forcing = np.full_like(a, self.forcing)
        if self.grid == "nodes":
            return pressure(a, forcing)
        to, back = self.splines
        return back @ pressure(to @ a @ to.T, forcing) @ back.T
