"""The masked resolvent product Y = ((I − A)⁻¹ ⊙ C Bᵀ) V on a ragged batch of graphs."""

import functools
import logging
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.resolvent.reference import resolvent_matrix, resolvent_reference
from kernels.resolvent.torch_backend import resolvent_torch

__all__ = ["check_terms", "resolvent", "resolvent_matrix", "resolvent_reference"]

log = logging.getLogger(__name__)

Mode = Literal["exact", "neumann"]
Backend = Literal["auto", "torch", "reference"]


def resolvent(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    ptr: Int[Tensor, " G1"] | None = None,
    mode: Mode = "exact",
    terms: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "N H P"]:
    """Mix node values along all walks of a graph: y_i = Σ_j L_ij ⟨C_i, B_j⟩ v_j, L = (I − A)⁻¹.

    An edge (i, j) of `edge_index`, source first as in torch-geometric, lets i influence j: its
    weight stands at A[j, i], and the weights of repeated edges add up. Per head h,
    L_h = Σ_k A_hᵏ; B and C are shared by the heads. Inputs below float32 are computed in float32
    and the result is returned in V's dtype. Gradients flow to edge_weight, B, C and V.

    Args:
        edge_index: [2, E] source and target node of each edge, self-loops allowed.
        edge_weight: [E, H] weight per edge and head, dimensionless.
        B: [N, S] input projection of every node.
        C: [N, S] output projection of every node.
        V: [N, H, P] values per head.
        ptr: [G + 1] first node of each graph of a batch as torch-geometric lays it out, and N;
            None for one graph. No edge may join two graphs.
        mode: `exact` solves the system; `neumann` sums the first `terms` powers A⁰ … A^(terms−1)
            by doubling, the relaxation of the paper (accurate only if A^terms is small).
        terms: number of summed powers, a power of two; only with `neumann`. The paper takes the
            graph's diameter.
        backend: `torch` (dense per graph, any device), `reference` (float64 textbook loop), or
            `auto`, which is `torch`; the choice is logged once.

    Returns:
        [N, H, P] mixed values.

    Raises:
        ValueError: shapes, `ptr` or `terms` do not fit, or I − A of a graph is singular.

    Source: Lahoti et al., "Chimera: State Space Models Beyond Sequences", arXiv:2510.12111.
    """
    ptr = _batch_boundaries(ptr, V)
    _check(edge_index, edge_weight, B, C, V, ptr)
    check_terms(mode, terms)
    chosen = "torch" if backend == "auto" else backend
    _log_choice(chosen, mode, V.device.type)
    implementation = {"torch": resolvent_torch, "reference": resolvent_reference}[chosen]
    dtype = torch.promote_types(V.dtype, torch.float32)
    with torch.autocast(V.device.type, enabled=False):
        y = implementation(
            edge_index, *(t.to(dtype) for t in (edge_weight, B, C, V)), ptr=ptr, terms=terms
        )
    return y.to(V.dtype)


@functools.cache
def _log_choice(backend: str, mode: str, device: str) -> None:
    log.info("resolvent: backend %s, mode %s on %s", backend, mode, device)


def _batch_boundaries(ptr: Tensor | None, V: Tensor) -> Tensor:
    return torch.tensor([0, V.shape[0]], device=V.device) if ptr is None else ptr


def _check(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> None:
    """Compare what no shape annotation can see at run time, without reading device memory."""
    nodes, heads = V.shape[:2]
    if edge_weight.shape != (edge_index.shape[1], heads):
        raise ValueError(
            f"edge_weight must be [edges, heads] = [{edge_index.shape[1]}, {heads}], "
            f"got {list(edge_weight.shape)}: give one weight per edge and head of V."
        )
    if B.shape != C.shape or B.shape[0] != nodes:
        raise ValueError(
            f"B and C must both be [nodes, state] with {nodes} nodes as in V, "
            f"got {list(B.shape)} and {list(C.shape)}."
        )
    if ptr.device.type == "cpu" and (ptr[0] != 0 or ptr[-1] != nodes or (ptr.diff() < 0).any()):
        raise ValueError(
            f"ptr must rise from 0 to the {nodes} nodes of V, got {ptr.tolist()}: "
            "pass the batch's own ptr."
        )
    if edge_index.device.type == "cpu" and edge_index.numel():
        if edge_index.min() < 0 or edge_index.max() >= nodes:
            raise ValueError(
                f"edge_index must name nodes 0 … {nodes - 1}, "
                f"got {int(edge_index.min())} … {int(edge_index.max())}."
            )
        graph = torch.bucketize(edge_index, ptr[1:], right=True)
        if (graph[0] != graph[1]).any():
            raise ValueError(
                "An edge joins two graphs of the batch: ptr and edge_index do not belong together."
            )


def check_terms(mode: Mode, terms: int | None) -> None:
    """Raise ValueError where `mode` and `terms` of `resolvent` do not fit each other."""
    if mode not in ("exact", "neumann"):
        raise ValueError(f"mode must be 'exact' or 'neumann', got {mode!r}.")
    if mode == "exact" and terms is not None:
        raise ValueError("terms belongs to mode='neumann': leave it out, or ask for that mode.")
    if mode == "neumann" and (terms is None or terms < 1 or terms & (terms - 1)):
        raise ValueError(
            f"mode='neumann' needs terms, a power of two, got {terms}: "
            "take the next one above the graph's diameter."
        )
