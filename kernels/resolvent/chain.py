"""The resolvent product on directed chains: Mamba-2's SSD for edge weights of any sign.

Shapes: N nodes, H heads, S state, P head dimension, E edges; chains are cut into c chunks of Q
nodes, and t chunks are worked on at a time. Every chain begins on a new chunk, so nothing passes
from one chain to another, not even 0 · NaN.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from kernels.backends import Backend, can_be_checked, choose_backend

# Numbers per temporary array: large enough to feed the cores, small enough to stay near them.
CPU_TILE, GPU_TILE = 2**19, 2**27


def chain_resolvent(
    weight: Float[Tensor, "N H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    plan: "ChainPlan | None" = None,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "N H P"]:
    """Mix node values along chains: y_i = ⟨C_i, h_i⟩, h_i = w_i h_{i−1} + B_i ⊗ v_i per head.

    Equals `kernels.resolvent` on the chain's edges, in linear time. Weights may have any sign and
    may be zero: products are formed directly, without logarithms or divisions. Inputs below float32
    are computed in float32 and the result is returned in V's dtype. Gradients flow to weight, B, C
    and V.

    Args:
        weight: [N, H] weight of the edge that enters each node, dimensionless; not read at the
            first node of a chain.
        B: [N, S] input projection of every node, shared by the heads.
        C: [N, S] output projection of every node, shared by the heads.
        V: [N, H, P] values per head.
        plan: the chains of a batch and their direction; None for one chain 0 → 1 → … → N − 1.
            A zero weight also ends a chain, but lets a NaN through.
        chunk: most nodes of one chunk of the torch backend; None takes 64, or 32 where
            S · P < 2048.
        backend: `triton`, `torch` or `auto`, see `kernels.resolvent`.

    Returns:
        [N, H, P] mixed values.

    Raises:
        ValueError: shapes, plan, chunk or backend do not fit.

    Source: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, section 6; a chain is Chimera's
    simplest graph, Lahoti et al., arXiv:2510.12111.
    """
    nodes = V.shape[0]
    plan = ChainPlan((nodes,)) if plan is None else plan
    backend = choose_backend(backend, (weight, B, C, V), chunk is None, "chains without chunk")
    if chunk is None:
        chunk = 64 if B.shape[-1] * V.shape[-1] >= 2048 else 32
    if weight.shape != V.shape[:2] or B.shape != C.shape or B.shape[0] != nodes:
        raise ValueError(
            f"With V of shape {list(V.shape)}, weight must be {list(V.shape[:2])} and B and C both "
            f"[{nodes}, state], got {list(weight.shape)}, {list(B.shape)} and {list(C.shape)}."
        )
    if sum(plan.sizes) != nodes or chunk < 1:
        raise ValueError(
            f"The plan's chains hold {sum(plan.sizes)} nodes and chunks {chunk}, but V has {nodes} "
            "nodes: build the plan from the batch's own ptr, and chunks of at least 1 node."
        )
    if not V.numel():
        return torch.zeros_like(V)
    if backend == "triton":
        from kernels.resolvent.triton_backend.chain import chain_product

        return chain_product(weight, B, C, V, plan.sizes, plan.reverse)
    layout = lay_out(plan.sizes, plan.reverse, chunk, V.device)
    return in_float32(lambda *t: _Chain.apply(*t, layout), weight, B, C, V)


def bidirectional_chain(
    weight_forward: Float[Tensor, "N H"],
    weight_backward: Float[Tensor, "N H"],
    B: Float[Tensor, "N S"] | tuple[Float[Tensor, "N S"], Float[Tensor, "N S"]],
    C: Float[Tensor, "N S"] | tuple[Float[Tensor, "N S"], Float[Tensor, "N S"]],
    V: Float[Tensor, "N H P"] | tuple[Float[Tensor, "N H P"], Float[Tensor, "N H P"]],
    *,
    plan: "ChainPlan | None" = None,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "N H P"]:
    """Sum of a forward and a backward chain: an undirected line as language models read it.

    A node's own value enters once per direction.

    Args:
        weight_forward: [N, H] weight of the edge i − 1 → i, at node i.
        weight_backward: [N, H] weight of the edge i + 1 → i, at node i.
        B, C, V: as in `chain_resolvent`; a pair gives each direction its own (forward, backward).
        plan: the chains of a batch, in either direction; None for one chain.
        chunk, backend: as in `chain_resolvent`.

    Returns:
        [N, H, P] mixed values.

    Raises:
        ValueError: as `chain_resolvent`.

    Source: Lahoti et al., arXiv:2510.12111, language experiments.
    """
    (B, B_back), (C, C_back), (V, V_back) = (
        pair if isinstance(pair, tuple) else (pair, pair) for pair in (B, C, V)
    )
    plan = ChainPlan((V.shape[0],)) if plan is None else plan
    there, back = (replace(plan, reverse=reverse) for reverse in (False, True))
    how = {"chunk": chunk, "backend": backend}
    return chain_resolvent(weight_forward, B, C, V, plan=there, **how) + chain_resolvent(
        weight_backward, B_back, C_back, V_back, plan=back, **how
    )


@dataclass(frozen=True)
class ChainPlan:
    """The chains of a batch: one per graph, over its nodes in order.

    Attributes:
        sizes: nodes of each chain.
        reverse: edges run i + 1 → i instead of i → i + 1.
    """

    sizes: tuple[int, ...]
    reverse: bool = False

    @classmethod
    def of(cls, ptr: Int[Tensor, " G1"], *, reverse: bool = False) -> "ChainPlan":
        """The plan of a batch whose graph g holds the nodes ptr[g] … ptr[g + 1] − 1.

        Raises:
            ValueError: `ptr` does not rise from 0.
        """
        ptr = ptr.tolist()
        if not ptr or ptr[0] != 0 or ptr != sorted(ptr):
            raise ValueError(f"ptr must rise from 0, got {ptr}: pass the batch's own ptr.")
        return cls(tuple(last - first for first, last in itertools.pairwise(ptr)), reverse)

    def weights(
        self, edge_index: Int[Tensor, "2 E"], edge_weight: Float[Tensor, "E H"]
    ) -> Float[Tensor, "N H"]:
        """Weight of the edge that enters each node, from edges in any order; 0 where none does.

        Repeated edges add up, as in `kernels.resolvent`.

        Raises:
            ValueError: an edge does not join neighbours of one chain in the plan's direction
                (checked on the CPU).
        """
        if can_be_checked(edge_index):
            self._check(edge_index)
        none = edge_weight.new_zeros(sum(self.sizes), edge_weight.shape[1])
        return none.index_add(0, edge_index[1], edge_weight)

    def _check(self, edge_index: Tensor) -> None:
        nodes = sum(self.sizes)
        ends = torch.tensor(self.sizes).cumsum(0)
        source, target = edge_index
        chain = torch.bucketize(edge_index, ends, right=True)
        stray = (target - source != (-1 if self.reverse else 1)) | (chain[0] != chain[1])
        stray |= ((edge_index < 0) | (edge_index >= nodes)).any(0)
        if stray.any():
            i, j = edge_index[:, stray.nonzero()[0, 0]].tolist()
            raise ValueError(
                f"Edge {i} → {j} is no edge of a {'reversed ' if self.reverse else ''}chain of "
                f"this plan: give {'(i + 1, i)' if self.reverse else '(i, i + 1)'} within one "
                "graph, or resolve without this plan."
            )

    def resolvent(
        self,
        edge_index: Int[Tensor, "2 E"],
        edge_weight: Float[Tensor, "E H"],
        B: Float[Tensor, "N S"],
        C: Float[Tensor, "N S"],
        V: Float[Tensor, "N H P"],
        backend: Backend = "auto",
    ) -> Float[Tensor, "N H P"]:
        """`kernels.resolvent` on this plan's chains; errors as `weights` and `chain_resolvent`."""
        weight = self.weights(edge_index, edge_weight)
        return chain_resolvent(weight, B, C, V, plan=self, backend=backend)


def chain_matrix(weight: Float[Tensor, "*batch Q"]) -> Float[Tensor, "*batch Q Q"]:
    """L = (I − A)⁻¹ of chains of Q nodes: L[i, j] = w[j + 1] ⋯ w[i] for j ≤ i; w[0] is not read.

    Row i is w[i] times row i − 1. Blocks of about √Q rows take all their rows' first steps at once,
    then each block continues the last row of the one before: 2√Q steps instead of Q.
    """
    Q = weight.shape[-1]
    block = largest_divisor_up_to_the_root(Q)
    L = weight.new_zeros(*weight.shape, Q)
    L.diagonal(dim1=-2, dim2=-1).fill_(1)
    own = L.unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    own = own.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # blocks on the diagonal [.., Q/b, b, b]
    w = weight.unflatten(-1, (-1, block)).unsqueeze(-1)
    for i in range(1, block):
        torch.mul(w[..., i, :], own[..., i - 1, :i], out=own[..., i, :i])
    entering = (w[..., 0, :] * own[..., 0]).unsqueeze(-1)
    for k in range(1, Q // block):
        first = k * block
        before, rows = L[..., first - 1 : first, :first], L[..., first : first + block, :first]
        torch.mul(entering[..., k, :, :], before, out=rows)
    return L


def chain_matrix_adjoint(
    L: Float[Tensor, "m Q Q"], dL: Float[Tensor, "m Q Q"]
) -> Float[Tensor, "m Q"]:
    """Gradient of `chain_matrix`'s weights: dA = Lᵀ dL Lᵀ on the edges (i − 1, i)."""
    T = torch.bmm(L.mT, dL)
    d_weight = T.new_zeros(T.shape[:-1])
    d_weight[:, 1:] = T[:, 1:].mul_(L[:, :-1]).sum(-1)
    return d_weight


def largest_divisor_up_to_the_root(count: int) -> int:
    """Blocks of this size cut `count` steps into about 2√count, fewer steps in each than blocks."""
    return max(d for d in range(1, math.isqrt(count) + 1) if count % d == 0)


def in_float32(operator: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply an operator in at least float32, outside autocast; the last input gives the dtype."""
    V = inputs[-1]
    dtype = torch.promote_types(V.dtype, torch.float32)
    with torch.autocast(V.device.type, enabled=False):
        return operator(*(x.to(dtype) for x in inputs)).to(V.dtype)


def tiles(count: int, numbers_each: int, device: torch.device) -> list[slice]:
    """Cut `count` items that need arrays of `numbers_each` into ranges worked on together."""
    tile = CPU_TILE if device.type == "cpu" else GPU_TILE
    step = max(1, tile // max(1, numbers_each))
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


class Layout(NamedTuple):
    """Where nodes stand once chains are cut into chunks, chains of equally many chunks together.

    Attributes:
        Q: nodes per chunk.
        chunks: c.
        slot: [N] place of every node among the c · Q; None where nodes already stand so.
        runs: (first chunk, chains, chunks of each) of every run of equally long chains.
    """

    Q: int
    chunks: int
    slot: Tensor | None
    runs: list[tuple[int, int, int]]


@functools.lru_cache(maxsize=256)
def lay_out(sizes: tuple[int, ...], reverse: bool, chunk: int, device: torch.device) -> Layout:
    longest = max(sizes)
    Q = math.ceil(longest / math.ceil(longest / chunk))
    size = torch.tensor(sizes)
    count, order = (size / Q).ceil().long().sort(stable=True)
    first = torch.empty_like(size)
    first[order] = count.cumsum(0) - count
    start = size.cumsum(0) - size
    place = torch.arange(sum(sizes)) - start.repeat_interleave(size)
    if reverse:
        place = size.repeat_interleave(size) - 1 - place
    slot = (first * Q).repeat_interleave(size) + place
    runs, begin = [], 0
    counts, chains_each = count[count > 0].unique(return_counts=True)
    for n, chains in zip(counts.tolist(), chains_each.tolist(), strict=True):
        runs.append((begin, chains, n))
        begin += chains * n
    as_it_is = begin * Q == len(slot) and bool((slot.diff() == 1).all())
    return Layout(Q, begin, None if as_it_is else slot.to(device), runs)


def chunked(x: Tensor, layout: Layout) -> Tensor:
    """[N, …] → [c, Q, …], zeros where a chunk is not full."""
    if layout.slot is not None:
        x = x.new_zeros(layout.chunks * layout.Q, *x.shape[1:]).index_copy_(0, layout.slot, x)
    return x.unflatten(0, (layout.chunks, layout.Q))


def unchunked(x: Tensor, layout: Layout) -> Tensor:
    """[c, Q, …] → [N, …]."""
    x = x.flatten(0, 1)
    return x if layout.slot is None else x.index_select(0, layout.slot)


class _Chain(torch.autograd.Function):
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
    def backward(ctx, dY: Tensor) -> tuple[Tensor | None, ...]:
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
        yield tuple(y[run].unflatten(0, (chains, n)) for y in (decay, x))


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
