"""Edge weights of an undirected resolvent, from discretisation steps.

Shapes: N nodes, E edges, H heads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NORMALISER_MARGIN = 0.05


class Deltas(NamedTuple):
    """Discretisation steps: `source`, `target`, `self` are [N, H], `edge` is [E, H]; all > 0.

    Without `self` edge weights are not normalised; without `edge` they depend on nodes alone.
    """

    source: Tensor
    target: Tensor
    self: Tensor | None = None
    edge: Tensor | None = None


def edge_weights(deltas: Deltas, edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, "E H"]:
    """Row-normalised transition Â_ij of every edge (i, j), the weight with which i feeds j.

    a_ij = exp(−(Δsource_i + Δtarget_j + Δedge_ij) / 3), without Δedge exp(−(Δsource_i +
    Δtarget_j) / 2), and
    Â_ij = a_ij / (max(1, Σ_j a_ij + exp(−Δself_i)) + 0.05), the sum over the edges that leave i,
    so that what leaves a node sums to less than 1 and I − A is diagonally dominant by columns.
    Without Δself Â_ij = a_ij, and I − A may be anything, singular too.

    Source: arXiv:2510.12111 and its released normaliser.
    """
    source, target = edge_index
    ends = deltas.source.index_select(0, source) + deltas.target.index_select(0, target)
    a = torch.exp(-ends / 2 if deltas.edge is None else -(ends + deltas.edge) / 3)
    if deltas.self is None:
        return a
    leaving = torch.exp(-deltas.self).index_add(0, source, a)
    return a / (leaving.clamp(min=1) + NORMALISER_MARGIN).index_select(0, source)
