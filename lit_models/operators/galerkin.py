"""Galerkin transformer: attention without softmax, at a cost linear in the number of points.

Shapes: B samples, C channels, n points, as one axis or as `*points`, d coordinates of a point.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.operators.coordinates import Coordinates
from lit_models.operators.pointwise import ChannelMLP, Pointwise
from lit_models.operators.spectral import SpectralConv

NORMED = {"galerkin": ("keys", "values"), "fourier": ("queries", "keys")}
INITIAL = 1e-2
"""Of the projections: the gain of Xavier's random numbers, and what is on the diagonal."""


class HeadProjection(nn.Module):
    """A linear map split among heads; where `normed`, every head has a layer norm of its own."""

    def __init__(self, width: int, heads: int, normed: bool):
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.linear.weight, gain=INITIAL)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.diagonal().add_(INITIAL)
        self.norm = HeadNorm(heads, width // heads) if normed else nn.Identity()

    def forward(self, x: Float[Tensor, "B n width"]) -> Float[Tensor, "B heads n size"]:
        return self.norm(self.linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2))


class HeadNorm(nn.Module):
    """Layer norm of [B, heads, n, size] along the last axis, scale and shift of every head."""

    def __init__(self, heads: int, size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(heads, 1, size))
        self.shift = nn.Parameter(torch.zeros(heads, 1, size))

    def forward(self, x: Float[Tensor, "B heads n size"]) -> Float[Tensor, "B heads n size"]:
        return F.layer_norm(x, x.shape[-1:]) * self.scale + self.shift


class LinearAttention(nn.Module):
    """Q (Kᵀ V) / n in every head, each of Q, K, V with the coordinates beside it.

    Galerkin attention norms K and V, so that the columns of K are test functions, of V trial
    functions, and Kᵀ V / n the integrals of their products; Fourier attention norms Q and K, and
    Q Kᵀ is the kernel of an integral. Without a softmax both are this one product.

    Args:
        width: channels.
        heads: among which they are divided.
        coordinates: d, number of coordinates.
        kind: `galerkin` or `fourier`.

    Source: Cao, "Choose a Transformer: Fourier or Galerkin", arXiv:2105.14995; the coordinates, the
    norms and what the weights begin with as in its released code, which divides Fourier attention
    by √(width / heads) besides.
    """

    def __init__(self, width: int, heads: int, coordinates: int, kind: str):
        super().__init__()
        normed = NORMED[kind]
        self.queries = HeadProjection(width, heads, "queries" in normed)
        self.keys = HeadProjection(width, heads, "keys" in normed)
        self.values = HeadProjection(width, heads, "values" in normed)
        self.out = nn.Linear(width + heads * coordinates, width)

    def forward(
        self, x: Float[Tensor, "B n width"], position: Float[Tensor, "B n d"]
    ) -> Float[Tensor, "B n width"]:
        beside = position.unsqueeze(1).expand(-1, self.queries.heads, -1, -1)
        q, k, v = (
            torch.cat([beside, project(x)], dim=-1)
            for project in (self.queries, self.keys, self.values)
        )
        mixed = q @ (k.transpose(-1, -2) @ v / x.shape[1])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a feed-forward network twice as wide, each beside a shortcut."""

    def __init__(self, width: int, heads: int, coordinates: int, kind: str, dropout: float):
        super().__init__()
        self.attention = LinearAttention(width, heads, coordinates, kind)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B n width"], position: Float[Tensor, "B n d"]
    ) -> Float[Tensor, "B n width"]:
        x = x + self.dropout(self.attention(x, position))
        return x + self.dropout(self.feed_forward(x))


class SpectralRegressor(nn.Module):
    """Half as many channels, two spectral convolutions of them, then an MLP at every point.

    Source: Cao, arXiv:2105.14995, with GELU for its SiLU.
    """

    def __init__(self, inputs: int, width: int, outputs: int, modes: Sequence[int]):
        super().__init__()
        self.narrow = Pointwise(inputs, width // 2)
        self.convs = nn.ModuleList(
            SpectralConv(width // 2, width // 2, modes, skip=True) for _ in range(2)
        )
        self.mlp = ChannelMLP(width // 2, 2 * width, outputs)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        x = self.narrow(x)
        for conv in self.convs:
            x = conv(x, "gelu")
        return self.mlp(x)


class GalerkinTransformer(nn.Module):
    """Points with their coordinates through blocks of attention, then a regressor.

    Any number of points, of any resolution: sums over points are means. But for a spectral
    regressor, points are a set.

    Args:
        in_channels, out_channels: of the fields.
        axes: number of spatial axes.
        width: channels of a point.
        layers: number of blocks.
        heads: that divide the width.
        attention: `galerkin` or `fourier`, see LinearAttention.
        modes: of the spectral regressor, one number an axis, see SpectralConv; None for a
            regressor that is an MLP at every point.
        coordinates: `periodic`, `closed` (both ends are points) or None, see Coordinates.
        dropout: probability, in blocks.

    Raises:
        ValueError: if the width is no multiple of heads, the attention of no known kind, or modes
            are not one an axis; in `forward`, for an axis of fewer than 2m points.

    Source: Cao, arXiv:2105.14995, here without its convolutions before and after the blocks, which
    are for one resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        axes: int,
        *,
        width: int = 64,
        layers: int = 4,
        heads: int = 1,
        attention: str = "galerkin",
        modes: Sequence[int] | None = None,
        coordinates: str | None = "periodic",
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % heads or attention not in NORMED:
            raise ValueError(
                "Expected a width that is a multiple of heads and attention 'galerkin' or "
                f"'fourier', got width={width}, heads={heads}, attention={attention!r}."
            )
        if modes is not None and len(modes) != axes:
            raise ValueError(f"Expected modes of {axes} axes or None, got {list(modes)}.")
        self.coordinates = Coordinates(coordinates)
        beside = self.coordinates.channels(axes)
        self.lift = nn.Linear(in_channels + beside, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, beside, attention, dropout) for _ in range(layers)
        )
        self.regressor: nn.Module = (
            ChannelMLP(width + beside, 2 * width, out_channels)
            if modes is None
            else SpectralRegressor(width + beside, width, out_channels, modes)
        )

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        values, position = (
            field.flatten(2).transpose(1, 2) for field in (x, self.coordinates.of(x))
        )
        features = torch.cat([self.encode(values, position), position], dim=-1)
        return self.regressor(features.transpose(1, 2).unflatten(2, x.shape[2:]))

    def encode(
        self, values: Float[Tensor, "B n C"], position: Float[Tensor, "B n d"]
    ) -> Float[Tensor, "B n width"]:
        """Of points wherever they are, in any order."""
        x = self.lift(torch.cat([values, position], dim=-1))
        for block in self.blocks:
            x = block(x, position)
        return x
