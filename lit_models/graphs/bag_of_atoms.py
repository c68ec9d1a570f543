"""Bag of atoms: what a graph's node features say without its edges."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_models.graphs.batch import Batch
from lit_models.graphs.heads import ResidualMLP

TYPICAL_COUNT = 50  # brings the counts of a peptide near 1, where an MLP learns well


class BagOfAtoms(nn.Module):
    """Count every category of every node feature, then an MLP: [N, features] → [G, out].

    The baseline that any graph model must beat: it never sees an edge.

    Args:
        node_sizes: number of values of each categorical node feature.
        num_outputs: columns of the prediction.
        width: hidden size.
        dropout: probability, in the MLP.
    """

    starts: Tensor

    def __init__(
        self,
        node_sizes: Sequence[int],
        num_outputs: int,
        *,
        width: int = 64,
        dropout: float = 0.0,
    ):
        super().__init__()
        starts = torch.tensor([0, *node_sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        self.categories = sum(node_sizes)
        self.enter = nn.Linear(self.categories, width)
        self.mlp = ResidualMLP(width, num_outputs, dropout)

    def forward(self, batch: Batch) -> Tensor:
        cell = batch.batch[:, None] * self.categories + self.starts + batch.x
        counts = torch.bincount(cell.flatten(), minlength=batch.num_graphs * self.categories)
        counts = counts.view(batch.num_graphs, self.categories).to(self.enter.weight.dtype)
        return self.mlp(self.enter(counts / TYPICAL_COUNT))
