"""From a graph's raw node and edge features to hidden vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch


class CategoricalEncoder(nn.Module):
    """Sum of one learnt embedding per categorical feature, for nodes and for edges.

    Args:
        width: hidden size.
        node_sizes: number of values of each node feature.
        edge_sizes: number of values of each edge feature.

    Source: Hu et al., "Open Graph Benchmark", arXiv:2005.00687 (atom and bond encoders).
    """

    def __init__(self, width: int, node_sizes: Sequence[int], edge_sizes: Sequence[int]):
        super().__init__()
        self.nodes = EmbeddingSum(node_sizes, width)
        self.edges = EmbeddingSum(edge_sizes, width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Node features [N, len(node_sizes)] and edge features to [N, width] and [E, width]."""
        return self.nodes(batch.x), self.edges(batch.edge_attr)


class EmbeddingSum(nn.Module):
    """[rows, features] of integers to [rows, width]: all features share one table with offsets."""

    def __init__(self, sizes: Sequence[int], width: int):
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        nn.init.xavier_uniform_(self.table.weight)
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.table(features + self.starts).sum(dim=1)


class LinearEncoder(nn.Module):
    """Affine maps of real-valued node and edge features, as for superpixel graphs."""

    def __init__(self, width: int, node_size: int, edge_size: int):
        super().__init__()
        self.nodes = nn.Linear(node_size, width)
        self.edges = nn.Linear(edge_size, width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Node features [N, node_size], edge features [E, edge_size] to [N, width], [E, width]."""
        return self.nodes(batch.x), self.edges(batch.edge_attr)
