"""The vision transformer, with and without positional embedding.

Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929. Shapes as in
`lit_models.images.encoder`.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.images.encoder import ImageEncoder, feed_forward


class PatchAttention(nn.Module):
    """Every patch attends to all patches of its image.

    Args:
        width: D, a multiple of `heads`.
        heads: of the attention.

    Raises:
        ValueError: `width` is no multiple of `heads`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}.")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B R K D"]) -> Float[Tensor, "B R K D"]:
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.out(y.transpose(1, 2).flatten(2)).view_as(x)


class ViT(ImageEncoder):
    """Layers of attention and a feed-forward network; no class token.

    Args:
        width: D, a multiple of `heads`.
        layers: number of layers.
        heads: of the attention.
        hidden: of the feed-forward network.
        patch, drop_path, grid: see `ImageEncoder`.

    Raises:
        ValueError: `width` is no multiple of `heads`.
    """

    def __init__(
        self,
        *,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        patch: int = 16,
        drop_path: float = 0.0,
        grid: Sequence[int] | None = (14, 14),
    ):
        parts = [
            part
            for _ in range(layers)
            for part in (PatchAttention(width, heads), feed_forward(width, hidden))
        ]
        super().__init__(parts, width=width, patch=patch, drop_path=drop_path, grid=grid)
