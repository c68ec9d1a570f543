"""Other ways to the resolvent, to be measured against; each takes the tensors of `resolvent`.

Shapes: G graphs, n nodes of the largest, N nodes, E edges, H heads, S state, P head dimension.
"""

import torch
from torch import Tensor

from kernels.resolvent.neumann import neumann_form
from kernels.resolvent.ragged import Ragged

DOUBLING_TERMS = 64


def padded_inverse_float64(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """The released way: the inverse of every padded matrix, dense, in float64.

    One matrix at a time on a CPU, where torch's batched LAPACK calls hang or corrupt above 128 rows
    once the number of threads has been set.
    """
    batch = Ragged(ptr, V.shape[0])
    A_GHnn = _adjacency(batch, edge_index, edge_weight.double())
    M_KnN = (torch.eye(batch.longest, dtype=A_GHnn.dtype, device=V.device) - A_GHnn).flatten(0, 1)
    if V.device.type == "cpu":
        L_Knn = torch.stack([torch.linalg.inv(M) for M in M_KnN])
    else:
        L_Knn = torch.linalg.inv(M_KnN)
    kernel_Gnn = batch.padded(C).double() @ batch.padded(B).double().mT
    masked_GHnn = L_Knn.view_as(A_GHnn) * kernel_Gnn[:, None]
    V_GHnP = batch.padded(V.flatten(1)).unflatten(2, V.shape[1:]).transpose(1, 2).double()
    Y_GnHP = (masked_GHnn @ V_GHnP).transpose(1, 2)
    return batch.unpadded(Y_GnHP.flatten(2)).view_as(V).to(V.dtype)


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
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """The paper's relaxation with 64 terms, which is not exact on graphs with cycles."""
    batch = Ragged(ptr, V.shape[0])
    return neumann_form(edge_index, edge_weight, B, C, V, batch=batch, terms=DOUBLING_TERMS)


def _adjacency(batch: Ragged, edge_index: Tensor, weight_EH: Tensor) -> Tensor:
    """A [G, H, n, n] with A[target, source] = weight."""
    n, heads = batch.longest, weight_EH.shape[1]
    source, target = edge_index
    block = batch.graph[target][:, None] * heads + torch.arange(heads, device=weight_EH.device)
    entry = (block * n + batch.place[target][:, None]) * n + batch.place[source][:, None]
    graphs = len(batch.ptr) - 1
    flat = weight_EH.new_zeros(graphs * heads * n * n)
    return flat.index_add(0, entry.flatten(), weight_EH.flatten()).view(graphs, heads, n, n)
