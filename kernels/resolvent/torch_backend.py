"""Dense resolvent on a padded batch of graphs: vectorised, differentiable, any device.

Shapes: G graphs, n nodes of the largest graph, N nodes in all, H heads, S state, P head dimension.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.resolvent.reference import SINGULAR


def resolvent_torch(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    ptr: Int[Tensor, " G1"],
    terms: int | None,
) -> Float[Tensor, "N H P"]:
    """Same arguments and result as `kernels.resolvent`; memory grows as G · H · n²."""
    sizes = ptr.diff()
    graphs, n = sizes.numel(), int(sizes.max()) if sizes.numel() else 0
    heads = V.shape[1]
    graph = torch.repeat_interleave(torch.arange(graphs, device=ptr.device), sizes)
    place = torch.arange(V.shape[0], device=ptr.device) - ptr[graph]
    slot = graph * n + place

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(graphs * n, *x.shape[1:]).index_copy(0, slot, x)
        return rows.unflatten(0, (graphs, n))

    source, target = edge_index
    # Rows of the stacked matrices [G · H · n, n] that belong to an edge's two ends, per head.
    block = (graph[target][:, None] * heads + torch.arange(heads, device=ptr.device)) * n
    target_row, source_row = block + place[target][:, None], block + place[source][:, None]
    entry = target_row * n + place[source][:, None]
    shape = (graphs, heads, n, n)
    if terms is None:
        L_GHnn = _Inverse.apply(edge_weight, entry, target_row, source_row, shape, sizes)
    else:
        L_GHnn = _neumann(_adjacency(edge_weight, entry, shape), terms)
    kernel_G1nn = (padded(C) @ padded(B).mT).unsqueeze(1)
    Y_GHnP = (L_GHnn * kernel_G1nn) @ padded(V).transpose(1, 2)
    return Y_GHnP.transpose(1, 2).flatten(0, 1).index_select(0, slot)


def _adjacency(weight_EH: Tensor, entry_EH: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A [G, H, n, n] with A[target, source] = weight, repeated edges added up."""
    flat = weight_EH.new_zeros(math.prod(shape))
    return flat.index_add(0, entry_EH.flatten(), weight_EH.flatten()).view(shape)


class _Inverse(torch.autograd.Function):
    """L = (I − A)⁻¹ [G, H, n, n] from edge weights, the identity on padding.

    dA = Lᵀ dL Lᵀ is wanted on the edges alone: one full product, then one row product an edge.
    """

    @staticmethod
    def forward(ctx, weight_EH, entry, target_row, source_row, shape, sizes) -> Tensor:
        A = _adjacency(weight_EH, entry, shape)
        M = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - A
        L = _invert_each(M, sizes) if A.device.type == "cpu" else _invert(M)
        ctx.save_for_backward(L, target_row, source_row)
        return L

    @staticmethod
    def backward(ctx, dL: Tensor) -> tuple[Tensor | None, ...]:
        L, target_row, source_row = ctx.saved_tensors
        T = (L.mT @ dL).flatten(0, 2).index_select(0, target_row.flatten())
        d_weight = (T * L.flatten(0, 2).index_select(0, source_row.flatten())).sum(dim=-1)
        return d_weight.view_as(target_row), None, None, None, None, None


def _invert(M: Tensor) -> Tensor:
    try:
        return torch.linalg.inv(M)
    except torch.linalg.LinAlgError as error:
        raise ValueError(SINGULAR.format(graph="?", head="?")) from error


def _invert_each(M_GHnn: Tensor, sizes: Tensor) -> Tensor:
    """One matrix at a time: batched LAPACK calls of torch hang or corrupt on some CPU builds

    above 128 rows once the number of threads has been set, as Lightning's launchers do.
    """
    L = torch.eye(M_GHnn.shape[-1], dtype=M_GHnn.dtype).expand_as(M_GHnn).clone()
    for graph, size in enumerate(sizes.tolist()):
        for head in range(M_GHnn.shape[1]):
            try:
                L[graph, head, :size, :size] = torch.linalg.inv(M_GHnn[graph, head, :size, :size])
            except torch.linalg.LinAlgError as error:
                raise ValueError(SINGULAR.format(graph=graph, head=head)) from error
    return L


def _neumann(A: Tensor, terms: int) -> Tensor:
    """A⁰ + … + A^(terms−1) = (I + A)(I + A²)(I + A⁴)…, log₂(terms) products of pairs."""
    total = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
    power = A
    for doubling in range(terms.bit_length() - 1):
        if doubling:
            power = power @ power
        total = total + total @ power
    return total
