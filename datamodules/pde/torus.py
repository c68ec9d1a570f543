"""Periodic boxes: points, wavenumbers and Fourier transforms of fields on them."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Torus:
    """A periodic box with as many axes as `sizes` has entries; transforms act on the last axes.

    Attributes:
        sizes: number of points of each axis.
        lengths: length of each axis.
        device: where wavenumbers and points are.
        share: modes below so many times the number of points are kept, along every axis.
    """

    sizes: tuple[int, ...]
    lengths: tuple[float, ...]
    device: torch.device | str = "cpu"
    share: float = 1 / 3

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of a field, counted from its end."""
        return tuple(range(-len(self.sizes), 0))

    @cached_property
    def points(self) -> list[Tensor]:
        """float64, one per axis: coordinates from 0, shaped to broadcast to a field."""
        return [
            self._along(axis, length / n * torch.arange(n, device=self.device, dtype=torch.float64))
            for axis, (n, length) in enumerate(zip(self.sizes, self.lengths, strict=True))
        ]

    @cached_property
    def modes(self) -> list[Tensor]:
        """float64, one per axis: whole wavenumbers, shaped to broadcast to a transform."""
        modes = []
        for axis, n in enumerate(self.sizes):
            frequencies = torch.fft.rfftfreq if axis == len(self.sizes) - 1 else torch.fft.fftfreq
            numbers = frequencies(n, 1 / n, device=self.device, dtype=torch.float64)
            modes.append(self._along(axis, numbers.round()))  # n · (1 / n) may not be 1
        return modes

    @cached_property
    def wavenumbers(self) -> list[Tensor]:
        """float64, one per axis: 2π n / length, shaped to broadcast to a transform."""
        return [
            2 * math.pi / length * n for n, length in zip(self.modes, self.lengths, strict=True)
        ]

    @cached_property
    def gradient(self) -> list[Tensor]:
        """complex128, one per axis: i k, but zero at an even axis' Nyquist mode."""
        return [
            1j * torch.where(2 * n.abs() == size, 0, k)
            for n, k, size in zip(self.modes, self.wavenumbers, self.sizes, strict=True)
        ]

    @cached_property
    def slopes(self) -> Tensor:
        """complex128 [axes, *modes]: the gradient's entries, each of a transform's shape."""
        return torch.stack(torch.broadcast_tensors(*self.gradient))

    @cached_property
    def laplacian(self) -> Tensor:
        """float64, of a transform's shape: −|k|²."""
        return -cast(Tensor, sum(k.square() for k in self.wavenumbers))

    @cached_property
    def kept(self) -> Tensor:
        """bool, of a transform's shape: modes that products leave unaliased.

        With a share of 1/3 those of two fields, Orszag's 2/3 rule, J. Atmos. Sci. 28 (1971) 1074;
        with 1/4 those of three.
        """
        return reduce(torch.logical_and, self._inside)

    @cached_property
    def outer(self) -> Tensor:
        """bool, of a transform's shape: kept modes among the highest tenth of an axis."""
        high = [
            n.abs() > 0.9 * n[inside].abs().max()
            for n, inside in zip(self.modes, self._inside, strict=True)
        ]
        return self.kept & reduce(torch.logical_or, high)

    @property
    def _inside(self) -> list[Tensor]:
        return [n.abs() < self.share * size for n, size in zip(self.modes, self.sizes, strict=True)]

    def forward(self, u: Tensor) -> Tensor:
        """A real field to its Fourier coefficients, the last axis halved."""
        return torch.fft.rfftn(u, dim=self.axes)

    def inverse(self, v: Tensor) -> Tensor:
        """Fourier coefficients to the real field."""
        return torch.fft.irfftn(v, s=self.sizes, dim=self.axes)

    def _along(self, axis: int, values: Tensor) -> Tensor:
        shape = [1] * len(self.sizes)
        shape[axis] = -1
        return values.reshape(shape)


def resample(u: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Fourier interpolation of periodic fields to other numbers of points.

    Modes that both grids have are kept. Of an axis with more points than before the interpolant
    goes through the old ones, their Nyquist mode included; of an axis with fewer points the new
    Nyquist mode is dropped, as these points cannot tell its phase.

    Args:
        u: real, its last axes the points.
        sizes: wanted points of each of them.

    Returns:
        Of u's leading shape, then `sizes`; where these are u's own points, u.
    """
    return u if u.shape[-len(sizes) :] == sizes else _resampled(u, sizes, nyquist=True)


def smooth_resample(u: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Fourier interpolation as `resample` does, but without the Nyquist modes of the coarser grid,
    whose slope no solver knows."""
    return _resampled(u, sizes, nyquist=False)


def _resampled(u: Tensor, sizes: tuple[int, ...], nyquist: bool) -> Tensor:
    axes = tuple(range(-len(sizes), 0))
    old = u.shape[-len(sizes) :]
    v = torch.fft.rfftn(u, dim=axes)
    out = v.new_zeros(*u.shape[: -len(sizes)], *sizes[:-1], sizes[-1] // 2 + 1)
    sides = []
    for axis, (a, b) in zip(axes, zip(old, sizes, strict=True), strict=True):
        m, half = (min(a, b) - 1) // 2, a // 2
        low, high, middle = slice(0, m + 1), slice(-m, None), slice(half, half + 1)
        moves = [(low, low, 1.0)]
        if axis != -1 and m:
            moves.append((high, high, 1.0))
        if nyquist and a % 2 == 0 and a == b:
            moves.append((middle, middle, 1.0))
        elif nyquist and a % 2 == 0 and a < b:  # on more points it is two modes, ± a / 2
            moves.append((middle, middle, 0.5))
            if axis != -1:
                moves.append((middle, slice(b - half, b - half + 1), 0.5))
        sides.append(moves)
    for block in itertools.product(*sides):
        old_modes, new_modes, shares = zip(*block, strict=True)
        out[(..., *new_modes)] = v[(..., *old_modes)] * math.prod(shares)
    return torch.fft.irfftn(out, s=sizes, dim=axes) * (math.prod(sizes) / math.prod(old))
