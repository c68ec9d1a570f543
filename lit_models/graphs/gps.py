"""GPS: message passing along the edges and attention among all nodes of a graph, side by side.

Rampášek et al., "Recipe for a General, Powerful, Scalable Graph Transformer", arXiv:2205.12454.
Shapes: N nodes, E edges, G graphs.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch_geometric.nn import GPSConv, ResGatedGraphConv

from lit_models.graphs.batch import Batch


class GPS(nn.Module):
    """Encoder, torch-geometric's GPS layers, head: a batch of graphs to the task's outputs.

    A layer is x ← BN(y + MLP(y)), y = BN(x + local(x)) + BN(x + attention(x)), with dropout on each
    branch. Its local part is a residual gated convolution whose gates and messages see the encoded
    edges; it sums over the edges, without the normalised gates and edge updates of the paper's own.
    There are no positional or structural encodings.

    Args:
        encoder: makes the feature encoder of a width.
        head: makes the readout of a width, see `lit_models.graphs.heads`.
        width: hidden size, a multiple of `heads`.
        layers: number of GPS layers.
        heads: heads of the attention.
        dropout: probability, on the branches of a layer and in its MLP.
        attention_dropout: probability, on the attention weights.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    def __init__(
        self,
        encoder: Callable[[int], nn.Module],
        head: Callable[[int], nn.Module],
        *,
        width: int = 72,
        layers: int = 6,
        heads: int = 4,
        dropout: float = 0.1,
        attention_dropout: float = 0.5,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}.")
        self.encoder, readout = encoder(width), head(width)
        self.layers = nn.ModuleList(
            GPSConv(
                width,
                # no bias: the batch norm that follows would subtract it
                ResGatedGraphConv(width, width, edge_dim=width, bias=False),
                heads,
                dropout,
                act="gelu",
                norm="batch_norm",
                norm_kwargs={"allow_single_element": True},
                attn_kwargs={"dropout": attention_dropout},
            )
            for _ in range(layers)
        )
        self.head = readout

    def forward(self, batch: Batch) -> Tensor:
        x, edge_attr = self.encoder(batch)
        for layer in self.layers:
            x = layer(x, batch.edge_index, batch.batch, edge_attr=edge_attr)
        return self.head(x, batch)
