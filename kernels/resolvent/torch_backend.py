"""The exact resolvent by sparse LU, vectorised over graphs and heads: any device.

Shapes: N nodes in all, G graphs of n nodes in a stack, R slots of all stacks, E edges, H heads,
S state, P head dimension.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from kernels.resolvent.lu import LU
from kernels.resolvent.plan import Pairs, Plan
from kernels.resolvent.ragged import Stack

STATE_NUMBERS = 2**24  # of the state form's solution that are held at once


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
    """Solve for L = (I − A)⁻¹ itself, mask it by C Bᵀ, multiply: H · Σ n² numbers are kept."""
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
        B_RS, C_RS, V_RHP = plan.padded(B_NS), plan.padded(C_NS), plan.padded(V_NHP)
        Y_RHP = torch.empty_like(V_RHP)
        L = []
        for number, stack in enumerate(plan.stacks):
            L_HGnn = V_NHP.new_zeros(V_NHP.shape[1], stack.graphs, stack.nodes, stack.nodes)
            L_HGnn.diagonal(dim1=2, dim2=3).fill_(1)
            ctx.lu.solve_(L_HGnn.flatten(0, 2), transposed=False, stack=number)
            kernel_Gnn = stack.of(C_RS) @ stack.of(B_RS).mT
            for L_Gnn, V_GnP, Y_GnP in zip(L_HGnn, *_heads(stack, V_RHP, Y_RHP), strict=True):
                Y_GnP.copy_((L_Gnn * kernel_Gnn) @ V_GnP)
            L.append(L_HGnn)
        ctx.save_for_backward(B_NS, C_NS, V_NHP, edge_index, *L)
        return plan.unpadded(Y_RHP)

    @staticmethod
    def backward(ctx, dY_NHP: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        B_NS, C_NS, V_NHP, edge_index, *L = ctx.saved_tensors
        plan = ctx.lu.plan
        B_RS, C_RS, V_RHP, dY_RHP = (plan.padded(x) for x in (B_NS, C_NS, V_NHP, dY_NHP))
        dB_RS, dC_RS, dV_RHP = (torch.empty_like(x) for x in (B_RS, C_RS, V_RHP))
        d_weight_HE = V_NHP.new_empty(V_NHP.shape[1], edge_index.shape[1])
        for number, (stack, pairs) in enumerate(
            zip(plan.stacks, plan.pairs(edge_index, padded=True), strict=True)
        ):
            B_GnS, C_GnS = stack.of(B_RS), stack.of(C_RS)
            kernel_Gnn = C_GnS @ B_GnS.mT
            d_kernel_Gnn = torch.zeros_like(kernel_Gnn)
            T_Gnn = torch.empty_like(kernel_Gnn)  # of one head at a time: H · n² numbers only once
            of_heads = zip(L[number], *_heads(stack, V_RHP, dY_RHP, dV_RHP), strict=True)
            for head, (L_Gnn, V_GnP, dY_GnP, dV_GnP) in enumerate(of_heads):
                torch.mul(L_Gnn, kernel_Gnn, out=T_Gnn)
                dV_GnP.copy_(T_Gnn.mT @ dY_GnP)
                torch.bmm(dY_GnP, V_GnP.mT, out=T_Gnn)
                d_kernel_Gnn.addcmul_(T_Gnn, L_Gnn)
                T_Gnn *= kernel_Gnn
                T_Rn, L_Rn = T_Gnn.flatten(0, 1), L_Gnn.flatten(0, 1)
                ctx.lu.solve_(T_Rn, transposed=True, head=head, stack=number)
                d_weight_HE[head].index_copy_(0, pairs.edge, _edge_products(T_Rn, L_Rn, pairs))
            stack.of(dC_RS).copy_(d_kernel_Gnn @ B_GnS)
            stack.of(dB_RS).copy_(d_kernel_Gnn.mT @ C_GnS)
        dB_NS, dC_NS, dV_NHP = (plan.unpadded(x) for x in (dB_RS, dC_RS, dV_RHP))
        return d_weight_HE.T, dB_NS, dC_NS, dV_NHP, None, None, None


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
    def backward(ctx, dY_NHP: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        B_NS, C_NS, V_NHP, edge_index = ctx.saved_tensors
        dB_NS, dC_NS, dV_NHP = (torch.zeros_like(x) for x in (B_NS, C_NS, V_NHP))
        d_weight = V_NHP.new_zeros(edge_index.shape[1], V_NHP.shape[1])
        (pairs,) = ctx.lu.plan.pairs(edge_index, padded=False)
        for head, states in _parts(B_NS, V_NHP):
            V_NP, dY_NP = V_NHP[:, head], dY_NHP[:, head]
            state_NsP = _solution(ctx.lu, head, B_NS[:, states], V_NP, transposed=False)
            adjoint_NsP = _solution(ctx.lu, head, C_NS[:, states], dY_NP, transposed=True)
            dC_NS[:, states] += (state_NsP @ dY_NP[..., None]).squeeze(2)
            dB_NS[:, states] += (adjoint_NsP @ V_NP[..., None]).squeeze(2)
            dV_NHP[:, head] += _read(adjoint_NsP, B_NS[:, states])
            products = _edge_products(adjoint_NsP.flatten(1), state_NsP.flatten(1), pairs)
            d_weight[pairs.edge, head] += products
        return d_weight, dB_NS, dC_NS, dV_NHP, None, None, None


def _heads(stack: Stack, *tensors_RHP: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each tensor [G, n, P] of every head."""
    return (stack.of(x_RHP).unbind(2) for x_RHP in tensors_RHP)


def _solution(lu: LU, head: int, left_Ns: Tensor, right_NP: Tensor, transposed: bool) -> Tensor:
    """(I − A)⁻¹ or (I − A)⁻ᵀ times the outer products left ⊗ right: [N, s, P]."""
    X_NsP = left_Ns[:, :, None] * right_NP[:, None]
    lu.solve_(X_NsP.flatten(1), transposed, head)
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


def _edge_products(T_RW: Tensor, L_RW: Tensor, pairs: Pairs) -> Tensor:
    """⟨T[target], L[source]⟩ of every edge, reading each row in place."""
    zeros, size = T_RW.new_zeros(len(pairs.col)), (len(T_RW), len(L_RW))
    pattern = torch.sparse_csr_tensor(
        pairs.crow, pairs.col, zeros, size=size, check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, T_RW, L_RW.T, beta=0.0).values()
