"""What all encoders of images share: from pixels to one vector a patch, on a grid of any size.

Shapes: B images, H × W pixels, R × K patches, D the width of a patch's features.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.layers.initialisation import weight_scale

NORM_EPSILON = 1e-6  # ViT's


class ImageEncoder(nn.Module):
    """Maps images to features: an embedding of patches, then parts one after the other, and a norm.

    Args:
        parts: each maps [B, R, K, D] to as much, and is added to what it was given.
        width: D.
        patch: side of a patch in pixels.
        drop_path: probability that the last part is left out for an image; that of the others
            rises to it, from 0 at the first.
        grid: rows and columns of patches at which every place has an embedding of its own, which
            is interpolated to other grids; None for no positional embedding.

    Raises:
        ValueError: called with images that do not divide into patches.

    Source: Dosovitskiy et al., arXiv:2010.11929, with the mean of all patches for a class token.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        *,
        width: int,
        patch: int,
        drop_path: float,
        grid: Sequence[int] | None = None,
    ):
        super().__init__()
        self.width, self.patch = width, patch
        self.embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = None if grid is None else nn.Parameter(torch.zeros(1, *grid, width))
        last = max(1, len(parts) - 1)
        self.blocks = nn.ModuleList(
            PreNorm(width, drop_path * number / last, part) for number, part in enumerate(parts)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=weight_scale(self.width))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=weight_scale(self.width))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R K D"]:
        return self.encode(self.patches(images))

    def patches(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R K D"]:
        """Every patch by itself, which knows neither its place nor its neighbours."""
        if images.shape[2] % self.patch or images.shape[3] % self.patch:
            raise ValueError(
                f"Expected images whose sides are multiples of {self.patch} pixels, the patch's, "
                f"got {list(images.shape[2:])}: set data.resolution or model.net.encoder.patch."
            )
        return self.embedding(images).movedim(1, -1)

    def encode(self, x: Float[Tensor, "B R K D"]) -> Float[Tensor, "B R K D"]:
        """The features of patches that lie as they are given."""
        if self.positions is not None:
            x = x + self.positions_of(*x.shape[1:3])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def positions_of(self, rows: int, columns: int) -> Float[Tensor, "1 rows columns D"]:
        """The positional embedding, bicubically interpolated where the grid is another."""
        assert self.positions is not None  # nothing calls this where there is none
        if self.positions.shape[1:3] == (rows, columns):
            return self.positions
        image = F.interpolate(
            self.positions.movedim(-1, 1),
            size=(rows, columns),
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )
        return image.movedim(1, -1)


class MixerEncoder(ImageEncoder):
    """Mixing layers alone, all of one kind, which a subclass names by `mixer`.

    Args:
        width: D.
        layers: number of mixing layers.
        patch, drop_path, grid: see `ImageEncoder`.
        mixing: of every layer, see the mixer.

    Raises:
        ValueError: as the mixer.
    """

    mixer: ClassVar[type[nn.Module]]

    def __init__(
        self,
        *,
        width: int = 768,
        layers: int = 23,
        patch: int = 16,
        drop_path: float = 0.0,
        grid: Sequence[int] | None = None,
        **mixing: Any,
    ):
        parts = [self.mixer(width, **mixing) for _ in range(layers)]
        super().__init__(parts, width=width, patch=patch, drop_path=drop_path, grid=grid)


class PreNorm(nn.Module):
    """x + f(LayerNorm(x)), f left out for each image with probability `drop_path` in training.

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382; what is kept is
    scaled so that its mean is as without.
    """

    def __init__(self, width: int, drop_path: float, inner: nn.Module):
        super().__init__()
        self.drop_path = drop_path
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.inner = inner

    def forward(self, x: Float[Tensor, "B R K D"]) -> Float[Tensor, "B R K D"]:
        y = self.inner(self.norm(x))
        if self.training and self.drop_path:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
            y = y * (kept / (1 - self.drop_path))
        return x + y


def feed_forward(width: int, hidden: int) -> nn.Module:
    """A transformer's two-layer MLP on every patch."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
