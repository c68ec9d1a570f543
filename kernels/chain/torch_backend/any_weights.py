"""The resolvent product on directed chains: Mamba-2's SSD for edge weights of any sign.

Shapes: N nodes, H heads, S state, P head dimension; chains are cut into c chunks of Q nodes, and t
chunks are worked on at a time.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from kernels.chain.matrix import chain_matrix, chain_matrix_adjoint
from kernels.chain.torch_backend.layout import Layout, chunked, unchunked
from kernels.tiling import tiles


class AnyWeights(torch.autograd.Function):
    """Y from weight, B, C and V, tile by tile, keeping the states that enter the chunks.

    With L the chunk's matrix, `prefix` the weights' product from the chunk's first node to i and
    `suffix` that from i + 1 to its last: Y = (L ⊙ C Bᵀ) V + prefix · C E for the entering state E,
    and the leaving state is E · prefix[last] + Bᵀ (suffix · V).
    """

    @staticmethod
    def forward(ctx, weight: Tensor, B: Tensor, C: Tensor, V: Tensor, layout: Layout) -> Tensor:
        w_cQH, B, C, V = (chunked(x, layout) for x in (weight, B, C, V))
        w_cQH = w_cQH.clone()
        _no_entry(w_cQH[:, 0], layout)
        prefix, suffix = _decays(w_cQH)
        E_cSHP = _pass_states(B, suffix, V, prefix, layout)
        w_cHQ = w_cQH.mT.contiguous()
        Y = torch.empty_like(V)
        for t in _chunk_tiles(B, V):
            M_tHQQ = chain_matrix(w_cHQ[t]).mul_((C[t] @ B[t].mT).unsqueeze(1))
            own = torch.bmm(M_tHQQ.flatten(0, 1), _by_head(V[t]))
            own = own.view(-1, *V[t].transpose(1, 2).shape[1:]).transpose(1, 2)
            entering = torch.bmm(C[t], E_cSHP[t].flatten(2)).view(own.shape)
            torch.addcmul(own, entering, prefix[t].unsqueeze(-1), out=Y[t])
        ctx.save_for_backward(w_cQH, B, C, V, E_cSHP)
        ctx.layout = layout
        return unchunked(Y, layout)

    @staticmethod
    def backward(ctx, dY: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        w_cQH, B, C, V, E_cSHP = ctx.saved_tensors
        dY = chunked(dY, ctx.layout)
        prefix, suffix = _decays(w_cQH)
        F_cSHP = _pass_state_gradients(C, prefix, dY, ctx.layout)
        w_cHQ = w_cQH.mT.contiguous()
        dw, dB, dC, dV = (torch.empty_like(x) for x in (w_cQH, B, C, V))
        for t in _chunk_tiles(B, V):
            tile = (w_cHQ[t], B[t], C[t], V[t], dY[t], E_cSHP[t], F_cSHP[t])
            dw[t], dB[t], dC[t] = _tile_gradients(*tile, prefix[t], suffix[t], out=dV[t])
        _no_entry(dw[:, 0], ctx.layout)
        return *(unchunked(x, ctx.layout) for x in (dw, dB, dC, dV)), None


def _decays(w_cQH: Tensor) -> tuple[Tensor, Tensor]:
    """Products of the weights up to each node and after it, within its chunk [c, Q, H]."""
    suffix = torch.ones_like(w_cQH)
    suffix[:, :-1] = w_cQH[:, 1:].flip(1).cumprod(1).flip(1)
    return w_cQH.cumprod(1), suffix


def _chunk_tiles(B: Tensor, V: Tensor) -> list[slice]:
    c, Q, H, P = V.shape
    return tiles(c, H * max(Q, B.shape[-1]) * max(Q, P), V.device)


def _by_head(x_tQHP: Tensor) -> Tensor:
    """[t, Q, H, P] → [t · H, Q, P], contiguous."""
    return x_tQHP.transpose(1, 2).contiguous().flatten(0, 1)


def _pass_states(B: Tensor, suffix: Tensor, V: Tensor, prefix: Tensor, layout: Layout) -> Tensor:
    """E [c, S, H, P]: the state that enters each chunk."""
    c, _, H, P = V.shape
    # A chunk's own contribution is written where the next chunk's entering state is wanted.
    E = V.new_empty(c + 1, B.shape[-1], H, P)
    for t in _chunk_tiles(B, V):
        decayed = (V[t] * suffix[t].unsqueeze(-1)).flatten(2)
        torch.bmm(B[t].mT, decayed, out=E[t.start + 1 : t.stop + 1].flatten(2))
    E = E[:-1]
    _no_entry(E, layout)
    for decay, state in _by_chain(prefix, E, layout):
        n = state.shape[1]
        block = math.isqrt(n - 1) + 1
        for i in range(1, block):
            here, before = state[:, i::block], slice(i - 1, n - 1, block)
            here.addcmul_(decay[:, before], state[:, before])
        for i in range(block, n, block):
            through = decay[:, i - 1 : min(i + block, n) - 1].cumprod(1)
            state[:, i : i + block].addcmul_(through, state[:, i - 1 : i])
    return E


def _pass_state_gradients(C: Tensor, prefix: Tensor, dY: Tensor, layout: Layout) -> Tensor:
    """F [c, S, H, P]: the gradient of the state that leaves each chunk."""
    c, _, H, P = dY.shape
    F = dY.new_empty(c + 1, C.shape[-1], H, P)
    for t in _chunk_tiles(C, dY):
        decayed = (dY[t] * prefix[t].unsqueeze(-1)).flatten(2)
        torch.bmm(C[t].mT, decayed, out=F[t].flatten(2))
    F[-1] = 0
    for decay, state in _by_chain(prefix, F[:-1], layout):
        n = state.shape[1]
        block = math.isqrt(n - 1) + 1
        for i in range(block - 1, 0, -1):
            after, here = state[:, i::block], slice(i - 1, n - 1, block)
            state[:, here].addcmul_(decay[:, here], after)
        for i in range((n - 1) // block * block, 0, -block):
            through = decay[:, i - block : i].flip(1).cumprod(1).flip(1)
            state[:, i - block : i].addcmul_(through, state[:, i : i + 1])
    # What a chain's first chunk would hand on to a chunk before it goes nowhere.
    _no_entry(F[:-1], layout)
    return F[1:]


def _by_chain(prefix: Tensor, x: Tensor, layout: Layout) -> Iterator[tuple[Tensor, Tensor]]:
    """Views (decay [k, n, 1, H, 1] through each chunk, x [k, n, S, H, P]) of k chains of n chunks.

    Passing a state on is a recurrence over n. In two levels it takes 2√n steps instead of n, each
    on more numbers: first within blocks of √n chunks, all blocks at once, then block after block.
    """
    decay = prefix[:, -1, None, :, None]
    for begin, chains, n in layout.runs:
        run = slice(begin, begin + chains * n)
        yield decay[run].unflatten(0, (chains, n)), x[run].unflatten(0, (chains, n))


def _no_entry(x: Tensor, layout: Layout) -> None:
    """Zero what would enter the first chunk of every chain."""
    for begin, chains, n in layout.runs:
        x[begin : begin + chains * n : n] = 0


def _tile_gradients(
    w_tHQ: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    dY: Tensor,
    E_tSHP: Tensor,
    F_tSHP: Tensor,
    prefix: Tensor,
    suffix: Tensor,
    *,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """dweight [t, Q, H], dB and dC of t chunks; dV goes to `out`."""
    t, Q, H, P = V.shape
    E, F = E_tSHP.flatten(2), F_tSHP.flatten(2)
    K_t1QQ = torch.bmm(C, B.mT).unsqueeze(1)
    L_tHQQ = chain_matrix(w_tHQ)
    dY_head = _by_head(dY)

    scratch = L_tHQQ * K_t1QQ
    dV_own = torch.bmm(scratch.flatten(0, 1).mT, dY_head).view(t, H, Q, P).transpose(1, 2)
    to_state = torch.bmm(B, F).view(t, Q, H, P)
    torch.addcmul(dV_own, to_state, suffix.unsqueeze(-1), out=out)
    d_suffix = to_state.mul_(V).sum(-1)
    d_prefix = torch.bmm(C, E).view(t, Q, H, P).mul_(dY).sum(-1)
    d_prefix[:, -1] += (E * F).sum(1).view(t, H, P).sum(-1)
    dC = torch.bmm((dY * prefix.unsqueeze(-1)).flatten(2), E.mT)
    dB = torch.bmm((V * suffix.unsqueeze(-1)).flatten(2), F.mT)

    dM_tHQQ = torch.bmm(dY_head, _by_head(V).mT).view(t, H, Q, Q)
    dK_tQQ = torch.mul(dM_tHQQ, L_tHQQ, out=scratch).sum(1)
    dC.baddbmm_(dK_tQQ, B)
    dB.baddbmm_(dK_tQQ.mT, C)
    dL_tHQQ = dM_tHQQ.mul_(K_t1QQ)
    # suffix is the last row of L, prefix the first column times the first weight.
    dL_tHQQ[:, :, -1] += d_suffix.mT
    dL_tHQQ[..., 0] += d_prefix.mT * w_tHQ[..., :1]
    dw_tHQ = chain_matrix_adjoint(L_tHQQ.flatten(0, 1), dL_tHQQ.flatten(0, 1)).view(t, H, Q)
    dw_tHQ[..., 0] = (d_prefix.mT * L_tHQQ[..., 0]).sum(-1)
    return dw_tHQ.mT, dB, dC
