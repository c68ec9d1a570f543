"""Gated GCN: message passing alone, one gate per edge and channel.

Bresson and Laurent, "Residual Gated Graph ConvNets", arXiv:1711.07553.
Shapes: N nodes, E edges.
"""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch
from torch_geometric.nn import BatchNorm, ResGatedGraphConv

from lit_models.layers.heads import make_head
from lit_models.module import LitModule, Optimisation
from lit_models.tasks import Task


class GatedGCNBlock(nn.Module):
    """x ← x + dropout(GELU(BN(conv(x, e)))), [N, width] → [N, width].

    conv is torch-geometric's: W₁ x_i + Σ_j σ(W₃ [x_i, e_ij] + W₄ [x_j, e_ij]) ⊙ W₂ [x_j, e_ij].
    It sums over the edges, without normalised gates, and leaves the edges as they are.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        # no bias: the batch norm that follows would subtract it
        self.conv = ResGatedGraphConv(width, width, edge_dim=width, bias=False)
        self.norm = BatchNorm(width, allow_single_element=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "N width"],
        edge_attr: Float[Tensor, "E width"],
        edge_index: Int[Tensor, "2 E"],
    ) -> Float[Tensor, "N width"]:
        return x + self.dropout(F.gelu(self.norm(self.conv(x, edge_index, edge_attr))))


class GatedGCNNet(nn.Module):
    """Encoder, blocks, head: a batch of graphs to the task's outputs."""

    def __init__(
        self, encoder: nn.Module, head: nn.Module, width: int, layers: int, dropout: float
    ):
        super().__init__()
        self.encoder = encoder
        self.blocks = nn.ModuleList(GatedGCNBlock(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        x, edge_attr = self.encoder(batch)
        for block in self.blocks:
            x = block(x, edge_attr, batch.edge_index)
        return self.head(self.norm(x), batch)


class LitGatedGCN(LitModule):
    """Gated GCN without positional or structural encodings: a node hears `layers` hops far.

    Args:
        task: what is predicted, its loss and its metric.
        encoder: callable of `width` that makes the feature encoder.
        optimisation: optimiser and schedule.
        width: hidden size.
        layers: number of blocks.
        dropout: probability, in blocks.
        head_dropout: probability, in the head.
        compile: torch.compile the network.
    """

    def __init__(
        self,
        task: Task,
        encoder: Callable[[int], nn.Module],
        optimisation: Optimisation,
        *,
        width: int = 81,
        layers: int = 10,
        dropout: float = 0.1,
        head_dropout: float = 0.0,
        compile: bool = False,
    ):
        super().__init__(task, optimisation, compile=compile)
        self.net = GatedGCNNet(
            encoder(width),
            make_head(task.level, width, task.num_outputs, head_dropout),
            width,
            layers,
            dropout,
        )
