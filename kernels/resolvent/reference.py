"""The textbook: one graph and one head at a time, dense, in float64."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def resolvent_matrix(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    num_nodes: int,
    terms: int | None = None,
) -> Float[Tensor, "H N N"]:
    """L = (I − A)⁻¹ of one graph per head, in float64; L[h, i, j] is what j sends to i.

    Args:
        edge_index: [2, E] source and target of each edge.
        edge_weight: [E, H] weight A[target, source] per head; repeated edges add up.
        num_nodes: N.
        terms: sum A⁰ … A^(terms−1) instead of the whole series.

    Raises:
        ValueError: I − A is singular.
    """
    source, target = edge_index
    weight = edge_weight.double()
    matrices = []
    for head in range(weight.shape[1]):
        A = weight.new_zeros(num_nodes, num_nodes)
        A = A.index_put((target, source), weight[:, head], accumulate=True)
        identity = torch.eye(num_nodes, dtype=A.dtype, device=A.device)
        if terms is None:
            try:
                matrices.append(torch.linalg.inv(identity - A))
            except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
                raise ValueError(SINGULAR.format(graph=0, head=head)) from error
        else:
            power, total = identity, identity
            for _ in range(terms - 1):
                power = A @ power
                total = total + power
            matrices.append(total)
    return torch.stack(matrices)


SINGULAR = (
    "I − A of graph {graph}, head {head} is singular: scale the edge weights so that the absolute "
    "weights leaving every node sum to less than 1."
)


def resolvent_reference(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    ptr: Int[Tensor, " G1"],
    terms: int | None,
) -> Float[Tensor, "N H P"]:
    """Same arguments and result as `kernels.resolvent`, computed in float64."""
    outputs = []
    for first, last in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        inside = (edge_index[1] >= first) & (edge_index[1] < last)
        L = resolvent_matrix(
            edge_index[:, inside] - first, edge_weight[inside], last - first, terms
        )
        kernel = C[first:last].double() @ B[first:last].double().T
        outputs.append(torch.einsum("hij,jhp->ihp", L * kernel, V[first:last].double()))
    return torch.cat(outputs).to(V.dtype)
