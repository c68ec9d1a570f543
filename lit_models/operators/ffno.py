"""Factorised Fourier neural operator, in one to three dimensions.

Tran et al., "Factorized Fourier Neural Operators", arXiv:2111.13802.
Shapes: B samples, C channels, then the points of every axis.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.operators.coordinates import Coordinates
from lit_models.operators.pointwise import ChannelMLP, Pointwise
from lit_models.operators.spectral import FactorisedSpectralConv


class FFNOBlock(nn.Module):
    """x + GELU(MLP(K x)), with K a spectral convolution that is a sum over axes (eq. 5, 7).

    Args:
        conv: K, which blocks may share.
        width: channels.
        expansion: hidden channels of the MLP over width.
    """

    def __init__(self, conv: FactorisedSpectralConv, width: int, expansion: float):
        super().__init__()
        self.conv = conv
        self.mlp = ChannelMLP(width, int(expansion * width), width)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B C *points"]:
        return x + F.gelu(self.mlp(self.conv(x)))


class FFNO(nn.Module):
    """Lifting, factorised Fourier layers, projection: the same map at every resolution.

    The residual comes after the nonlinearity, so that networks may be deep; GELU stands where the
    paper has ReLU.

    Args:
        in_channels, out_channels: of the fields.
        modes: m of every axis, see FactorisedSpectralConv; there is one axis a number. An axis
            needs 2m points.
        width: channels of the Fourier layers.
        layers: how many there are.
        expansion: hidden channels of a layer's MLP over width.
        shared: all layers have the same spectral weights.
        coordinates: `periodic`, `closed` (both ends are points) or None, see Coordinates; where
            there are some they are further inputs.
        projection: hidden channels of the last MLP over width.

    Raises:
        ValueError: sizes are not positive; in `forward`, the input has other channels or axes, or
            too few points for the modes.

    Source: Tran et al., arXiv:2111.13802.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        *,
        width: int = 64,
        layers: int = 4,
        expansion: float = 4.0,
        shared: bool = False,
        coordinates: str | None = "periodic",
        projection: float = 2.0,
    ):
        super().__init__()
        if min(in_channels, out_channels, width, layers, *modes) < 1:
            raise ValueError(
                "Expected positive channels, modes, width and layers, got "
                f"{in_channels}, {out_channels}, {list(modes)}, {width} and {layers}."
            )
        self.coordinates = Coordinates(coordinates)
        given = in_channels + self.coordinates.channels(len(modes))
        self.lifting = Pointwise(given, width)
        convs = [FactorisedSpectralConv(width, modes) for _ in range(1 if shared else layers)]
        self.blocks = nn.ModuleList(
            FFNOBlock(convs[layer % len(convs)], width, expansion) for layer in range(layers)
        )
        self.projection = ChannelMLP(width, int(projection * width), out_channels)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        x = self.lifting(self.coordinates(x))
        for block in self.blocks:
            x = block(x)
        return self.projection(x)
