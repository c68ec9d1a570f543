"""A bag of patches: what every patch learns of its image is a mean, in which places are lost.

The lower bound of mixers that know no place. It is the invariant network of Zaheer et al., "Deep
Sets", arXiv:1703.06114, in ViT's shell. Shapes as in `lit_models.images.encoder`.
"""

from jaxtyping import Float
from torch import Tensor, nn

from lit_models.images.encoder import ImageEncoder, feed_forward


class MeanOfPatches(nn.Module):
    """To every patch the same linear map of the mean of its image's patches."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B R K D"]) -> Float[Tensor, "B R K D"]:
        return self.linear(x.mean(dim=(1, 2), keepdim=True)).expand_as(x)


class BagOfPatches(ImageEncoder):
    """ViT without positions, with `MeanOfPatches` for attention.

    Args:
        width: D.
        layers: each a mean and a feed-forward network.
        hidden: of the feed-forward network.
        patch, drop_path: see `ImageEncoder`.
    """

    def __init__(
        self,
        *,
        width: int = 768,
        layers: int = 12,
        hidden: int = 4224,
        patch: int = 16,
        drop_path: float = 0.0,
    ):
        parts = [
            part
            for _ in range(layers)
            for part in (MeanOfPatches(width), feed_forward(width, hidden))
        ]
        super().__init__(parts, width=width, patch=patch, drop_path=drop_path)
