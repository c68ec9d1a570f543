"""The modes that are kept of a spectrum, and the matrices that lead to them and back.

With ω = 2π / N, a kept mode k of an axis of N points has the wave e^{ikωn}. A leading axis keeps
k = −m … m−1, the last one k = 0 … m−1, since the field is real.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor


def kept(count: int, last: bool) -> range:
    """The wavenumbers that an axis with `count` kept modes has, in ascending order."""
    return range(count) if last else range(-(count // 2), count // 2)


def waves(points: int, count: int, last: bool, dtype: torch.dtype, device: str) -> Tensor:
    """cos(kωn), then sin(kωn): [2, count, points], exact to rounding at any size."""
    return _table(_waves, points, count, last, dtype, device)


def to_half(points: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """[points, 2 · count]: a real axis to the real, then the imaginary parts of its kept modes."""
    return _table(_to_half, points, count, True, dtype, device)


def from_half(points: int, count: int, dtype: torch.dtype, device: str) -> Tensor:
    """[2 · count, points]: back; every mode but k = 0 stands for its conjugate too."""
    return _table(_from_half, points, count, True, dtype, device)


@functools.cache
def _table(
    make: Callable[[int, int, bool], Tensor],
    points: int,
    count: int,
    last: bool,
    dtype: torch.dtype,
    device: str,
) -> Tensor:
    # Kept for ever: a captured CUDA graph may read it. Not made as what inference mode makes, which
    # no training step may use.
    with torch.inference_mode(False):
        return make(points, count, last).to(device, dtype)


def _waves(points: int, count: int, last: bool) -> Tensor:
    k = torch.tensor(kept(count, last))
    turns = (k[:, None] * torch.arange(points)) % points  # whole turns taken away before rounding
    angle = 2 * math.pi / points * turns.double()
    return torch.stack([angle.cos(), angle.sin()])


def _to_half(points: int, count: int, last: bool) -> Tensor:
    cos, sin = _waves(points, count, last)
    return torch.cat([cos, -sin]).T.contiguous() / points


def _from_half(points: int, count: int, last: bool) -> Tensor:
    cos, sin = _waves(points, count, last)
    twice = torch.full((count, 1), 2.0, dtype=torch.float64)
    twice[0] = 1
    return torch.cat([twice * cos, -twice * sin])
