"""Message passing alone: GCN, GINE or Gated GCN in one shell, the rivals without long range.

Shapes: N nodes, E edges.
"""

from collections.abc import Callable

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import BatchNorm, GCNConv, GINEConv, ResGatedGraphConv

from lit_models.graphs.batch import Batch

# No convolution ends in a bias: the batch norm that follows would subtract it.


class GCN(GCNConv):
    """Σ_j W x_j / √(deg_i deg_j) over the neighbours and the node itself, blind to edge features.

    Source: Kipf and Welling, arXiv:1609.02907; torch-geometric's layer.
    """

    def __init__(self, width: int):
        super().__init__(width, width, bias=False)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] called by the block below alone
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor
    ) -> Tensor:
        return super().forward(x, edge_index)


def gine(width: int) -> GINEConv:
    """MLP(x_i + Σ_j ReLU(x_j + e_ij)) with a two-layer MLP.

    Source: Hu et al., arXiv:1905.12265; torch-geometric's layer.
    """
    mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False))
    return GINEConv(mlp)


def gated_gcn(width: int) -> ResGatedGraphConv:
    """W₁ x_i + Σ_j σ(W₃ [x_i, e_ij] + W₄ [x_j, e_ij]) ⊙ W₂ [x_j, e_ij], a gate per channel.

    It sums over the edges, without normalised gates, and leaves the edges as they are.

    Source: Bresson and Laurent, arXiv:1711.07553; torch-geometric's layer.
    """
    return ResGatedGraphConv(width, width, edge_dim=width, bias=False)


class MessagePassingBlock(nn.Module):
    """x ← x + dropout(GELU(BN(conv(x, e)))), [N, width] → [N, width]."""

    def __init__(self, width: int, dropout: float, conv: nn.Module):
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm(width, allow_single_element=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "N width"],
        edge_attr: Shaped[Tensor, "E features"],
        edge_index: Int[Tensor, "2 E"],
    ) -> Float[Tensor, "N width"]:
        return x + self.dropout(F.gelu(self.norm(self.conv(x, edge_index, edge_attr))))


class MessagePassing(nn.Module):
    """Encoder, blocks, norm, head: a batch of graphs to the task's outputs.

    Nodes hear `layers` hops far. There are no positional or structural encodings.

    Args:
        encoder: makes the feature encoder of a width.
        head: makes the readout of a width, see `lit_models.graphs.heads`.
        conv: makes a convolution of a width: `GCN`, `gine` or `gated_gcn`.
        width: hidden size.
        layers: number of blocks.
        dropout: probability, in blocks.
    """

    def __init__(
        self,
        encoder: Callable[[int], nn.Module],
        head: Callable[[int], nn.Module],
        conv: Callable[[int], nn.Module],
        *,
        width: int = 81,
        layers: int = 10,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.encoder, readout = encoder(width), head(width)
        self.blocks = nn.ModuleList(
            MessagePassingBlock(width, dropout, conv(width)) for _ in range(layers)
        )
        if isinstance(self.blocks[0].conv, GCN):
            self.encoder.edges = nn.Identity()  # what GCN never sees would be dead parameters
        self.norm = nn.LayerNorm(width)
        self.head = readout

    def forward(self, batch: Batch) -> Tensor:
        x, edge_attr = self.encoder(batch)
        for block in self.blocks:
            x = block(x, edge_attr, batch.edge_index)
        return self.head(self.norm(x), batch)
