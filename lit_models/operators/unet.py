"""U-Net with residual blocks, in one to three dimensions.

Shapes: B samples, C channels, then the points of every axis.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def convolution(
    axes: int, inputs: int, outputs: int, periodic: bool, *, kernel: int = 3, stride: int = 1
) -> nn.Module:
    """[B, inputs, *points] to [B, outputs, *⌈points / stride⌉], padded around the torus or by 0."""
    mode = "circular" if periodic else "zeros"
    return CONVOLUTIONS[axes](
        inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode=mode
    )


class ResidualBlock(nn.Module):
    """Norm, GELU, convolution, twice, beside a shortcut that is linear where channels differ."""

    def __init__(self, axes: int, inputs: int, outputs: int, groups: int, periodic: bool):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, inputs),
            nn.GELU(),
            convolution(axes, inputs, outputs, periodic),
            nn.GroupNorm(groups, outputs),
            nn.GELU(),
            convolution(axes, outputs, outputs, periodic),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = convolution(axes, inputs, outputs, periodic, kernel=1)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        return self.layers(x) + self.shortcut(x)


class Attention(nn.Module):
    """x plus softmax attention of all points to all points, with one head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.projections = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B C *points"]:
        values = self.projections(self.norm(x).flatten(2).transpose(1, 2))
        mixed = self.out(F.scaled_dot_product_attention(*values.chunk(3, dim=-1)))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Upsample(nn.Module):
    """The nearest coarse point's value at every fine point, then a convolution."""

    def __init__(self, axes: int, channels: int, periodic: bool):
        super().__init__()
        self.conv = convolution(axes, channels, channels, periodic)

    def forward(
        self, x: Float[Tensor, "B C *points"], points: Sequence[int]
    ) -> Float[Tensor, "B C *more"]:
        return self.conv(F.interpolate(x, tuple(points), mode="nearest"))


class UNet(nn.Module):
    """Residual blocks on ever coarser grids and back, joined to what was there on the way down.

    Any number of points an axis: half of an odd one is rounded up, and the way back takes the size
    of what it is joined to. Where periodic, with a multiple of the total stride, 2^(levels − 1), of
    points on every axis, the network commutes with shifts by that stride.

    Args:
        in_channels, out_channels: of the fields.
        axes: number of spatial axes, one to three.
        width: channels of the finest level.
        multipliers: one a level, its channels over those of the level above.
        blocks: residual blocks a level, on the way down; on the way back there is one more.
        groups: of the group norms.
        attention: between the two blocks of the coarsest grid; costs its points squared.
        periodic: convolutions go around the torus; else what is outside is zero.

    Raises:
        ValueError: if axes, width or blocks are not among these.

    Source: the modern U-Net of Gupta and Brandstetter, "Towards Multi-spatiotemporal-scale
    Generalized PDE Modeling", arXiv:2209.15616, whose own goes up by transposed convolutions and
    pads with zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        axes: int,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 2,
        groups: int = 1,
        attention: bool = False,
        periodic: bool = True,
    ):
        super().__init__()
        if axes not in CONVOLUTIONS or blocks < 1 or width % groups:
            raise ValueError(
                "Expected one to three axes, one block or more and a width that is a multiple of "
                f"groups, got axes={axes}, blocks={blocks}, width={width}, groups={groups}."
            )

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(axes, inputs, outputs, groups, periodic)

        sizes = [*accumulate(multipliers, mul, initial=width)]
        levels = [*enumerate(pairwise(sizes))]
        self.lift = convolution(axes, in_channels, width, periodic)
        self.down = nn.ModuleList()
        for level, (above, size) in levels:
            if level > 0:
                self.down.append(convolution(axes, above, above, periodic, stride=2))
            self.down.append(block(above, size))
            self.down.extend(block(size, size) for _ in range(blocks - 1))
        size = sizes[-1]
        between = [Attention(size, groups)] if attention else []
        self.middle = nn.Sequential(block(size, size), *between, block(size, size))
        self.up = nn.ModuleList()
        for level, (above, size) in reversed(levels):
            self.up.extend(block(2 * size, size) for _ in range(blocks))
            # The last is joined to what entered the level.
            self.up.append(block(size + above, above))
            if level > 0:
                self.up.append(Upsample(axes, above, periodic))
        self.head = nn.Sequential(
            nn.GroupNorm(groups, width), nn.GELU(), convolution(axes, width, out_channels, periodic)
        )

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        x = self.lift(x)
        seen = [x]
        for layer in self.down:
            x = layer(x)
            seen.append(x)
        x = self.middle(x)
        for layer in self.up:
            if isinstance(layer, Upsample):
                x = layer(x, seen[-1].shape[2:])
            else:
                x = layer(torch.cat([x, seen.pop()], dim=1))
        return self.head(x)
