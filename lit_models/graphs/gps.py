"""GPS: message passing along the edges and attention among all nodes of a graph, side by side.

Rampášek et al., "Recipe for a General, Powerful, Scalable Graph Transformer", arXiv:2205.12454.
Shapes: N nodes, E edges, G graphs.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import GPSConv, ResGatedGraphConv

from lit_models.graphs.heads import make_head
from lit_models.module import LitModule, Optimisation
from lit_models.task import Task


class GPSNet(nn.Module):
    """Encoder, torch-geometric's GPS layers, head: a batch of graphs to the task's outputs.

    A layer is x ← BN(y + MLP(y)), y = BN(x + local(x)) + BN(x + attention(x)), with dropout on each
    branch. Its local part is a residual gated convolution whose gates and messages see the encoded
    edges; it sums over the edges, without the normalised gates and edge updates of the paper's own.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}.")
        self.encoder = encoder
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
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        x, edge_attr = self.encoder(batch)
        for layer in self.layers:
            x = layer(x, batch.edge_index, batch.batch, edge_attr=edge_attr)
        return self.head(x, batch)


class LitGPS(LitModule):
    """GPS with softmax attention, without positional or structural encodings.

    Args:
        task: what is predicted, its loss and its metric.
        encoder: callable of `width` that makes the feature encoder.
        optimisation: optimiser and schedule.
        width: hidden size, a multiple of `heads`.
        layers: number of GPS layers.
        heads: heads of the attention.
        dropout: probability, on the branches of a layer and in its MLP.
        attention_dropout: probability, on the attention weights.
        head_dropout: probability, in the head.
        compile: torch.compile the network.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    def __init__(
        self,
        task: Task,
        encoder: Callable[[int], nn.Module],
        optimisation: Optimisation,
        *,
        width: int = 72,
        layers: int = 6,
        heads: int = 4,
        dropout: float = 0.1,
        attention_dropout: float = 0.5,
        head_dropout: float = 0.0,
        compile: bool = False,
    ):
        super().__init__(task, optimisation, compile=compile)
        self.net = GPSNet(
            encoder(width),
            make_head(task.level, width, task.num_outputs, head_dropout),
            width,
            layers,
            heads,
            dropout,
            attention_dropout,
        )
