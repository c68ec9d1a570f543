"""The modes that are kept of a spectrum, and the matrices that lead to them and back.

With ω = 2π / N, a kept mode k of an axis of N points has the wave e^{ikωn}. A leading axis keeps
k = −m … m−1, the last one k = 0 … m−1, since the field is real.
"""

import functools
import math

import torch
from torch import Tensor


def kept(count: int, last: bool) -> range:
    """The wavenumbers that an axis with `count` kept modes has, in ascending order."""
    return range(count) if last else range(-(count // 2), count // 2)


@functools.lru_cache(maxsize=64)
def waves(points: int, count: int, last: bool, dtype: torch.dtype, device: str) -> Tensor:
    """cos(kωn), then sin(kωn): [2, count, points], exact to rounding at any size."""
    k = torch.tensor(kept(count, last))
    turns = (k[:, None] * torch.arange(points)) % points  # whole turns taken away before rounding
    angle = 2 * math.pi / points * turns.double()
    return torch.stack([angle.cos(), angle.sin()]).to(device, dtype)


@functools.lru_cache(maxsize=64)
def to_half(points: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """[points, 2 · count]: a real axis to the real, then the imaginary parts of its kept modes."""
    cos, sin = waves(points, count, True, torch.float64, device)
    return (torch.cat([cos, -sin]).T / points).to(dtype)


@functools.lru_cache(maxsize=64)
def from_half(points: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """[2 · count, points]: back; every mode but k = 0 stands for its conjugate too."""
    cos, sin = waves(points, count, True, torch.float64, device)
    twice = torch.full((count, 1), 2.0, dtype=torch.float64, device=device)
    twice[0] = 1
    return torch.cat([twice * cos, -twice * sin]).to(dtype)
