"""The paper's truncated resolvent, dense on a padded batch of graphs, and how far off it is.

Shapes: G graphs, n nodes of the largest, N nodes, E edges, H heads, S state, P head dimension.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.resolvent.ragged import Ragged


def neumann_form(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    batch: Ragged,
    terms: int,
) -> Float[Tensor, "N H P"]:
    """Mix by A⁰ + … + A^(terms−1) instead of the resolvent; memory grows as G · H · n²."""
    heads = V.shape[1]
    shape = (heads, len(batch.ptr) - 1, batch.longest, batch.longest)
    target_row = batch.slot[edge_index[1]] * batch.longest + batch.place[edge_index[0]]
    entry_EH = target_row[:, None] + torch.arange(heads, device=V.device) * shape[1] * shape[2] ** 2
    A_HGnn = V.new_zeros(heads * shape[1] * shape[2] ** 2)
    A_HGnn = A_HGnn.index_add(0, entry_EH.flatten(), edge_weight.flatten()).view(shape)
    kernel_Gnn = batch.padded(C) @ batch.padded(B).mT
    V_HGnP = batch.padded(V.flatten(1)).unflatten(2, (heads, -1)).permute(2, 0, 1, 3)
    Y_HGnP = (_sum_of_powers(A_HGnn, terms) * kernel_Gnn) @ V_HGnP
    return batch.unpadded(Y_HGnP.permute(1, 2, 0, 3).flatten(2)).view_as(V)


def _sum_of_powers(A: Tensor, terms: int) -> Tensor:
    """A⁰ + … + A^(terms−1) = (I + A)(I + A²)(I + A⁴)…, log₂(terms) products of pairs."""
    total = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
    power = A
    for doubling in range(terms.bit_length() - 1):
        if doubling:
            power = power @ power
        total = total + total @ power
    return total


def neumann_error(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    num_nodes: int,
    terms: int,
) -> Float[Tensor, " H"]:
    """Bound on the relative error of `neumann` mode with so many terms, per head.

    The sum lacks A^terms L, so ‖L − L_terms‖₁ / ‖L‖₁ ≤ ‖ |A|^terms ‖₁, the largest column sum,
    which takes `terms` products of a row vector with the sparse |A|. The norm is that of the whole
    matrix, so for a batch it is that of its worst graph.

    Args:
        edge_index: [2, E] source and target of each edge.
        edge_weight: [E, H] weight A[target, source] per head.
        num_nodes: N.
        terms: number of summed powers.
    """
    source, target = edge_index
    weight = edge_weight.abs()
    sums = weight.new_ones(num_nodes, weight.shape[1])
    for _ in range(terms):
        reached = weight * sums.index_select(0, target)
        sums = torch.zeros_like(sums).index_add_(0, source, reached)
    return sums.amax(0) if num_nodes else weight.new_zeros(weight.shape[1])
