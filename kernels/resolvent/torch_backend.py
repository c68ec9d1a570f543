"""The exact resolvent by sparse LU, vectorised over graphs and heads: any device.

Shapes: G graphs, n nodes of the largest, N nodes in all, R = G · n slots of the padded graphs,
E edges, H heads, S state, P head dimension.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.resolvent.lu import LU
from kernels.resolvent.plan import Plan

STATE_NUMBERS = 2**24  # of the state form's solution that are held at once
EDGE_ROWS = 2**13  # rows that are multiplied at once; they stay in a CPU's cache


def row_form(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    plan: Plan,
    refine: int,
) -> Float[Tensor, "N H P"]:
    """Solve for L = (I − A)⁻¹ itself, mask it by C Bᵀ, multiply: H · G · n² numbers are kept."""
    return _RowForm.apply(edge_weight, B, C, V, edge_index, plan, refine)


def state_form(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    plan: Plan,
    refine: int,
) -> Float[Tensor, "N H P"]:
    """Solve for every node's S × P state, read it out by C: linear in N, nothing of N²."""
    return _StateForm.apply(edge_weight, B, C, V, edge_index, plan, refine)


class _RowForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight_EH, B_NS, C_NS, V_NHP, edge_index, plan, refine) -> Tensor:
        ctx.lu = LU(plan, weight_EH, refine)
        kernel_Gnn = plan.padded(C_NS) @ plan.padded(B_NS).mT
        Y_NHP = torch.empty_like(V_NHP)
        L_Gnn = []
        for head in range(V_NHP.shape[1]):
            L_Gnn.append(_resolvent(ctx.lu, head))
            mixed = (L_Gnn[head] * kernel_Gnn) @ plan.padded(V_NHP[:, head])
            Y_NHP[:, head] = plan.unpadded(mixed)
        ctx.save_for_backward(B_NS, C_NS, V_NHP, edge_index, *L_Gnn)
        return Y_NHP

    @staticmethod
    def backward(ctx, dY_NHP: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        B_NS, C_NS, V_NHP, edge_index, *L_HGnn = ctx.saved_tensors
        plan = ctx.lu.plan
        B_GnS, C_GnS = plan.padded(B_NS), plan.padded(C_NS)
        kernel_Gnn = C_GnS @ B_GnS.mT
        d_kernel = torch.zeros_like(kernel_Gnn)
        dV_NHP, d_weight = torch.empty_like(V_NHP), []
        for head, L_Gnn in enumerate(L_HGnn):
            dY_GnP, V_GnP = plan.padded(dY_NHP[:, head]), plan.padded(V_NHP[:, head])
            dV_NHP[:, head] = plan.unpadded((L_Gnn * kernel_Gnn).mT @ dY_GnP)
            d_masked = dY_GnP @ V_GnP.mT
            d_kernel.addcmul_(d_masked, L_Gnn)
            T_Rn = d_masked.mul_(kernel_Gnn).flatten(0, 1)
            ctx.lu.solve_(head, T_Rn, transposed=True, padded=True)
            d_weight.append(_row_products(T_Rn, L_Gnn.flatten(0, 1), plan.slot[edge_index]))
        dC_NS = plan.unpadded(d_kernel @ B_GnS)
        dB_NS = plan.unpadded(d_kernel.mT @ C_GnS)
        return torch.stack(d_weight, 1), dB_NS, dC_NS, dV_NHP, None, None, None


class _StateForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight_EH, B_NS, C_NS, V_NHP, edge_index, plan, refine) -> Tensor:
        ctx.lu = LU(plan, weight_EH, refine)
        ctx.save_for_backward(B_NS, C_NS, V_NHP, edge_index)
        Y_NHP = torch.zeros_like(V_NHP)
        for head, states in _parts(B_NS, V_NHP):
            state_NsP = _solution(ctx.lu, head, B_NS[:, states], V_NHP[:, head], transposed=False)
            Y_NHP[:, head] += _read(state_NsP, C_NS[:, states])
        return Y_NHP

    @staticmethod
    def backward(ctx, dY_NHP: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        B_NS, C_NS, V_NHP, edge_index = ctx.saved_tensors
        dB_NS, dC_NS, dV_NHP = (torch.zeros_like(x) for x in (B_NS, C_NS, V_NHP))
        d_weight = V_NHP.new_zeros(edge_index.shape[1], V_NHP.shape[1])
        for head, states in _parts(B_NS, V_NHP):
            V_NP, dY_NP = V_NHP[:, head], dY_NHP[:, head]
            state_NsP = _solution(ctx.lu, head, B_NS[:, states], V_NP, transposed=False)
            adjoint_NsP = _solution(ctx.lu, head, C_NS[:, states], dY_NP, transposed=True)
            dC_NS[:, states] += (state_NsP @ dY_NP[..., None]).squeeze(2)
            dB_NS[:, states] += (adjoint_NsP @ V_NP[..., None]).squeeze(2)
            dV_NHP[:, head] += _read(adjoint_NsP, B_NS[:, states])
            d_weight[:, head] += _row_products(
                adjoint_NsP.flatten(1), state_NsP.flatten(1), edge_index
            )
        return d_weight, dB_NS, dC_NS, dV_NHP, None, None, None


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # in a backward pass only with create_graph=True
        raise RuntimeError(
            "resolvent has first derivatives only: leave out create_graph=True, or pass "
            "backend='reference', which is slow and can be differentiated twice."
        )


def _resolvent(lu: LU, head: int) -> Tensor:
    """L [G, n, n] of a head; zero on padding."""
    plan = lu.plan
    L_Rn = lu.values.new_zeros(plan.slots, plan.longest)
    L_Rn[plan.slot, plan.place] = 1
    lu.solve_(head, L_Rn, transposed=False, padded=True)
    return L_Rn.view(len(plan.ptr) - 1, plan.longest, plan.longest)


def _solution(lu: LU, head: int, left_Ns: Tensor, right_NP: Tensor, transposed: bool) -> Tensor:
    """(I − A)⁻¹ or (I − A)⁻ᵀ times the outer products left ⊗ right: [N, s, P]."""
    X_NsP = left_Ns[:, :, None] * right_NP[:, None]
    lu.solve_(head, X_NsP.flatten(1), transposed=transposed, padded=False)
    return X_NsP


def _read(state_NsP: Tensor, by_Ns: Tensor) -> Tensor:
    """Σ_s by_s · state_s: [N, P]."""
    return (by_Ns[:, None] @ state_NsP).squeeze(1)


def _parts(B_NS: Tensor, V_NHP: Tensor) -> Iterator[tuple[int, slice]]:
    """Heads and parts of the states whose solutions fit into STATE_NUMBERS numbers."""
    states = B_NS.shape[1]
    step = max(1, STATE_NUMBERS // max(1, V_NHP[:, 0].numel()))
    for head in range(V_NHP.shape[1]):
        for first in range(0, states, step):
            yield head, slice(first, min(first + step, states))


def _row_products(T: Tensor, L: Tensor, ends: Tensor) -> Tensor:
    """[E] ⟨T[target], L[source]⟩ of every edge, given the rows of its source and its target."""
    source, target = ends
    parts = [
        torch.linalg.vecdot(T.index_select(0, t), L.index_select(0, s))
        for s, t in zip(source.split(EDGE_ROWS), target.split(EDGE_ROWS))
    ]
    return torch.cat(parts)
