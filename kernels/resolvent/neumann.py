"""The paper's truncated resolvent, dense on stacks of padded graphs.

Shapes: G graphs of n nodes in a stack, R slots of all stacks, N nodes, E edges, H heads, S state,
P head dimension.
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
    """Mix by A⁰ + … + A^(terms−1) instead of the resolvent; memory grows as H · Σ n²."""
    A_H = batch.adjacency(edge_index, edge_weight)
    B_RS, C_RS, V_RHP = batch.padded(B), batch.padded(C), batch.padded(V)
    Y_RHP = []
    for stack in batch.stacks:
        A_HGnn = A_H[:, stack.numbers].unflatten(1, (stack.graphs, stack.nodes, stack.nodes))
        kernel_Gnn = stack.of(C_RS) @ stack.of(B_RS).mT
        V_HGnP = stack.of(V_RHP).movedim(2, 0)
        Y_HGnP = (_sum_of_powers(A_HGnn, terms) * kernel_Gnn) @ V_HGnP
        Y_RHP.append(Y_HGnP.movedim(0, 2).flatten(0, 1))
    return batch.unpadded(torch.cat([V_RHP[:0], *Y_RHP]))


def _sum_of_powers(A: Tensor, terms: int) -> Tensor:
    """A⁰ + … + A^(terms−1) = (I + A)(I + A²)(I + A⁴)…, log₂(terms) products of pairs."""
    total = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
    power = A
    for doubling in range(terms.bit_length() - 1):
        if doubling:
            power = power @ power
        total = total + total @ power
    return total
