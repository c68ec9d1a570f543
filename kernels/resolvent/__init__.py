"""The masked resolvent product Y = ((I − A)⁻¹ ⊙ C Bᵀ) V on a ragged batch of graphs."""

import logging
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.backends import (
    Backend,
    can_be_checked,
    choose_backend,
    log_choice,
    uncompiled,
)
from kernels.resolvent.cost import faster_form, faster_form_on_gpu
from kernels.resolvent.elimination import Elimination, eliminate
from kernels.resolvent.neumann import neumann_form
from kernels.resolvent.plan import Plan, check_edges, make_plan
from kernels.resolvent.ragged import Ragged
from kernels.resolvent.reference import resolvent_matrix, resolvent_reference
from kernels.resolvent.scheduling import scheduled
from kernels.resolvent.torch_backend import row_form, state_form
from kernels.resolvent.transform import AddElimination, AddPlan, plan_of

__all__ = [
    "AddElimination",
    "AddPlan",
    "Elimination",
    "Plan",
    "check_terms",
    "eliminate",
    "make_plan",
    "plan_of",
    "resolvent",
    "resolvent_matrix",
    "resolvent_reference",
]

log = logging.getLogger(__name__)

Mode = Literal["exact", "dag", "neumann"]
Form = Literal["auto", "row", "state"]


def resolvent(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    ptr: Int[Tensor, " G1"] | None = None,
    plan: Plan | None = None,
    mode: Mode = "exact",
    terms: int | None = None,
    form: Form = "auto",
    refine: int = 0,
    backend: Backend = "auto",
) -> Float[Tensor, "N H P"]:
    """Mix node values along all walks of a graph: y_i = Σ_j L_ij ⟨C_i, B_j⟩ v_j, L = (I − A)⁻¹.

    An edge (i, j) of `edge_index`, source first as in torch-geometric, lets i influence j: its
    weight stands at A[j, i], and the weights of repeated edges add up. Per head h,
    L_h = Σ_k A_hᵏ; B and C are shared by the heads. Inputs below float32 are computed in float32
    and the result is returned in V's dtype. Gradients flow to edge_weight, B, C and V, once: the
    exact modes refuse to be differentiated twice.

    Args:
        edge_index: [2, E] source and target node of each edge, self-loops allowed.
        edge_weight: [E, H] weight per edge and head, dimensionless.
        B: [N, S] input projection of every node.
        C: [N, S] output projection of every node.
        V: [N, H, P] values per head.
        ptr: [G + 1] first node of each graph of a batch as torch-geometric lays it out, and N;
            None for one graph. No edge may join two graphs.
        plan: of these graphs by `make_plan`, so that calls share it; None makes one. Where all
            graphs are chains, or DAGs of grids, `kernels.chain` and `kernels.grid` are faster.
        mode: `exact` solves the system by a sparse LU; `dag` does so in one sweep, for graphs
            without cycles; `neumann` sums the first `terms` powers A⁰ … A^(terms−1) by doubling,
            the relaxation of the paper (accurate only if A^terms is small).
        terms: number of summed powers, a power of two; only with `neumann`. The paper takes the
            graph's diameter.
        form: `row` computes L and multiplies, fast on graphs of some hundred nodes; `state` solves
            for the S × P states, linear in N; `auto` takes the one that `cost.py` expects to be
            faster.
        refine: steps of iterative refinement after every solve. 0 demands that every graph's I − A
            is diagonally dominant, by its columns, by its rows or after a diagonal scaling, or that
            the graph has no cycles (checked on the CPU); from 1 on any I − A is tried and the
            residual checked and logged.
        backend: `triton` (kernels for a GPU; the exact modes without refinement, no float64),
            `torch` (vectorised, any device), `reference` (float64 textbook loop), or `auto`,
            which is `triton` on a GPU wherever it can be, else `torch`; the choice is logged once.

    Returns:
        [N, H, P] mixed values.

    Raises:
        ValueError: shapes, `ptr`, `plan` or `terms` do not fit, I − A of a graph is not dominant or
            singular, or `dag` meets a cycle.

    Source: Lahoti et al., "Chimera: State Space Models Beyond Sequences", arXiv:2510.12111.
    """
    check_terms(mode, terms)
    able = mode != "neumann" and not refine
    backend = choose_backend(
        backend, (edge_weight, B, C, V), able, "the exact modes without refinement"
    )
    if backend == "triton":
        _check(edge_index, edge_weight, B, C, V)
        return _by_triton(edge_index, edge_weight, B, C, V, ptr, plan, mode, form)
    inputs = (edge_index, edge_weight, B, C, V)
    return _elsewhere(*inputs, ptr, plan, mode, terms, form, refine, backend)


def _by_triton(
    edge_index: Tensor,
    edge_weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    ptr: Tensor | None,
    plan: Plan | None,
    mode: Mode,
    form: Form,
) -> Tensor:
    """Only looks at tensors' shapes where a plan with a schedule is given, so it can be traced."""
    from kernels.resolvent import triton_backend  # where there is Triton

    if not V.numel() or not B.numel():
        return torch.zeros_like(V)
    inputs = (edge_index, edge_weight, B, C, V)
    if plan is None:
        plan = _make_plan(edge_index, V, ptr, mode)
    _check_plan(plan, edge_index, V, mode)
    if plan.schedule is None or plan.schedule.table.device != V.device:
        plan = _laid_out(plan, V.device)
    assert plan.schedule is not None  # laid out above
    if form == "auto":
        form = faster_form_on_gpu(plan, B.shape[1], *V.shape[1:])
    log_choice("resolvent", "triton", f"{mode}, {form} form", V.device.type)
    compute = triton_backend.row_form if form == "row" else triton_backend.state_form
    return compute(*inputs, schedule=plan.schedule)


@uncompiled
def _make_plan(edge_index: Tensor, V: Tensor, ptr: Tensor | None, mode: Mode) -> Plan:
    ptr = _batch_boundaries(ptr, V)
    _check_ptr(ptr, V.shape[0])
    order = "topological" if mode == "dag" else "min_degree"
    return make_plan(edge_index, V.shape[0], ptr, order=order)


@uncompiled
def _laid_out(plan: Plan, device: torch.device) -> Plan:
    return scheduled(plan, device)


@uncompiled
def _elsewhere(
    edge_index: Tensor,
    edge_weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    ptr: Tensor | None,
    plan: Plan | None,
    mode: Mode,
    terms: int | None,
    form: Form,
    refine: int,
    backend: str,
) -> Tensor:
    """The torch backend and the reference."""
    if plan is not None and ptr is None:
        ptr = plan.ptr
    ptr = _batch_boundaries(ptr, V)
    _check(edge_index, edge_weight, B, C, V)
    _check_ptr(ptr, V.shape[0])
    dtype = torch.promote_types(V.dtype, torch.float32)
    with torch.autocast(V.device.type, enabled=False):
        inputs = (edge_index, *(t.to(dtype) for t in (edge_weight, B, C, V)))
        if backend == "reference":
            check_edges(edge_index, ptr)
            log_choice("resolvent", backend, mode, V.device.type)
            return resolvent_reference(*inputs, ptr=ptr, terms=terms).to(V.dtype)
        if mode == "neumann":
            assert terms is not None  # see check_terms
            check_edges(edge_index, ptr)
            log_choice("resolvent", "torch", mode, V.device.type)
            return neumann_form(*inputs, batch=Ragged(ptr, V.shape[0]), terms=terms).to(V.dtype)
        if plan is None:
            plan = _make_plan(edge_index, V, ptr, mode)
        _check_plan(plan, edge_index, V, mode)
        if form == "auto":
            form = faster_form(plan, B.shape[1], *V.shape[1:])
        log_choice("resolvent", "torch", f"{mode}, {form} form", V.device.type)
        compute = {"row": row_form, "state": state_form}[form]
        return compute(*inputs, plan=plan.on(V.device), refine=refine).to(V.dtype)


def _batch_boundaries(ptr: Tensor | None, V: Tensor) -> Tensor:
    return torch.tensor([0, V.shape[0]], device=V.device) if ptr is None else ptr


def _check(edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor) -> None:
    """Compare what no shape annotation can see at run time, without reading any number."""
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


def _check_ptr(ptr: Tensor, nodes: int) -> None:
    if can_be_checked(ptr) and (ptr[0] != 0 or ptr[-1] != nodes or (ptr.diff() < 0).any()):
        raise ValueError(
            f"ptr must rise from 0 to the {nodes} nodes of V, got {ptr.tolist()}: "
            "pass the batch's own ptr."
        )


def _check_plan(plan: Plan, edge_index: Tensor, V: Tensor, mode: Mode) -> None:
    if (plan.num_nodes, len(plan.edge_value)) != (V.shape[0], edge_index.shape[1]):
        raise ValueError(
            f"The plan is for {plan.num_nodes} nodes and {len(plan.edge_value)} edges, but "
            f"{V.shape[0]} nodes and {edge_index.shape[1]} edges were given: make it from the same "
            "edge_index."
        )
    if mode == "dag" and not plan.triangular:
        raise ValueError(
            "mode='dag' needs a plan in topological order: make it with order='topological'."
        )


def check_terms(mode: Mode, terms: int | None) -> None:
    """Raise ValueError where `mode` and `terms` of `resolvent` do not fit each other."""
    if mode not in ("exact", "dag", "neumann"):
        raise ValueError(f"mode must be 'exact', 'dag' or 'neumann', got {mode!r}.")
    if mode != "neumann" and terms is not None:
        raise ValueError("terms belongs to mode='neumann': leave it out, or ask for that mode.")
    if mode == "neumann" and (terms is None or terms < 1 or terms & (terms - 1)):
        raise ValueError(
            f"mode='neumann' needs terms, a power of two, got {terms}: "
            "take the next one above the graph's diameter."
        )
