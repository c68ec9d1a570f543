"""Random periodic fields, one at a time from one generator, for initial states and forcings."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.torus import Torus


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """float64, uniform in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def sines(
    torus: Torus,
    generator: torch.Generator,
    waves: int,
    band: tuple[int, int],
    amplitude: tuple[float, float] = (-0.5, 0.5),
) -> Tensor:
    """Σ_i A_i sin(k_i · x + φ_i), float64 [1, *points].

    Args:
        torus: the box.
        generator: of A_i, φ_i ~ U(0, 2π) and k_i, in this order.
        waves: number of terms.
        band: lowest and highest whole wavenumber of each axis.
        amplitude: interval of A_i.
    """
    axes = len(torus.sizes)
    column = (waves, *[1] * axes)
    height = uniform(generator, *amplitude, waves).reshape(column)
    angle = uniform(generator, 0, 2 * math.pi, waves).reshape(column)
    numbers = torch.randint(band[0], band[1] + 1, (axes, waves), generator=generator).double()
    for x, n, length in zip(torus.points, numbers, torus.lengths, strict=True):
        angle = angle + 2 * math.pi / length * n.reshape(column) * x
    return (height * torch.sin(angle)).sum(dim=0, keepdim=True)


def fold_and_cut(
    u: Tensor,
    x: Tensor,
    generator: torch.Generator,
    folded: float,
    windowed: float,
    left: tuple[float, float],
    right: tuple[float, float],
    edge: float,
) -> Tensor:
    """A field, by chance folded to its absolute value, negated, and cut to a window.

    Args:
        u: float64, [..., points].
        x: [points], over the length.
        generator: of where the window is and of what is done, drawn whether it is done or not.
        folded: probability of the absolute value; it, or u, is negated with the probability ½.
        windowed: probability of the window.
        left: interval of where it begins, over the length.
        right: of where it ends.
        edge: scale of the tanh at its ends, over the length.
    """
    begin, end = uniform(generator, *left, 1), uniform(generator, *right, 1)
    fold, negate, window = uniform(generator, 0, 1, 3).tolist()
    if fold < folded:
        u = u.abs()
    if negate < 0.5:
        u = -u
    if window < windowed:
        u = u * (torch.tanh((x - begin) / edge) - torch.tanh((x - end) / edge)) / 2
    return u


@dataclass(frozen=True)
class SineState:
    """PDEBench's initial states of one field: Σ_i A_i sin(2π n_i x / length + φ_i), A ~ U(0, 1),
    φ ~ U(0, 2π), some folded to ± their absolute value or cut to a window, see `fold_and_cut`.

    Args:
        waves: number of terms.
        band: lowest and highest n.
        folded: probability of the absolute value.
        windowed: probability of the window.
        left: where a window begins, uniform, over the length.
        right: where it ends.
        edge: how wide its ends are, over the length.

    Source: Takamoto et al., PDEBench, NeurIPS 2022, arXiv:2210.07182, app. D; windows are of the
    program that made its data. That has waves up to n = 4, doubles n where both waves have the same
    and adds a random constant, none of which is in the paper, nor here.
    """

    waves: int = 2
    band: tuple[int, int] = (1, 8)
    folded: float = 0.1
    windowed: float = 0.1
    left: tuple[float, float] = (0.1, 0.45)
    right: tuple[float, float] = (0.55, 0.9)
    edge: float = 0.01

    def __post_init__(self) -> None:
        chances = (self.folded, self.windowed)
        if self.waves < 1 or len(self.band) != 2 or not 0 <= self.band[0] <= self.band[1]:
            raise DataError(
                "SineState needs one wave or more and a band of two wavenumbers that increase from "
                f"0 or more, got {self.waves} and {list(self.band)}."
            )
        if not (min(chances) >= 0 and max(chances) <= 1 and self.edge > 0):
            raise DataError(
                f"SineState needs probabilities in [0, 1] and a positive edge, got {chances} and "
                f"{self.edge}."
            )

    def draw(self, torus: Torus, generator: torch.Generator) -> Tensor:
        """float64 [1, points], the same function on whatever points."""
        u = sines(torus, generator, self.waves, self.band, (0.0, 1.0))
        x = torus.points[0] / torus.lengths[0]
        chances = (self.folded, self.windowed)
        return fold_and_cut(u, x, generator, *chances, self.left, self.right, self.edge)


def gaussian(torus: Torus, generator: torch.Generator, deviation: Tensor, *shape: int) -> Tensor:
    """Stationary Gaussian fields, float64 [*shape, *points].

    Args:
        torus: the box, at the saved points; finer solvers interpolate what comes of it.
        generator: of white noise on the points.
        deviation: √ of the covariance's eigenvalue of every mode, where the eigenfunctions have the
            mean square 1 over the box (1, √2 cos k·x, √2 sin k·x); of a transform's shape.
    """
    noise = torch.randn((*shape, *torus.sizes), generator=generator, dtype=torch.float64)
    scale = math.sqrt(math.prod(torus.sizes))
    return torus.inverse(torus.forward(noise) * deviation) * scale
