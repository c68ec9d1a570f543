"""From a graph's raw node and edge features to hidden vectors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lit_models.graphs.batch import Batch
from lit_models.module import UnfitDataError


class CategoricalEncoder(nn.Module):
    """Sum of one learnt embedding per categorical feature, for nodes and for edges.

    Args:
        width: hidden size.
        node_sizes: number of values of each node feature.
        edge_sizes: number of values of each edge feature; [] where edges have none, which then
            share one learnt vector.

    Raises:
        UnfitDataError: in `forward`, graphs have other features.

    Source: Hu et al., "Open Graph Benchmark", arXiv:2005.00687 (atom and bond encoders).
    """

    def __init__(self, width: int, node_sizes: Sequence[int], edge_sizes: Sequence[int] = ()):
        super().__init__()
        self.nodes = EmbeddingSum(node_sizes, width)
        self.edges = EmbeddingSum(edge_sizes, width) if edge_sizes else SharedVector(width)
        self.columns = len(node_sizes), len(edge_sizes)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Node features [N, len(node_sizes)] and edge features to [N, width] and [E, width]."""
        x, edge_attr = features(batch, *self.columns, "node_sizes", "edge_sizes")
        return self.nodes(x), self.edges(edge_attr)


class EmbeddingSum(nn.Module):
    """[rows, features] of integers to [rows, width]: all features share one table with offsets."""

    starts: Tensor

    def __init__(self, sizes: Sequence[int], width: int):
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        nn.init.xavier_uniform_(self.table.weight)
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.table(features + self.starts).sum(dim=1)


class LinearEncoder(nn.Module):
    """Affine maps of real-valued node and edge features, as for superpixel graphs.

    Args:
        width: hidden size.
        node_size: columns of x.
        edge_size: columns of edge_attr; 0 where edges have no features, which then share one learnt
            vector.

    Raises:
        UnfitDataError: in `forward`, graphs have other features.
    """

    def __init__(self, width: int, node_size: int, edge_size: int = 0):
        super().__init__()
        self.nodes = nn.Linear(node_size, width)
        self.edges = nn.Linear(edge_size, width) if edge_size else SharedVector(width)
        self.columns = node_size, edge_size

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Node features [N, node_size], edge features [E, edge_size] to [N, width], [E, width]."""
        x, edge_attr = features(batch, *self.columns, "node_size", "edge_size")
        dtype = self.nodes.weight.dtype  # data may be of integers or of float64
        return self.nodes(x.to(dtype)), self.edges(edge_attr.to(dtype))


class SharedVector(nn.Module):
    """One learnt vector for every edge, of graphs whose edges have no features."""

    def __init__(self, width: int):
        super().__init__()
        self.vector = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(self, edges: Shaped[Tensor, "E none"]) -> Float[Tensor, "E width"]:
        return self.vector.expand(len(edges), -1)


def features(
    batch: Batch, of_node: int, of_edge: int, node_option: str, edge_option: str
) -> tuple[Tensor, Tensor]:
    """x [N, of_node] and edge_attr [E, of_edge] of a batch, where it has them.

    Raises:
        UnfitDataError: it does not; the options are those to change.
    """
    edges = batch.edge_index.shape[1]
    edge_attr = batch.edge_attr if of_edge else batch.edge_index.new_empty(edges, 0)
    for name, got, columns, option in (
        ("x", batch.x, of_node, node_option),
        ("edge_attr", edge_attr, of_edge, edge_option),
    ):
        shape = None if got is None else list(got.shape)
        if shape is None or len(shape) != 2 or shape[1] != columns:
            raise UnfitDataError(
                f"Expected {name} of {columns} columns, as encoder.{option} says, got "
                f"{'none' if shape is None else f'shape {shape}'}: change one of them."
            )
    return batch.x, edge_attr
