"""The resolvent product on chains whose weights are given by their logarithms.

Where no chunk's decay leaves float32's range, L[i, j] = r[i] / r[j] for j ≤ i, r[i] being the decay
from the chunk's middle to a node, above one before it: then a chunk's product is one for all heads,

    (L ⊙ C Bᵀ) V = r · tril(C Bᵀ) (V / r),

and no matrix of a head is ever formed. Shapes as in `kernels.resolvent.chain`.
"""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from kernels.backends import Backend, choose_backend
from kernels.resolvent.chain import (
    ChainPlan,
    Layout,
    carry_back,
    carry_on,
    chain_resolvent,
    chunk_tiles,
    chunked,
    in_float32,
    lay_out,
    no_entry,
    unchunked,
)

CHUNKS = (64, 32)
SMALLEST_DECAY = 1e-25
"""Of half a chunk. r lies between it and its inverse, which leaves float32 room for products."""


def decaying_chain(
    log_weight: Float[Tensor, "N H"],
    scale: Float[Tensor, "N H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    plan: ChainPlan | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "N H P"]:
    """`chain_resolvent` of weights exp(log_weight) and values scale · V, on a CPU faster.

    It is faster where weights are mild: at most 1, and none of their products over 17 neighbours
    below 1e-25. One that is not, and the whole batch takes `chain_resolvent`. The gradient of
    log_weight is a difference of sums over a chunk's nodes, and as exact as those are.

    Args:
        log_weight: [N, H], natural logarithm of the weight of the edge that enters each node; not
            read at the first node of a chain.
        scale: [N, H] factor of a node's values, such as the step Δ.
        B, C, V, plan, backend: as in `chain_resolvent`.

    Returns:
        [N, H, P] mixed values, in V's dtype.

    Raises:
        ValueError: as `chain_resolvent`.
    """
    plan = ChainPlan((V.shape[0],)) if plan is None else plan
    inputs = (log_weight, scale, B, C, V)
    on_triton = choose_backend(backend, inputs, True, "chains") == "triton"
    layout = None
    if (
        not on_triton
        and log_weight.shape == V.shape[:2]
        and sum(plan.sizes) == len(V)
        and V.numel()
    ):
        # What would enter a chain, so that nothing reads it.
        log_weight = log_weight.index_fill(0, _entries(plan.sizes, plan.reverse, V.device), 0)
        layout = _mild_layout(log_weight, plan)
    if layout is None:
        values = V * scale.unsqueeze(-1)
        return chain_resolvent(log_weight.exp(), B, C, values, plan=plan, backend=backend)
    return in_float32(
        lambda *t: _DecayingChain.apply(*t, layout, plan.reverse), log_weight, *inputs[1:]
    )


def _mild_layout(log_weight: Tensor, plan: ChainPlan) -> Layout | None:
    """The longest chunks in which no product of weights is too small; None if there are none."""
    if (log_weight > 0).any():
        return None
    for chunk in CHUNKS:
        # In the order of nodes, whichever way the chain runs.
        layout = lay_out(plan.sizes, False, chunk, log_weight.device)
        log_w_cQH = chunked(log_weight.detach().float(), layout)
        if plan.reverse:
            log_w_cQH = log_w_cQH.flip(1)
        halves = log_w_cQH.tensor_split([_middle(layout) + 1], dim=1)
        if min(half.sum(1).min() for half in halves) >= math.log(SMALLEST_DECAY):
            return layout
    return None


@functools.lru_cache(maxsize=256)
def _entries(sizes: tuple[int, ...], reverse: bool, device: torch.device) -> Tensor:
    """The node at which every chain that has any begins."""
    size = torch.tensor(sizes)
    last = (size.cumsum(0) - 1)[size > 0]
    return (last if reverse else last + 1 - size[size > 0]).to(device)


class _DecayingChain(torch.autograd.Function):
    """Y from log weight, scale, B, C and V, all heads at once, keeping the entering states.

    With X = scale · V / r, a state enters a chunk with entry · r, entry being the decay to the
    middle, and the chunk adds exit · Bᵀ X to it, exit being the decay from the middle to the last
    node. States are kept times entry, and their gradients times exit, so that no number of a head
    stands in a product. What a node gives itself crosses no edge: it is apart from what it takes of
    others, or its rounding would drown the gradient of strong decays.
    """

    @staticmethod
    def forward(
        ctx,
        log_weight: Tensor,
        scale: Tensor,
        B: Tensor,
        C: Tensor,
        V: Tensor,
        layout: Layout,
        reverse: bool,
    ) -> Tensor:
        log_w_cQH, scale, B, C, V = (chunked(x, layout) for x in (log_weight, scale, B, C, V))
        r_cQH, _, exit, entry_next, _ = _decays(log_w_cQH, layout, reverse)
        factor = scale / r_cQH
        carry = carry_back if reverse else carry_on
        passed_on = factor * exit.unsqueeze(1) * entry_next.unsqueeze(1)
        E_cSHP = carry(B, passed_on, V, exit * entry_next, layout)
        own = _own(B, C) * scale
        others, Y = torch.empty_like(V), torch.empty_like(V)
        for t in chunk_tiles(B, V):
            X = (V[t] * factor[t].unsqueeze(-1)).flatten(2)
            mixed = _reaching(C[t] @ B[t].mT, reverse) @ X
            mixed.baddbmm_(C[t], E_cSHP[t].flatten(2))
            torch.mul(mixed.view(V[t].shape), r_cQH[t].unsqueeze(-1), out=others[t])
            torch.addcmul(others[t], V[t], own[t].unsqueeze(-1), out=Y[t])
        ctx.save_for_backward(log_w_cQH, scale, B, C, V, others, E_cSHP)
        ctx.layout, ctx.reverse = layout, reverse
        return unchunked(Y, layout)

    @staticmethod
    def backward(ctx, dY: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        log_w_cQH, scale, B, C, V, others, E_cSHP = ctx.saved_tensors
        layout, reverse = ctx.layout, ctx.reverse
        dY = chunked(dY, layout)
        r_cQH, entry, _, _, exit_before = _decays(log_w_cQH, layout, reverse)
        factor = scale / r_cQH
        carry = carry_on if reverse else carry_back
        received = r_cQH * entry.unsqueeze(1) * exit_before.unsqueeze(1)
        F_cSHP = carry(C, received, dY, entry * exit_before, layout)
        own = _own(B, C)
        taken, given, d_own = (torch.empty_like(scale) for _ in range(3))
        dB, dC, dV = (torch.empty_like(x) for x in (B, C, V))
        for t in chunk_tiles(B, V):
            X = (V[t] * factor[t].unsqueeze(-1)).flatten(2)
            G = (dY[t] * r_cQH[t].unsqueeze(-1)).flatten(2)
            entering, leaving = (x[t].flatten(2) for x in (E_cSHP, F_cSHP))
            K_tQQ = _reaching(C[t] @ B[t].mT, reverse)
            dX = (K_tQQ.mT @ G).baddbmm_(B[t], leaving).view(V[t].shape)
            torch.mul(dX, factor[t].unsqueeze(-1), out=dV[t])
            dV[t].addcmul_(dY[t], (own[t] * scale[t]).unsqueeze(-1))
            taken[t] = (dY[t] * others[t]).sum(-1)
            given[t] = dX.mul_(V[t]).sum(-1)
            d_own[t] = (dY[t] * V[t]).sum(-1)
            dK_tQQ = _reaching(G @ X.mT, reverse)
            dC[t] = torch.baddbmm(G @ entering.mT, dK_tQQ, B[t])
            dB[t] = torch.baddbmm(X @ leaving.mT, dK_tQQ.mT, C[t])
        crossing = _crossing(E_cSHP, F_cSHP, entry, exit_before, layout, reverse)
        d_log = _before_each_edge(crossing, taken - given * factor, reverse)
        d_scale = given / r_cQH + own * d_own
        d_own = (d_own * scale).sum(-1, keepdim=True)
        dC.addcmul_(d_own, B)
        dB.addcmul_(d_own, C)
        return *(unchunked(x, layout) for x in (d_log, d_scale, dB, dC, dV)), None, None


def _middle(layout: Layout) -> int:
    """The node at which r is one, counted from where the chain enters the chunk."""
    return layout.Q // 2


def _own(B: Tensor, C: Tensor) -> Tensor:
    """What of its scaled value a node gives itself [c, Q, 1]."""
    return (C * B).sum(-1, keepdim=True)


def _decays(log_w_cQH: Tensor, layout: Layout, reverse: bool) -> tuple[Tensor, ...]:
    """r [c, Q, H], entry and exit of each chunk, the next one's entry and the exit before [c, H].

    Nothing enters the first chunk of a chain: its entry is zero.
    """
    w_cQH = log_w_cQH.exp()
    if reverse:
        w_cQH = w_cQH.flip(1)
    middle, step = _middle(layout), -1 if reverse else 1
    r = torch.ones_like(w_cQH)
    r[:, middle + 1 :] = w_cQH[:, middle + 1 :].cumprod(1)
    r[:, :middle] = w_cQH[:, 1 : middle + 1].flip(1).cumprod(1).reciprocal_().flip(1)
    entry = w_cQH[:, 0] / r[:, 0]
    no_entry(entry, layout, reverse)
    exit = r[:, -1].clone()
    r = r.flip(1) if reverse else r
    return r, entry, exit, entry.roll(-step, 0), exit.roll(step, 0)


def _reaching(K_tQQ: Tensor, reverse: bool) -> Tensor:
    """Of all pairs those where j reaches another node i: before it, or behind if reversed."""
    return K_tQQ.triu_(1) if reverse else K_tQQ.tril_(-1)


def _crossing(
    E_cSHP: Tensor,
    F_cSHP: Tensor,
    entry: Tensor,
    exit_before: Tensor,
    layout: Layout,
    reverse: bool,
) -> Tensor:
    """⟨entering state, its gradient⟩ of every chunk and head [c, H]."""
    # The gradient of what enters a chunk is that of what leaves the one before.
    found = torch.zeros_like(entry)
    for begin, chains, n in layout.runs:
        run = slice(begin, begin + chains * n)
        entered, before = slice(1, n), slice(0, n - 1)
        if reverse:
            entered, before = before, entered
        E, scale, F, here = (
            x[run].unflatten(0, (chains, n))[:, part]
            for x, part in ((E_cSHP, entered), (entry, entered), (F_cSHP, before), (found, entered))
        )
        # One after the other: the product of both scales may be no number of float32.
        here += (E / scale[:, :, None, :, None] * F).sum((2, 4))
    return found / exit_before


def _before_each_edge(crossing: Tensor, taken_cQH: Tensor, reverse: bool) -> Tensor:
    """What crosses each edge: what enters the chunk, less what nodes before the edge took of it.

    What crosses the edge to the next chunk is known too, so the sums' rounding is: it is spread
    evenly over the chunk.
    """
    if reverse:
        taken_cQH = taken_cQH.flip(1)
    so_far = taken_cQH.cumsum(1)
    Q, next_crossing = taken_cQH.shape[1], crossing.roll(1 if reverse else -1, 0)
    missed = (crossing - so_far[:, -1] - next_crossing) / Q
    nodes = torch.arange(Q, device=missed.device).unsqueeze(-1)
    crosses = crossing.unsqueeze(1) - (so_far - taken_cQH) - missed.unsqueeze(1) * nodes
    return crosses.flip(1) if reverse else crosses
