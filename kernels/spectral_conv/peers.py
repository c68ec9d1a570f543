"""Other ways to the same convolution, to be measured against; each takes the tensors of its case.

They have their weights as complex [C, D, *K], into which `in_their_layout` brings ours beforehand,
and have no kernel for what follows the convolution.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def in_their_layout(weight: Tensor) -> Tensor:
    """A weight [*K, C, 2, D] as complex [C, D, *K]; one that is so already stays as it is."""
    if weight.is_complex():
        return weight
    return torch.complex(*weight.unbind(-2)).movedim((-2, -1), (0, 1)).contiguous()


def neuraloperator(x: Tensor, weight: Tensor, **layer) -> Tensor:
    """neuraloperator 2.0's SpectralConv, whose n_modes (2m, 2m − 1) keep m columns."""
    weight = in_their_layout(weight)
    convolve = _neuraloperator(tuple(weight.shape))
    convolve.weight = weight
    return _layer(convolve, x, **layer)


def fft(x: Tensor, weight: Tensor, **layer) -> Tensor:
    """The plain way: the whole spectrum by torch.fft, a product at its corners, and back."""
    weight = in_their_layout(weight)
    return _layer(functools.partial(_by_fft, weight), x, **layer)


@functools.cache
def _neuraloperator(shape: tuple[int, ...]) -> nn.Module:
    """A module without the weight that it was made with."""
    from neuralop.layers.spectral_convolution import SpectralConv

    channels, outputs, *modes = shape
    module = SpectralConv(channels, outputs, (*modes[:-1], 2 * modes[-1] - 1), bias=False)
    del module.weight
    return module


def _by_fft(weight: Tensor, x: Tensor) -> Tensor:
    """Leading axes keep as many positive as negative wavenumbers, which stand at their end."""
    modes, points = weight.shape[2:], x.shape[2:]
    axes = range(2, x.ndim)
    whole = torch.fft.rfftn(x, dim=list(axes), norm="forward")
    mixed = whole.new_zeros(len(x), weight.shape[1], *whole.shape[2:])
    halves = [K // 2 for K in modes[:-1]]
    for corner in range(2 ** len(halves)):
        there, of_weight = [slice(None)] * 2, [slice(None)] * 2
        for axis, half in enumerate(halves):
            negative = corner >> axis & 1
            there.append(slice(-half, None) if negative else slice(half))
            of_weight.append(slice(half) if negative else slice(half, None))
        there.append(slice(modes[-1]))
        block = whole[tuple(there)]
        mixed[tuple(there)] = torch.einsum("bi...,io...->bo...", block, weight[tuple(of_weight)])
    return torch.fft.irfftn(mixed, s=points, dim=list(axes), norm="forward")


def _layer(
    convolve: Callable[[Tensor], Tensor],
    x: Tensor,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    y = convolve(x)
    if skip is not None:
        by_channel = torch.baddbmm(y.flatten(2), skip.expand(len(x), -1, -1), x.flatten(2))
        y = by_channel.view(len(x), -1, *x.shape[2:])
    if bias is not None:
        y = y + bias.view(-1, *[1] * (x.ndim - 2))
    return y if activation is None else F.gelu(y)
