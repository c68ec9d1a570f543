"""Random periodic fields, one at a time from one generator, for initial states and forcings."""

import math

import torch
from torch import Tensor

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
