"""The textbook: every coefficient as a sum over all points, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.spectral_conv.basis import kept

LETTERS = "uvw", "xyz"


def spectral_conv_reference(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`kernels.spectral_conv` in float64: x [B, C, *points] to [B, D, *points]."""
    x = x.double()
    if isinstance(weight, Tensor):
        y = _convolution(x, weight.double())
    else:
        along = (_along(x, w.double(), axis) for axis, w in enumerate(weight))
        y = sum(along, x.new_zeros(()))
    if skip is not None:
        y = y + torch.einsum("oi,bi...->bo...", skip.double(), x)
    if bias is not None:
        y = y + bias.double().view(-1, *[1] * (x.ndim - 2))
    return y if activation is None else 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))


def _convolution(x: Tensor, weight: Tensor) -> Tensor:
    axes = x.ndim - 2
    depthwise = weight.ndim == axes + 2
    modes = weight.shape[:axes]
    re, im = weight.unbind(-2)
    w = torch.complex(re, im)  # [*K, C, D] or [*K, C]
    waves = [
        _waves(N, K, last=axis == axes - 1, like=x)
        for axis, (N, K) in enumerate(zip(x.shape[2:], modes, strict=True))
    ]
    k, n = (letters[:axes] for letters in LETTERS)
    there = ",".join(f"{a}{b}" for a, b in zip(k, n, strict=True))
    points = math.prod(x.shape[2:])
    X = torch.einsum(f"bi{n},{there}->bi{k}", x + 0j, *(wave.conj() for wave in waves)) / points
    Y = torch.einsum(f"bi{k},{k}i->bi{k}" if depthwise else f"bi{k},{k}io->bo{k}", X, w)
    # A mode stands for itself and, but for those with k = 0 along the last axis, its conjugate.
    twice = torch.full((modes[-1],), 2.0, dtype=x.dtype, device=x.device)
    twice[0] = 1
    return torch.einsum(f"bo{k},{there}->bo{n}", Y * twice, *waves).real


def _along(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    """A one-dimensional convolution along one axis, every line of points by itself."""
    lines = x.movedim(axis + 2, -1).movedim(1, -2)
    y = _convolution(lines.flatten(0, -3), weight)
    return y.unflatten(0, lines.shape[:-2]).movedim(-2, 1).movedim(-1, axis + 2)


def _waves(points: int, count: int, last: bool, like: Tensor) -> Tensor:
    """e^{ikωn}: complex128 [count, points]."""
    k = torch.tensor(kept(count, last), device=like.device)
    n = torch.arange(points, device=like.device)
    turns = (k[:, None] * n) % points
    return torch.exp(2j * math.pi / points * turns.double())
