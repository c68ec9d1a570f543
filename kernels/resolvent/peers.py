"""Other ways to the resolvent, to be measured against; each takes the tensors of `resolvent`.

Shapes: G graphs, n nodes of the largest, N nodes, E edges, H heads, S state, P head dimension.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.resolvent.neumann import neumann_form
from kernels.resolvent.ragged import Ragged

DOUBLING_TERMS = 64


def padded_inverse_float64(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """The released way: the inverse of every padded matrix, dense, in float64."""
    dtype = V.dtype
    edge_weight, B, C, V = (x.double() for x in (edge_weight, B, C, V))
    return _padded(torch.linalg.inv, edge_index, edge_weight, B, C, V, ptr).to(dtype)


def linalg_solve(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """torch.linalg.solve for the resolvent of every padded matrix, in the inputs' own dtype."""

    def solve(M: Tensor) -> Tensor:
        return torch.linalg.solve(M, torch.eye(M.shape[-1], dtype=M.dtype, device=M.device))

    return _padded(solve, edge_index, edge_weight, B, C, V, ptr)


def _padded(
    invert: Callable[[Tensor], Tensor],
    edge_index: Tensor,
    edge_weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    ptr: Tensor,
) -> Tensor:
    """Dense, all graphs padded to the largest.

    One matrix at a time on a CPU, where torch's batched LAPACK calls hang or corrupt above 128 rows
    once the number of threads has been set.
    """
    batch = Ragged(ptr, V.shape[0], stacked=False)
    (stack,) = batch.stacks
    A_GHnn = _adjacency(batch, edge_index, edge_weight)
    M_KnN = (torch.eye(stack.nodes, dtype=V.dtype, device=V.device) - A_GHnn).flatten(0, 1)
    on_cpu = V.device.type == "cpu"
    L_Knn = torch.stack([invert(M) for M in M_KnN]) if on_cpu else invert(M_KnN)
    C_GnS, B_GnS, V_GnHP = (stack.of(batch.padded(x)) for x in (C, B, V))
    masked_GHnn = L_Knn.view_as(A_GHnn) * (C_GnS @ B_GnS.mT)[:, None]
    Y_GnHP = (masked_GHnn @ V_GnHP.transpose(1, 2)).transpose(1, 2)
    return batch.unpadded(Y_GnHP.flatten(0, 1))


def inverse_each(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """The inverse of every graph by itself, dense, without padding, in the inputs' own dtype."""
    edges = torch.bincount(torch.bucketize(edge_index[0], ptr[1:], right=True), minlength=len(ptr))
    parts = []
    sizes = ptr.diff().tolist()
    first = 0
    for number, (start, size) in enumerate(zip(ptr[:-1].tolist(), sizes, strict=True)):
        # The edges of a batch stand graph by graph, as torch-geometric lays them out.
        last = first + int(edges[number])
        graph = Ragged(ptr.new_tensor([0, size]), size)
        A_Hnn = _adjacency(graph, edge_index[:, first:last] - start, edge_weight[first:last])[0]
        eye = torch.eye(size, dtype=V.dtype, device=V.device)
        L_Hnn = torch.stack([torch.linalg.inv(eye - A) for A in A_Hnn])
        nodes = slice(start, start + size)
        masked_Hnn = L_Hnn * (C[nodes] @ B[nodes].T)
        parts.append((masked_Hnn @ V[nodes].transpose(0, 1)).transpose(0, 1))
        first = last
    return torch.cat(parts)


def doubling(
    edge_index: Tensor,
    edge_weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    ptr: Tensor,
    terms: int = DOUBLING_TERMS,
) -> Tensor:
    """The paper's relaxation, all of it in the inputs' dtype; not exact on graphs with cycles."""
    batch = Ragged(ptr, V.shape[0])
    return neumann_form(edge_index, edge_weight, B, C, V, batch=batch, terms=terms)


def _adjacency(batch: Ragged, edge_index: Tensor, weight_EH: Tensor) -> Tensor:
    """A [G, H, n, n] of a batch in one stack, with A[target, source] = weight."""
    (stack,) = batch.stacks
    A_H = batch.adjacency(edge_index, weight_EH)
    return A_H.unflatten(1, (stack.graphs, stack.nodes, stack.nodes)).transpose(0, 1)
