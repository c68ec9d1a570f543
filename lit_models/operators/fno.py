"""Fourier neural operator, in one to three dimensions.

Li et al., "Fourier Neural Operator for Parametric PDEs", arXiv:2010.08895.
Shapes: B samples, C channels, then the points of every axis.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.operators.coordinates import Coordinates
from lit_models.operators.padding import Padding
from lit_models.operators.pointwise import ChannelMLP
from lit_models.operators.spectral import SpectralConv


class FNOBlock(nn.Module):
    """GELU(spectral convolution + 1 × 1 convolution), then perhaps an MLP, then GELU.

    The MLP stands beside a skip that is one number a channel. The last block of a network has a
    GELU inside its MLP alone.

    Args:
        width: channels.
        modes: kept ones of every axis, see SpectralConv.
        channel_mlp: hidden channels of the MLP over width; None for no MLP.
        last: of the network.
    """

    def __init__(self, width: int, modes: Sequence[int], channel_mlp: float | None, last: bool):
        super().__init__()
        self.conv = SpectralConv(width, width, modes, skip=True)
        self.mlp: ChannelMLP | None = None
        if channel_mlp is not None:
            self.mlp = ChannelMLP(width, round(channel_mlp * width), width)
            self.gate = nn.Parameter(torch.ones(width, *[1] * len(modes)))
        self.last = last

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B C *points"]:
        y = self.conv(x, None if self.last else "gelu")
        if self.mlp is not None:
            y = self.mlp(y) + self.gate * x
        return y if self.last else F.gelu(y)


class FNO(nn.Module):
    """Lifting, Fourier layers, projection: the same map of functions at every resolution.

    Equal to `neuraloperator` 2.0's FNO with n_modes (2m, …, 2m, 2m − 1), which the blocks follow
    also in applying GELU twice in a row where there is no channel MLP.

    Args:
        in_channels, out_channels: of the fields.
        modes: m of every axis, see SpectralConv; there is one axis a number. An axis needs 2m
            points, its padding included.
        width: channels of the Fourier layers.
        layers: how many there are.
        channel_mlp: hidden channels of a layer's MLP over width; None for none.
        coordinates: `periodic`, `closed` (both ends are points) or None, see Coordinates; where
            there are some they are further inputs.
        padding: for fields that are not periodic, zeros behind the last point of every axis, as
            a fraction of the domain.
        lifting, projection: hidden channels of the first and the last MLP over width.

    Raises:
        ValueError: sizes are not positive, or the padding is negative; in `forward`, the input has
            other channels or axes, or too few points for the modes.

    Source: Li et al., arXiv:2010.08895; the channel MLP and its skip: the neuraloperator library,
    Kossaifi et al., arXiv:2412.10354.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        *,
        width: int = 64,
        layers: int = 4,
        channel_mlp: float | None = 0.5,
        coordinates: str | None = "periodic",
        padding: float = 0.0,
        lifting: float = 2.0,
        projection: float = 2.0,
    ):
        super().__init__()
        if min(in_channels, out_channels, width, layers, *modes) < 1 or padding < 0:
            raise ValueError(
                "Expected positive channels, modes, width and layers, and a padding of 0 or more, "
                f"got {in_channels}, {out_channels}, {list(modes)}, {width}, {layers}, {padding}."
            )
        axes = len(modes)
        self.coordinates = Coordinates(coordinates)
        self.padding = Padding(padding, closed=coordinates == "closed")
        given = in_channels + self.coordinates.channels(axes)
        self.lifting = ChannelMLP(given, int(lifting * width), width)
        self.blocks = nn.ModuleList(
            FNOBlock(width, modes, channel_mlp, last=layer == layers - 1) for layer in range(layers)
        )
        self.projection = ChannelMLP(width, int(projection * width), out_channels)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        points = x.shape[2:]
        x = self.padding(self.lifting(self.coordinates(x)))
        for block in self.blocks:
            x = block(x)
        return self.projection(self.padding.cut(x, points))
