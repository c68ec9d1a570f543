"""What several tests of solvers do."""

import itertools
import math
from dataclasses import replace

import torch

from datamodules.pde.equation import SpectralEquation
from datamodules.pde.generation import Recipe


def start(equation, samples: int = 2, seed: int = 0) -> torch.Tensor:
    """Initial states of the first samples, [B, C, *points]."""
    return Recipe(equation, (), samples, seed).draw(range(samples))


def orders_in_time(equation: SpectralEquation, until: float, steps: int) -> list[float]:
    """Observed orders over two halvings of the step, from differences of consecutive solutions."""
    u0 = start(equation)
    ends = [replace(equation, step=until / (steps * 2**i)).solve(u0, [until]) for i in range(4)]
    errors = [(a - b).abs().max().item() for a, b in itertools.pairwise(ends)]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def mean_of(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Mean of a product over the points of one axis."""
    return (u * v).mean(dim=-1)


def slope(u: torch.Tensor, length: float, order: int = 1) -> torch.Tensor:
    """A derivative of fields on one periodic axis."""
    n = u.shape[-1]
    k = 2j * math.pi / length * torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
    return torch.fft.irfft(torch.fft.rfft(u) * k**order, n=n)
