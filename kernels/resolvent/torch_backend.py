"""The exact resolvent by sparse LU, vectorised over graphs and heads: any device.

Shapes: G graphs, n nodes of the largest, N nodes in all, R = G · n slots of the padded graphs,
E edges, H heads, S state, P head dimension.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.resolvent.lu import LU
from kernels.resolvent.plan import Pairs, Plan

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
        L_HGnn = [_resolvent(ctx.lu, head) for head in range(V_NHP.shape[1])]
        B_GnS, C_GnS, V_HGnP = plan.padded(B_NS), plan.padded(C_NS), _heads(V_NHP, plan)
        Y_HGnP = torch.zeros_like(V_HGnP)
        for graphs, n in plan.blocks:
            kernel = C_GnS[graphs, :n] @ B_GnS[graphs, :n].mT
            for L_Gnn, V_GnP, Y_GnP in zip(L_HGnn, V_HGnP, Y_HGnP, strict=True):
                Y_GnP[graphs, :n] = (L_Gnn[graphs, :n, :n] * kernel) @ V_GnP[graphs, :n]
        ctx.save_for_backward(B_NS, C_NS, V_NHP, edge_index, *L_HGnn)
        return _nodes(Y_HGnP, plan)

    @staticmethod
    def backward(ctx, dY_NHP: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        B_NS, C_NS, V_NHP, edge_index, *L_HGnn = ctx.saved_tensors
        plan = ctx.lu.plan
        B_GnS, C_GnS = plan.padded(B_NS), plan.padded(C_NS)
        V_HGnP, dY_HGnP = _heads(V_NHP, plan), _heads(dY_NHP, plan)
        dB_GnS, dC_GnS, dV_HGnP = (torch.zeros_like(x) for x in (B_GnS, C_GnS, V_HGnP))
        kernels = [C_GnS[graphs, :n] @ B_GnS[graphs, :n].mT for graphs, n in plan.blocks]
        d_kernels = [torch.zeros_like(kernel) for kernel in kernels]
        d_weight_EH = V_NHP.new_empty(edge_index.shape[1], len(L_HGnn))
        T_Gnn = torch.empty_like(L_HGnn[0])
        for head, L_Gnn in enumerate(L_HGnn):  # one at a time: no second tensor of H · n²
            T_Gnn.zero_()
            for (graphs, n), kernel, d_kernel in zip(plan.blocks, kernels, d_kernels, strict=True):
                L, dY = L_Gnn[graphs, :n, :n], dY_HGnP[head, graphs, :n]
                dV_HGnP[head, graphs, :n] = (L * kernel).mT @ dY
                d_masked = dY @ V_HGnP[head, graphs, :n].mT
                d_kernel.addcmul_(d_masked, L)
                torch.mul(d_masked, kernel, out=T_Gnn[graphs, :n, :n])
            T_Rn, L_Rn = T_Gnn.flatten(0, 1), L_Gnn.flatten(0, 1)
            ctx.lu.solve_(head, T_Rn, transposed=True, padded=True)
            d_weight_EH[:, head] = _edge_products(T_Rn, L_Rn, plan.pairs(edge_index, padded=True))
        for (graphs, n), d_kernel in zip(plan.blocks, d_kernels, strict=True):
            dC_GnS[graphs, :n] = d_kernel @ B_GnS[graphs, :n]
            dB_GnS[graphs, :n] = d_kernel.mT @ C_GnS[graphs, :n]
        dB_NS, dC_NS, dV_NHP = plan.unpadded(dB_GnS), plan.unpadded(dC_GnS), _nodes(dV_HGnP, plan)
        return d_weight_EH, dB_NS, dC_NS, dV_NHP, None, None, None


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
        pairs = ctx.lu.plan.pairs(edge_index, padded=False)
        for head, states in _parts(B_NS, V_NHP):
            V_NP, dY_NP = V_NHP[:, head], dY_NHP[:, head]
            state_NsP = _solution(ctx.lu, head, B_NS[:, states], V_NP, transposed=False)
            adjoint_NsP = _solution(ctx.lu, head, C_NS[:, states], dY_NP, transposed=True)
            dC_NS[:, states] += (state_NsP @ dY_NP[..., None]).squeeze(2)
            dB_NS[:, states] += (adjoint_NsP @ V_NP[..., None]).squeeze(2)
            dV_NHP[:, head] += _read(adjoint_NsP, B_NS[:, states])
            d_weight[:, head] += _edge_products(adjoint_NsP.flatten(1), state_NsP.flatten(1), pairs)
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


def _edge_products(T_RW: Tensor, L_RW: Tensor, pairs: Pairs) -> Tensor:
    """[E] ⟨T[target], L[source]⟩ of every edge, reading each row in place."""
    size = (len(T_RW), len(L_RW))
    zeros = T_RW.new_zeros(len(pairs.col))
    pattern = torch.sparse_csr_tensor(
        pairs.crow, pairs.col, zeros, size=size, check_invariants=False
    )
    products = torch.sparse.sampled_addmm(pattern, T_RW, L_RW.T, beta=0.0).values()
    return products.index_select(0, pairs.edge)


def _heads(x_NHP: Tensor, plan: Plan) -> Tensor:
    """[N, H, P] → [H, G, n, P], zero on padding."""
    return plan.padded(x_NHP.flatten(1)).unflatten(2, x_NHP.shape[1:]).movedim(2, 0)


def _nodes(x_HGnP: Tensor, plan: Plan) -> Tensor:
    """[H, G, n, P] → [N, H, P]."""
    return plan.unpadded(x_HGnP.movedim(0, 2).flatten(2)).unflatten(1, (len(x_HGnP), -1))
