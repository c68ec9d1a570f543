"""Spectral convolutions with weights of their own."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.spectral_conv import Activation, spectral_conv


class SpectralConv(nn.Module):
    """`kernels.spectral_conv` with a weight of every kept mode, bias and, if asked for, a skip.

    Real and imaginary parts of the weights begin as normal numbers of variance
    gain² / (inputs + outputs): where inputs and outputs are as many, the modes that are kept leave
    with the variance that they came with, however many they are and at any resolution. The bias
    begins at zero, the skip as a linear layer's weight.

    Args:
        inputs, outputs: channels.
        modes: m of every axis: wavenumbers −m … m−1 are kept, on the last axis 0 … m−1.
        skip: a 1 × 1 convolution of the input is added.
        bias: one number an output is added.
        gain: of the weights' random numbers.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        modes: Sequence[int],
        *,
        skip: bool = False,
        bias: bool = True,
        gain: float = 1.0,
    ):
        super().__init__()
        kept = (*(2 * m for m in modes[:-1]), modes[-1])
        scale = gain / math.sqrt(inputs + outputs)
        self.weight = nn.Parameter(scale * torch.randn(*kept, inputs, 2, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.skip_weight = nn.Parameter(torch.empty(outputs, inputs)) if skip else None
        if self.skip_weight is not None:
            nn.init.kaiming_uniform_(self.skip_weight, a=math.sqrt(5))

    def forward(
        self, x: Float[Tensor, "B C *points"], activation: Activation | None = None
    ) -> Float[Tensor, "B D *points"]:
        """Of the sum; `activation` is `gelu` or None."""
        return spectral_conv(
            x, self.weight, skip=self.skip_weight, bias=self.bias, activation=activation
        )


class FactorisedSpectralConv(nn.Module):
    """The sum over axes of a one-dimensional spectral convolution along each.

    It has as many weights as all `modes` together, where `SpectralConv` has as their product. The
    weights begin as there, with a gain that makes up for the number of summands.

    Args:
        channels: in and out.
        modes: m of every axis: wavenumbers −m+1 … m−1 are kept.

    Source: Tran et al., "Factorized Fourier Neural Operators", arXiv:2111.13802, eq. 6.
    """

    def __init__(self, channels: int, modes: Sequence[int]):
        super().__init__()
        gain = 1 / math.sqrt(len(modes))
        self.axes = nn.ModuleList(
            SpectralConv(channels, channels, [m], bias=False, gain=gain) for m in modes
        )

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B C *points"]:
        return spectral_conv(x, [cast(Tensor, axis.weight) for axis in self.axes])
