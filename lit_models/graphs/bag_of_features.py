"""Bag of features: what a graph's real-valued node features say without its edges."""

import torch
from torch import Tensor, nn
from torch_geometric.nn import global_mean_pool

from lit_models.graphs.batch import Batch
from lit_models.graphs.heads import ResidualMLP


class BagOfFeatures(nn.Module):
    """Mean of node features and logarithm of their number, then an MLP: [N, features] → [G, out].

    The baseline that a graph model must beat where x is real, as BagOfAtoms where it is of
    categories: it never sees an edge. From mean and number it can tell the sum.

    Args:
        node_size: columns of x.
        num_outputs: columns of the prediction.
        width: hidden size.
        dropout: probability, in the MLP.
    """

    def __init__(self, node_size: int, num_outputs: int, *, width: int = 64, dropout: float = 0.0):
        super().__init__()
        self.enter = nn.Linear(node_size + 1, width)
        self.mlp = ResidualMLP(width, num_outputs, dropout)

    def forward(self, batch: Batch) -> Tensor:
        x = batch.x.to(self.enter.weight.dtype)
        mean = global_mean_pool(x, batch.batch, batch.num_graphs)
        number = batch.ptr.diff().clamp(min=1).to(mean.dtype).log().unsqueeze(1)
        return self.mlp(self.enter(torch.cat([mean, number], dim=1)))
