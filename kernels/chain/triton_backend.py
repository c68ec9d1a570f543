"""Triton kernels of the resolvent product on directed chains, forward and backward.

y_i = ⟨C_i, h_i⟩ with h_i = w_i h_{i−1} + B_i ⊗ v_i. Every chain is cut into spans, and a span into
blocks of Q nodes. For the nodes of a block, in the chain's direction, let L[i, j] = w[j+1] ⋯ w[i]
for j ≤ i, prefix[i] = w[0] ⋯ w[i], suffix[i] = w[i+1] ⋯ w[Q−1], E the state h that enters the block
and F the gradient of the state that leaves it. A block is then worth

    Y = (L ⊙ C Bᵀ) V + prefix · C E,        E of the next block = prefix[Q−1] E + Bᵀ (suffix · V),
                                            F of the one before = prefix[Q−1] F + Cᵀ (prefix · dY).

Forward, three launches: what every span adds to the state, the states that enter the spans, and the
spans' outputs, each with its state in registers. Backward, the first two for F, then E and F of
every block, the gradients of weights and values by block and head, and those of B and C, each a
loop over the heads. A head's dK = dM ⊙ L, Q numbers a node, is all that passes from one to the
other; where every chain is one span, no state is computed at all. A chain's first weight is never
read; past a piece's end weights are 1 and all else is 0.

Shapes: N nodes, H heads, S state, P head dimension; s and p parts of S and P, SB and PB wide; c
spans, b blocks, k chains.
"""

import functools
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from kernels.autograd import differentiate_by
from kernels.launch import cdiv, dot_precision, launch, next_power_of_2

Q = 32  # nodes of a block
WIDE = 32  # numbers along S or P in one operand of a tl.dot
NARROW = 16  # along P, in the kernels that would spill registers otherwise
PROGRAMS = 512  # as many keep the multiprocessors of a large GPU busy
LONGEST_SPAN = 8  # blocks
SPANS_PASSED = 16  # at a time; tl.dot takes no fewer
NUMBERS_PASSED = 256  # of a state, in one program


def chain_product(
    weight: Float[Tensor, "N H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    sizes: tuple[int, ...],
    reverse: bool = False,
) -> Float[Tensor, "N H P"]:
    """`kernels.chain.chain_resolvent`, which checks, with gradients of all four tensors.

    Args:
        weight: [N, H] weight of the edge that enters each node; not read at a chain's first node,
            where its gradient is 0.
        B: [N, S] input projection of every node, shared by the heads.
        C: [N, S] output projection of every node, shared by the heads.
        V: [N, H, P] values per head.
        sizes: nodes of each chain; chains lie end to end.
        reverse: edges run i + 1 → i instead of i → i + 1.

    Returns:
        [N, H, P] mixed values in V's dtype; computed in float32, from inputs of any dtypes.

    Source: Dao & Gu, arXiv:2405.21060, section 6, with the state kept in registers within a span.
    """
    if not V.numel() or not B.numel():
        return torch.zeros_like(V)
    return _chain(weight, B, C, V, list(sizes), reverse)[0]


class _Tables(NamedTuple):
    """Where the pieces of the chains lie; in int32.

    Attributes:
        spans: [c, 4] first node, nodes, whether a chain begins here, number of its first block.
        blocks: [b, 4] the same of every block.
        chains: [k, 2] first span, spans.
    """

    spans: Int[Tensor, "c 4"]
    blocks: Int[Tensor, "b 4"]
    chains: Int[Tensor, "k 2"]


def _blocks_of_a_span(V: Tensor) -> int:
    """As many as leave enough programs."""
    nodes, heads, P = V.shape
    programs = cdiv(nodes, Q) * heads * cdiv(P, NARROW)
    return min(max(programs // PROGRAMS, 1), LONGEST_SPAN)


@functools.lru_cache(maxsize=256)
def _tables(
    sizes: tuple[int, ...], reverse: bool, blocks_of_span: int, device: torch.device
) -> _Tables:
    size = torch.tensor([n for n in sizes if n])
    chains = _pieces_of_chains(size, Q * blocks_of_span)
    spans = _pieces(size, chains, Q * blocks_of_span, reverse)
    blocks = _pieces(size, _pieces_of_chains(size, Q), Q, reverse)
    tables = (table.int() for table in (spans, blocks, chains))
    if device.type == "cuda":  # from page-locked memory, so that nobody waits
        tables = (table.pin_memory().to(device, non_blocking=True) for table in tables)
    return _Tables(*tables)


def _pieces_of_chains(size: Int[Tensor, " k"], length: int) -> Int[Tensor, "k 2"]:
    """First piece and number of pieces of each chain, in pieces of at most `length` nodes."""
    count = (size + length - 1) // length
    return torch.stack([count.cumsum(0) - count, count], dim=1)


def _pieces(
    size: Int[Tensor, " k"], chains: Int[Tensor, "k 2"], length: int, reverse: bool
) -> Int[Tensor, "c 4"]:
    first_piece, count = chains.unbind(1)
    chain = torch.arange(len(size)).repeat_interleave(count)
    place = (torch.arange(len(chain)) - first_piece[chain]) * length
    begin = size.cumsum(0) - size
    first = (begin + size - 1)[chain] - place if reverse else begin[chain] + place
    block = _pieces_of_chains(size, Q)[chain, 0] + place // Q
    nodes = (size[chain] - place).clamp(max=length)
    return torch.stack([first, nodes, (place == 0).long(), block], dim=1)


@torch.library.custom_op("resolvent::chain", mutates_args=())
def _chain(
    weight: Tensor, B: Tensor, C: Tensor, V: Tensor, sizes: list[int], reverse: bool
) -> tuple[Tensor, Tensor]:
    """Y and E [c, H, S, P], the states that enter the spans."""
    weight, B, C, V = (x.contiguous() for x in (weight, B, C, V))
    spans, _, chains = _tables(tuple(sizes), reverse, _blocks_of_a_span(V), V.device)
    constants = _constants(B, V, reverse)
    E = _entering_spans(weight, B, V, spans, chains, constants, adjoint=False)
    Y = torch.empty_like(V)
    grid = (len(spans) * V.shape[1] * cdiv(V.shape[2], NARROW),)
    slices = cdiv(B.shape[1], constants["SB"])
    # All its dots hang together, so Triton lays all warps along Q: more than 2 repeat each other's
    # work, and only spread what else there is in registers.
    options = {"PB": NARROW, "SLICES": slices, "num_warps": 2 if slices <= 2 else 8}
    tensors = (weight, B, C, V, E, spans, Y, *_sizes(B, V))
    launch(outputs_kernel, grid, *tensors, **constants | options)
    return Y, E


@_chain.register_fake
def _(weight, B, C, V, sizes, reverse):
    length = Q * _blocks_of_a_span(V)
    spans = sum((size + length - 1) // length for size in sizes)
    E = V.new_empty(spans, V.shape[1], B.shape[1], V.shape[2], dtype=torch.float32)
    return torch.empty_like(V, memory_format=torch.contiguous_format), E


@torch.library.custom_op("resolvent::chain_backward", mutates_args=())
def _chain_backward(
    dY: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    E: Tensor,
    sizes: list[int],
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight, B, C and V."""
    dY, weight, B, C, V = (x.contiguous() for x in (dY, weight, B, C, V))
    spans, blocks, chains = _tables(tuple(sizes), reverse, _blocks_of_a_span(V), V.device)
    constants = _constants(B, V, reverse)
    F = _entering_spans(weight, C, dY, spans, chains, constants, adjoint=True)
    if len(blocks) > len(spans):
        E = _entering_blocks(E, weight, B, V, spans, len(blocks), constants, adjoint=False)
        F = _entering_blocks(F, weight, C, dY, spans, len(blocks), constants, adjoint=True)
    dw, dB, dC, dV = (torch.empty_like(x) for x in (weight, B, C, V))
    dK_HNQ = V.new_empty(V.shape[1], len(V), Q, dtype=torch.float32)
    counts = (len(V), *_sizes(B, V))
    tensors = (weight, B, C, V, dY, E, F, blocks, dw, dV, dK_HNQ)
    grid = (len(blocks) * V.shape[1],)
    launch(value_gradients_kernel, grid, *tensors, *counts, **constants | {"PB": NARROW})
    grid = (len(blocks) * cdiv(B.shape[1], constants["SB"]),)
    for adjoint, tensors in ((False, (V, F, C)), (True, (dY, E, B))):
        tensors = (weight, *tensors, dK_HNQ, blocks, dC if adjoint else dB)
        launch(key_gradients_kernel, grid, *tensors, *counts, ADJOINT=adjoint, **constants)
    return dw, dB, dC, dV


differentiate_by(_chain, _chain_backward, gradients=4)


def _constants(B: Tensor, V: Tensor, reverse: bool) -> dict[str, Any]:
    """What all kernels that read nodes are compiled for."""
    widths = B.shape[1], V.shape[2]
    SB, PB = (min(max(16, next_power_of_2(width)), WIDE) for width in widths)
    precision = dot_precision(V.dtype)
    return {"STEP": -1 if reverse else 1, "Q": Q, "SB": SB, "PB": PB, "PRECISION": precision}


def _sizes(keys: Tensor, values: Tensor) -> tuple[int, int, int]:
    """H, S, P."""
    return values.shape[1], keys.shape[1], values.shape[2]


def _grid_of_states(
    spans: Tensor, keys: Tensor, values: Tensor, constants: dict[str, Any]
) -> tuple[int]:
    """A program for every span, head and part of the state."""
    (H, P), S = values.shape[1:], keys.shape[1]
    parts = cdiv(S, constants["SB"]) * cdiv(P, constants["PB"])
    return (len(spans) * H * parts,)


def _entering_spans(
    weight: Tensor,
    keys: Tensor,
    values: Tensor,
    spans: Tensor,
    chains: Tensor,
    constants: dict[str, Any],
    *,
    adjoint: bool,
) -> Float[Tensor, "c H S P"]:
    """E from B and V, or F from C and dY (adjoint), of all spans."""
    H, P = values.shape[1:]
    shape = (len(spans), H, keys.shape[1], P)
    if len(spans) == len(chains):
        return values.new_zeros(shape, dtype=torch.float32)
    added, entering = (values.new_empty(shape, dtype=torch.float32) for _ in range(2))
    decay = values.new_empty(len(spans), H, dtype=torch.float32)
    grid = _grid_of_states(spans, keys, values, constants)
    tensors = (weight, keys, values, spans, added, decay, *_sizes(keys, values))
    launch(added_by_spans_kernel, grid, *tensors, ADJOINT=adjoint, **constants)
    size = shape[2] * P
    grid = (len(chains) * H * cdiv(size, NUMBERS_PASSED),)
    tiles = {"T": SPANS_PASSED, "W": NUMBERS_PASSED, "PRECISION": constants["PRECISION"]}
    launch(pass_on_kernel, grid, added, decay, chains, entering, H, size, ADJOINT=adjoint, **tiles)
    return entering


def _entering_blocks(
    entering: Float[Tensor, "c H S P"],
    weight: Tensor,
    keys: Tensor,
    values: Tensor,
    spans: Tensor,
    blocks: int,
    constants: dict[str, Any],
    *,
    adjoint: bool,
) -> Float[Tensor, "b H S P"]:
    """E, or F (adjoint), of all blocks from that of their spans."""
    states = entering.new_empty(blocks, *entering.shape[1:])
    tensors = (weight, keys, values, spans, entering, states, *_sizes(keys, values))
    grid = _grid_of_states(spans, keys, values, constants)
    launch(states_kernel, grid, *tensors, ADJOINT=adjoint, **constants)
    return states


@triton.jit
@no_type_check
def added_by_spans_kernel(
    weight,
    keys,
    values,
    spans,
    added,
    decay,
    H,
    S,
    P,
    STEP: tl.constexpr,
    Q: tl.constexpr,
    SB: tl.constexpr,
    PB: tl.constexpr,
    PRECISION: tl.constexpr,
    ADJOINT: tl.constexpr,
):
    """What leaves each span where nothing enters, and the factor on what does."""
    span, head, row, column = _part_of_state(H, S, P, SB, PB)
    first, nodes, begins, _ = _piece(spans, span)
    state = tl.zeros((SB, PB), tl.float32)
    through = 1.0
    blocks = tl.cdiv(nodes, Q)
    for walked in range(blocks):
        start = (blocks - 1 - walked if ADJOINT else walked) * Q
        factor, own = _contribution(
            weight,
            keys,
            values,
            first,
            nodes,
            begins,
            start,
            head,
            row,
            column,
            H,
            S,
            P,
            STEP,
            Q,
            SB,
            PB,
            PRECISION,
            ADJOINT,
        )
        state = factor * state + own
        through *= factor
    at, inside = _of_state(span, head, row, column, H, S, P, SB, PB)
    tl.store(added + at, state, mask=inside)
    if (row == 0) & (column == 0):
        tl.store(decay + span * H + head, through)


@triton.jit
@no_type_check
def pass_on_kernel(
    added,
    decay,
    chains,
    entering,
    H,
    size,
    T: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
    ADJOINT: tl.constexpr,
):
    """The states that enter the spans of a chain, T spans at a time, W numbers of each state.

    That is the chain's product over again: one span's state is the next one's times its decay, plus
    what the span adds.
    """
    parts = tl.cdiv(size, W)
    program = tl.program_id(0)
    chain, head = program // parts // H, program // parts % H
    first = tl.load(chains + 2 * chain)
    spans = tl.load(chains + 2 * chain + 1)
    number = (program % parts) * W + tl.arange(0, W)
    t = tl.arange(0, T)
    state = tl.zeros((W,), tl.float32)
    for start in range(0, spans, T):
        walked = start + t
        factor = _decays(decay, chains, chain, walked, H, head, ADJOINT)
        before = _decays(decay, chains, chain, walked - 1, H, head, ADJOINT)
        after = _decays(decay, chains, chain, walked + 1, H, head, ADJOINT)
        after = tl.where(t < T - 1, after, 1.0)
        prefix = tl.cumprod(tl.where(t > 0, before, 1.0), 0)
        span = first + (spans - 1 - walked if ADJOINT else walked)
        at = (span.to(tl.int64) * H + head)[:, None] * size + number[None, :]
        inside = (walked < spans)[:, None] & (number < size)[None, :]
        own = tl.load(added + at, mask=inside, other=0.0)
        earlier = tl.dot(_products(after, t - 1, t), own, input_precision=PRECISION)
        tl.store(entering + at, prefix[:, None] * state[None, :] + earlier, mask=inside)
        suffix = tl.cumprod(after, 0, reverse=True)
        state = _last(prefix * factor, t, T) * state + tl.sum(suffix[:, None] * own, 0)


@triton.jit
@no_type_check
def states_kernel(
    weight,
    keys,
    values,
    spans,
    entering,
    states,
    H,
    S,
    P,
    STEP: tl.constexpr,
    Q: tl.constexpr,
    SB: tl.constexpr,
    PB: tl.constexpr,
    PRECISION: tl.constexpr,
    ADJOINT: tl.constexpr,
):
    """The states that enter the blocks of each span."""
    span, head, row, column = _part_of_state(H, S, P, SB, PB)
    first, nodes, begins, first_block = _piece(spans, span)
    at, inside = _of_state(span, head, row, column, H, S, P, SB, PB)
    state = tl.load(entering + at, mask=inside, other=0.0)
    blocks = tl.cdiv(nodes, Q)
    for walked in range(blocks):
        block = blocks - 1 - walked if ADJOINT else walked
        at, inside = _of_state(first_block + block, head, row, column, H, S, P, SB, PB)
        tl.store(states + at, state, mask=inside)
        if walked + 1 < blocks:
            factor, own = _contribution(
                weight,
                keys,
                values,
                first,
                nodes,
                begins,
                block * Q,
                head,
                row,
                column,
                H,
                S,
                P,
                STEP,
                Q,
                SB,
                PB,
                PRECISION,
                ADJOINT,
            )
            state = factor * state + own


@triton.jit
@no_type_check
def outputs_kernel(
    weight,
    B,
    C,
    V,
    E,
    spans,
    Y,
    H,
    S,
    P,
    STEP: tl.constexpr,
    Q: tl.constexpr,
    SB: tl.constexpr,
    PB: tl.constexpr,
    PRECISION: tl.constexpr,
    SLICES: tl.constexpr,
):
    """Y of each span, block after block, with the state in registers in slices of SB rows."""
    span, head, part = _program(H, tl.cdiv(P, PB))
    first, nodes, begins, _ = _piece(spans, span)
    state = ()
    for number in tl.static_range(SLICES):
        at, exists = _of_state(span, head, number * SB, part * PB, H, S, P, SB, PB)
        state = state + (tl.load(E + at, mask=exists, other=0.0),)  # noqa: RUF005
    i = tl.arange(0, Q)
    p = part * PB + tl.arange(0, PB)
    for start in range(0, nodes, Q):
        k = start + i
        node = first + STEP * k.to(tl.int64)
        w = _weights(weight, node, k, nodes, begins, H, head)
        w_next = _weights(weight, node + STEP, k + 1, tl.minimum(nodes, start + Q), begins, H, head)
        prefix = tl.cumprod(w, 0)
        suffix = tl.cumprod(w_next, 0, reverse=True)
        V_Qp = _rows(V + head * P, node, H * P, p, P, k < nodes)
        K = tl.zeros((Q, Q), tl.float32)
        for first_s in range(0, S, SB):
            s = first_s + tl.arange(0, SB)
            B_sQ = tl.trans(_rows(B, node, S, s, S, k < nodes))
            K = tl.dot(_rows(C, node, S, s, S, k < nodes), B_sQ, K, input_precision=PRECISION)
        Y_Qp = tl.zeros((Q, PB), tl.float32)
        left = ()
        for number in tl.static_range(SLICES):
            s = number * SB + tl.arange(0, SB)
            B_sQ = tl.trans(_rows(B, node, S, s, S, k < nodes))
            C_Qs = _rows(C, node, S, s, S, k < nodes)
            Y_Qp = tl.dot(C_Qs, state[number], Y_Qp, input_precision=PRECISION)
            own = tl.dot(B_sQ, suffix[:, None] * V_Qp, input_precision=PRECISION)
            left = left + (_last(prefix, i, Q) * state[number] + own,)  # noqa: RUF005
        state = left
        M = K * _products(w_next, i, i)
        Y_Qp = tl.dot(M, V_Qp, prefix[:, None] * Y_Qp, input_precision=PRECISION)
        _put_rows(Y + head * P, Y_Qp, node, H * P, p, P, k < nodes)


@triton.jit
@no_type_check
def value_gradients_kernel(
    weight,
    B,
    C,
    V,
    dY,
    E,
    F,
    blocks,
    dw,
    dV,
    dK,
    N,
    H,
    S,
    P,
    STEP: tl.constexpr,
    Q: tl.constexpr,
    SB: tl.constexpr,
    PB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a block's weights and values, and each head's part in that of K = C Bᵀ.

    With dM = dY Vᵀ and dL = dM ⊙ K, plus what comes by prefix and suffix, L's first column and last
    row: the gradient of w[i] is Lᵀ dL Lᵀ at [i, i − 1].
    """
    block, head, _ = _program(H, 1)
    first, nodes, begins, _ = _piece(blocks, block)
    i = tl.arange(0, Q)
    inside = i < nodes
    node = first + STEP * i.to(tl.int64)
    K = tl.zeros((Q, Q), tl.float32)
    for start in range(0, S, SB):
        s = start + tl.arange(0, SB)
        C_Qs = _rows(C, node, S, s, S, inside)
        B_Qs = _rows(B, node, S, s, S, inside)
        K = tl.dot(C_Qs, tl.trans(B_Qs), K, input_precision=PRECISION)
    w = _weights(weight, node, i, nodes, begins, H, head)
    w_next = _weights(weight, node + STEP, i + 1, nodes, begins, H, head)
    suffix = tl.cumprod(w_next, 0, reverse=True)
    before = _products(w_next, i - 1, i)
    L = tl.where(i[:, None] == i[None, :], 1.0, w[:, None] * before)
    M = L * K
    d_prefix = tl.zeros((Q,), tl.float32)
    d_suffix = tl.zeros((Q,), tl.float32)
    d_through = 0.0
    for part in range(0, P, PB):
        p = part + tl.arange(0, PB)
        from_state = tl.zeros((Q, PB), tl.float32)
        for start in range(0, S, SB):
            C_Qs = _rows(C, node, S, start + tl.arange(0, SB), S, inside)
            at, exists = _of_state(block, head, start, part, H, S, P, SB, PB)
            E_sp = tl.load(E + at, mask=exists, other=0.0)
            from_state = tl.dot(C_Qs, E_sp, from_state, input_precision=PRECISION)
            d_through += tl.sum(E_sp * tl.load(F + at, mask=exists, other=0.0))
        dY_Qp = _rows(dY + head * P, node, H * P, p, P, inside)
        d_prefix += tl.sum(from_state * dY_Qp, 1)
        to_state = tl.zeros((Q, PB), tl.float32)
        for start in range(0, S, SB):
            B_Qs = _rows(B, node, S, start + tl.arange(0, SB), S, inside)
            at, exists = _of_state(block, head, start, part, H, S, P, SB, PB)
            F_sp = tl.load(F + at, mask=exists, other=0.0)
            to_state = tl.dot(B_Qs, F_sp, to_state, input_precision=PRECISION)
        d_suffix += tl.sum(to_state * _rows(V + head * P, node, H * P, p, P, inside), 1)
        dV_Qp = to_state * suffix[:, None]
        dV_Qp = tl.dot(tl.trans(M), dY_Qp, dV_Qp, input_precision=PRECISION)
        _put_rows(dV + head * P, dV_Qp, node, H * P, p, P, inside)
    dM = tl.zeros((Q, Q), tl.float32)
    for part in range(0, P, PB):
        p = part + tl.arange(0, PB)
        V_Qp = _rows(V + head * P, node, H * P, p, P, inside)
        dY_Qp = _rows(dY + head * P, node, H * P, p, P, inside)
        dM = tl.dot(dY_Qp, tl.trans(V_Qp), dM, input_precision=PRECISION)
    _put_rows(dK, dM * L, head.to(tl.int64) * N + node, Q, i, Q, inside)
    d_prefix = tl.where(i == Q - 1, d_prefix + d_through, d_prefix)
    dL = dM * K + tl.where(i[:, None] == Q - 1, d_suffix[None, :], 0.0)
    w_first = tl.sum(tl.where(i == 0, w, 0.0))
    dL += tl.where(i[None, :] == 0, (d_prefix * w_first)[:, None], 0.0)
    d_first = tl.sum(d_prefix * tl.sum(tl.where(i[None, :] == 0, L, 0.0), 1))
    dA = tl.dot(tl.trans(L), dL, input_precision=PRECISION) * before
    d_weight = tl.where(i == 0, d_first, tl.sum(dA, 1))
    tl.store(dw + node * H + head, d_weight.to(dw.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def key_gradients_kernel(
    weight,
    values,
    states,
    others,
    dK,
    blocks,
    d_keys,
    N,
    H,
    S,
    P,
    STEP: tl.constexpr,
    Q: tl.constexpr,
    SB: tl.constexpr,
    PB: tl.constexpr,
    PRECISION: tl.constexpr,
    ADJOINT: tl.constexpr,
):
    """Gradient of a part of a block's B from V, F and C, or of its C from dY, E and B (adjoint)."""
    block, number, _ = _program(tl.cdiv(S, SB), 1)
    first, nodes, begins, _ = _piece(blocks, block)
    i = tl.arange(0, Q)
    inside = i < nodes
    node = first + STEP * i.to(tl.int64)
    s = number * SB + tl.arange(0, SB)
    dK_QQ = tl.zeros((Q, Q), tl.float32)
    row = node
    for _ in range(H):
        dK_QQ += _rows(dK, row, Q, i, Q, inside)
        row += N
    if not ADJOINT:
        dK_QQ = tl.trans(dK_QQ)
    others_Qs = _rows(others, node, S, s, S, inside)
    d_keys_Qs = tl.dot(dK_QQ, others_Qs, input_precision=PRECISION)
    for head in range(H):
        if ADJOINT:
            decay = tl.cumprod(_weights(weight, node, i, nodes, begins, H, head), 0)
        else:
            w_next = _weights(weight, node + STEP, i + 1, nodes, begins, H, head)
            decay = tl.cumprod(w_next, 0, reverse=True)
        for part in range(0, P, PB):
            p = part + tl.arange(0, PB)
            values_Qp = _rows(values + head * P, node, H * P, p, P, inside) * decay[:, None]
            at, exists = _of_state(block, head, number * SB, part, H, S, P, SB, PB)
            states_ps = tl.trans(tl.load(states + at, mask=exists, other=0.0))
            d_keys_Qs = tl.dot(values_Qp, states_ps, d_keys_Qs, input_precision=PRECISION)
    _put_rows(d_keys, d_keys_Qs, node, S, s, S, inside)


@triton.jit
@no_type_check
def _contribution(
    weight,
    keys,
    values,
    first,
    nodes,
    begins,
    start,
    head,
    row,
    column,
    H,
    S,
    P,
    STEP: tl.constexpr,
    Q: tl.constexpr,
    SB: tl.constexpr,
    PB: tl.constexpr,
    PRECISION: tl.constexpr,
    ADJOINT: tl.constexpr,
):
    """A block's factor on the state, and what it adds: Bᵀ (suffix · V), or Cᵀ (prefix · dY)."""
    k = start + tl.arange(0, Q)
    node = first + STEP * k.to(tl.int64)
    keys_Qs = _rows(keys, node, S, row + tl.arange(0, SB), S, k < nodes)
    p = column + tl.arange(0, PB)
    values_Qp = _rows(values + head * P, node, H * P, p, P, k < nodes)
    w = _weights(weight, node, k, nodes, begins, H, head)
    prefix = tl.cumprod(w, 0)
    if ADJOINT:
        decay = prefix
    else:
        end = tl.minimum(nodes, start + Q)
        w_next = _weights(weight, node + STEP, k + 1, end, begins, H, head)
        decay = tl.cumprod(w_next, 0, reverse=True)
    own = tl.dot(tl.trans(keys_Qs), decay[:, None] * values_Qp, input_precision=PRECISION)
    return _last(prefix, tl.arange(0, Q), Q), own


@triton.jit
@no_type_check
def _program(heads, parts):
    """Piece, head and part of this program; the programs of a piece stand side by side."""
    program = tl.program_id(0)
    return program // parts // heads, program // parts % heads, program % parts


@triton.jit
@no_type_check
def _part_of_state(H, S, P, SB: tl.constexpr, PB: tl.constexpr):
    """Span, head, first row and first column of the state of this program."""
    columns = tl.cdiv(P, PB)
    span, head, part = _program(H, tl.cdiv(S, SB) * columns)
    return span, head, part // columns * SB, part % columns * PB


@triton.jit
@no_type_check
def _piece(table, number):
    """First node, nodes, whether a chain begins, first block: see `_Tables`."""
    row = table + 4 * number
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit
@no_type_check
def _rows(x, node, stride, column, columns, inside):
    """Rows of a matrix, one per node; 0 outside, where nothing is read."""
    mask = inside[:, None] & (column < columns)[None, :]
    return tl.load(x + node[:, None] * stride + column[None, :], mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
@no_type_check
def _put_rows(x, rows, node, stride, column, columns, inside):
    mask = inside[:, None] & (column < columns)[None, :]
    tl.store(x + node[:, None] * stride + column[None, :], rows.to(x.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _weights(weight, node, k, end, begins, H, head):
    """Weight of the edge into node k of a piece: 0 where its chain begins, 1 from `end` on."""
    read = (k < end) & ((k > 0) | (begins == 0))
    w = tl.load(weight + node * H + head, mask=read, other=0.0).to(tl.float32)
    return tl.where(k < end, w, 1.0)


@triton.jit
@no_type_check
def _decays(decay, chains, chain, walked, H, head, ADJOINT: tl.constexpr):
    """Factors of the spans of a chain on the state, 1 where there is no such span."""
    first = tl.load(chains + 2 * chain)
    spans = tl.load(chains + 2 * chain + 1)
    span = first + (spans - 1 - walked if ADJOINT else walked)
    there = (walked >= 0) & (walked < spans)
    return tl.load(decay + span * H + head, mask=there, other=1.0)


@triton.jit
@no_type_check
def _products(w_next, row, column):
    """Products of the weights of nodes column + 1 … row, 1 on the diagonal; 0 above it.

    The scan runs along a row, so along the threads of a warp, without shared memory.
    """
    lower = column[None, :] < row[:, None]
    product = tl.cumprod(tl.where(lower, w_next[None, :], 1.0), 1, reverse=True)
    return tl.where(column[None, :] <= row[:, None], product, 0.0)


@triton.jit
@no_type_check
def _last(x, i, Q: tl.constexpr):
    return tl.sum(tl.where(i == Q - 1, x, 0.0))


@triton.jit
@no_type_check
def _of_state(
    piece,
    head,
    row,
    column,
    H,
    S,
    P,
    SB: tl.constexpr,
    PB: tl.constexpr,
):
    """Places of a state's SB × PB numbers from (row, column) on, and which of them exist."""
    s = row + tl.arange(0, SB)[:, None]
    p = column + tl.arange(0, PB)[None, :]
    return ((piece.to(tl.int64) * H + head) * S + s) * P + p, (s < S) & (p < P)
