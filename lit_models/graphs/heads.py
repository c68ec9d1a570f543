"""From node vectors to what a task asks for: one vector a graph, a node, or a pair of nodes.

A data configuration names the head beside its task. The graph and the node head are those that the
Chimera paper uses.
"""

from torch import Tensor, nn
from torch_geometric.nn import global_add_pool, global_max_pool, global_mean_pool

from lit_models.graphs.batch import Batch

POOLINGS = {"mean": global_mean_pool, "sum": global_add_pool, "max": global_max_pool}


class GraphHead(nn.Module):
    """The mean, sum or maximum over the nodes, then a residual MLP: [N, width] → [G, out].

    Args:
        width: channels of the nodes.
        num_outputs: of the task.
        dropout: probability, in the MLP.
        pooling: `mean`, `sum`, which knows how many nodes there are, or `max`, by channel.

    Raises:
        ValueError: another `pooling`.
    """

    def __init__(self, width: int, num_outputs: int, dropout: float = 0.0, pooling: str = "mean"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"Expected a pooling of {', '.join(POOLINGS)}, got {pooling!r}.")
        self.pool = POOLINGS[pooling]
        self.mlp = ResidualMLP(width, num_outputs, dropout)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.mlp(self.pool(x, batch.batch, batch.num_graphs))


class ResidualMLP(nn.Module):
    """Three pre-normalised residual layers and a linear one: [rows, width] → [rows, out]."""

    def __init__(self, width: int, num_outputs: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)
            )
            for _ in range(3)
        )
        self.out = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.out(x)


class NodeHead(nn.Module):
    """A two-layer MLP on every node: [N, width] → [N, out].

    For pairs the outputs are vectors whose inner product is the pair's logit.
    """

    def __init__(self, width: int, num_outputs: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, num_outputs)
        )

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.layers(x)


class LinearNodeHead(nn.Module):
    """A linear map of every node's vector, so that message passing alone is measured."""

    def __init__(self, width: int, num_outputs: int):
        super().__init__()
        self.out = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.out(x)
