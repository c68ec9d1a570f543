"""ResNet for small images: no stride and no pooling before the first stage.

Source: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, with the widths
of its ResNet-18 on 32 × 32 pixels.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.images.convolutions import initialise_rectified


class ResNet(nn.Module):
    """Maps images to features on a grid of an eighth of their sides.

    Args:
        blocks: of every stage; 2, 2, 2, 2 is ResNet-18.
        channels: of the first stage; every other stage has twice those of the one before.

    Attributes:
        width: D, number of features.
    """

    def __init__(self, blocks: Sequence[int] = (2, 2, 2, 2), channels: int = 64):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        parts: list[nn.Module] = []
        before = channels
        for stage, count in enumerate(blocks):
            after = 2**stage * channels
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                parts.append(ResidualBlock(before, after, stride))
                before = after
        self.blocks = nn.Sequential(*parts)
        self.width = before
        initialise_rectified(self)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R K D"]:
        return self.blocks(self.stem(images)).movedim(1, -1)


class ResidualBlock(nn.Module):
    """ReLU(x + f(x)), f two convolutions of 3 × 3; x is mapped by 1 × 1 where shapes differ."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        return F.relu(self.skip(x) + self.inner(x))
