"""A network of the channels, the same at every point of a grid."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelMLP(nn.Module):
    """Linear, GELU, linear at every point: [B, inputs, *points] to [B, outputs, *points]."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.first = nn.Conv1d(inputs, hidden, 1)
        self.second = nn.Conv1d(hidden, outputs, 1)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        y = self.second(F.gelu(self.first(x.flatten(2))))
        return y.unflatten(2, x.shape[2:])
