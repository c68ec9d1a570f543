"""Dense resolvent on a padded batch of graphs: vectorised, differentiable, any device.

Shapes: G graphs, n nodes of the largest graph, N nodes in all, H heads, S state, P head dimension.
"""

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
    """Same arguments and result as `kernels.resolvent`; memory grows as H × Σ N² of the graphs."""
    sizes = ptr.diff()
    graphs, largest = sizes.numel(), int(sizes.max()) if sizes.numel() else 0
    graph = torch.repeat_interleave(torch.arange(graphs, device=ptr.device), sizes)
    place = torch.arange(V.shape[0], device=ptr.device) - ptr[graph]

    def padded(x: Tensor) -> Tensor:
        return x.new_zeros(graphs, largest, *x.shape[1:]).index_put((graph, place), x)

    source, target = edge_index
    entry = (graph[target], place[target], place[source])
    shape = (graphs, V.shape[1], largest, largest)
    if terms is None:
        L_GHnn = _Inverse.apply(edge_weight, entry, shape, sizes)
    else:
        L_GHnn = _neumann(_adjacency(edge_weight, entry, shape), terms)
    kernel_G1nn = (padded(C) @ padded(B).mT).unsqueeze(1)
    Y_GHnP = (L_GHnn * kernel_G1nn) @ padded(V).transpose(1, 2)
    return Y_GHnP.transpose(1, 2)[graph, place]


def _adjacency(weight_EH: Tensor, entry: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
    """A [G, H, n, n] with A[target, source] = weight, repeated edges added up."""
    graph, row, column = entry
    heads = torch.arange(shape[1], device=weight_EH.device)
    where = (graph[:, None], heads, row[:, None], column[:, None])
    return weight_EH.new_zeros(shape).index_put(where, weight_EH, accumulate=True)


class _Inverse(torch.autograd.Function):
    """L = (I − A)⁻¹ [G, H, n, n] from edge weights, the identity on padding.

    dA = Lᵀ dL Lᵀ is wanted on the edges alone: one full product, then one row product an edge.
    """

    @staticmethod
    def forward(ctx, weight_EH: Tensor, entry, shape, sizes: Tensor) -> Tensor:
        A = _adjacency(weight_EH, entry, shape)
        M = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - A
        L = _invert_each(M, sizes) if A.device.type == "cpu" else _invert(M)
        ctx.save_for_backward(L, *entry)
        return L

    @staticmethod
    def backward(ctx, dL: Tensor) -> tuple[Tensor, None, None, None]:
        L, graph, row, column = ctx.saved_tensors
        T = L.mT @ dL
        _, heads, n, _ = L.shape
        block = (graph[:, None] * heads + torch.arange(heads, device=L.device)) * n

        def rows(matrices: Tensor, index: Tensor) -> Tensor:
            return matrices.reshape(-1, n).index_select(0, (block + index[:, None]).flatten())

        d_weight = (rows(T, row) * rows(L, column)).sum(dim=-1)
        return d_weight.view(-1, heads), None, None, None


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
