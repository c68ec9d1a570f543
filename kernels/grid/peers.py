"""Other ways to a grid's DAG, to be measured against; they take `grid_resolvent`'s tensors."""

import torch
from torch import Tensor

from kernels.grid.reference import grid_edges
from kernels.resolvent import resolvent


def doubling(left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor, terms: int) -> Tensor:
    """The paper's truncated series on the grid's edges."""
    edges, weight = grid_edges(left, top)
    nodes = (x.flatten(0, 2) for x in (B, C, V))
    ptr = torch.arange(len(V) + 1, device=V.device) * V[0, ..., 0, 0].numel()
    y = resolvent(edges, weight, *nodes, ptr=ptr, mode="neumann", terms=terms)
    return y.view_as(V)
