"""A network of the channels, the same at every point of a grid."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.layers.pointwise import Pointwise


class ChannelMLP(nn.Module):
    """Linear, GELU, linear at every point: [B, inputs, *points] to [B, outputs, *points]."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.first, self.second = Pointwise(inputs, hidden), Pointwise(hidden, outputs)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        return self.second(F.gelu(self.first(x)))
