"""Y = ((I − A)⁻¹ ⊙ C Bᵀ) V on a GPU: (I − A)⁻¹ is formed, then masked and multiplied tile by tile.

With M = dY Vᵀ and K = C Bᵀ the gradients are dV = (L ⊙ K)ᵀ dY, dC = (M ⊙ L) B, dB = (M ⊙ L)ᵀ C
and, on an edge from j to i, dA = ⟨T_i, L_j⟩ with T = (I − A)⁻ᵀ (M ⊙ K).

Shapes: N nodes, E edges, G graphs of n nodes, H heads, S state, P head dimension.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from kernels.autograd import differentiate_by
from kernels.launch import cdiv, dot_precision, launch, next_power_of_2
from kernels.resolvent.schedule import LANES, Schedule
from kernels.resolvent.triton_backend.factors import (
    BLOCK_GRAPH,
    BLOCK_LANE,
    NODES,
    ROW_SIZE,
    ROW_START,
    factorise,
    part,
    resolvent_rows,
    solve_rows_,
)


def row_form(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    schedule: Schedule,
) -> Float[Tensor, "N H P"]:
    """As `torch_backend.row_form`, in V's dtype, accumulated in float32.

    Raises:
        ValueError: the matrices of the graphs have 2³¹ numbers or more together.
    """
    if schedule.numbers >= 2**31:
        raise ValueError(
            f"(I − A)⁻¹ of these graphs has {schedule.numbers:,} numbers a head: use form='state'."
        )
    sizes = [int(number) for number in schedule[1:]]
    return _row(edge_weight, B, C, V, edge_index, schedule.table, sizes)[0]


@torch.library.custom_op("resolvent::row", mutates_args=())
def _row(
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    edge_index: Tensor,
    table: Tensor,
    sizes: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Y, and for the backward pass (I − A)⁻¹ and the factors."""
    schedule = Schedule(table, *sizes)
    B, C, V = (x.contiguous() for x in (B, C, V))
    values = factorise(weight, schedule)
    L = resolvent_rows(values, schedule)
    Y = torch.empty_like(V)
    _mix(L, C, B, V, Y, schedule, transposed=False)
    return Y, L, values


@_row.register_fake
def _(weight, B, C, V, edge_index, table, sizes):
    schedule, heads = Schedule(table, *sizes), V.shape[1]
    L, values = (
        V.new_empty(heads, size, dtype=torch.float32) for size in (schedule.numbers, schedule.slots)
    )
    return torch.empty_like(V, memory_format=torch.contiguous_format), L, values


@torch.library.custom_op("resolvent::row_backward", mutates_args=())
def _row_backward(
    dY: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    edge_index: Tensor,
    table: Tensor,
    L: Tensor,
    values: Tensor,
    sizes: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    schedule = Schedule(table, *sizes)
    B, C, V, dY = (x.contiguous() for x in (B, C, V, dY))
    dV, M = torch.empty_like(V), torch.empty_like(L)
    _mix(L, B, C, dY, dV, schedule, transposed=True)
    dC = _project(L, dY, V, C, B, schedule, M)
    dB = _project(L, V, dY, B, C, schedule, None)
    solve_rows_(M, values, schedule)
    d_weight = edge_products(M, L, edge_index, schedule, width=None)
    return d_weight.to(weight.dtype), dB, dC, dV


differentiate_by(_row, _row_backward, gradients=4)


def _mix(
    L: Tensor, left: Tensor, right: Tensor, V: Tensor, Y: Tensor, schedule: Schedule,
    transposed: bool,
) -> None:  # fmt: skip
    """Y = (L ⊙ left rightᵀ) V, or with Lᵀ."""
    _, heads, P = V.shape
    S = left.shape[1]
    columns, precision = min(64, _power(P)), dot_precision(V.dtype)
    launch(
        mix_kernel,
        (schedule.blocks, heads, cdiv(P, columns)),
        *(L, left, right, V, Y, schedule.table, schedule.numbers, heads, S, P),
        TRANSPOSED=transposed,
        ROWS=LANES,
        STATES=_states(S, precision),
        COLUMNS=columns,
        PRECISION=precision,
    )


def _project(
    L: Tensor, x: Tensor, y: Tensor, left: Tensor, right: Tensor, schedule: Schedule,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    """Σ over heads of (x yᵀ ⊙ L) right, in left's dtype; x yᵀ ⊙ left rightᵀ goes to `out`.

    Without `out` it is Lᵀ instead of L.
    """
    nodes, heads, P = x.shape
    S, precision = left.shape[1], dot_precision(x.dtype)
    states = _states(S, precision)
    of_heads = L.new_empty(heads, nodes, S)
    launch(
        project_kernel,
        (schedule.blocks, heads, cdiv(S, states)),
        *(L, x, y, left, right, of_heads, L if out is None else out),
        *(schedule.table, schedule.numbers, nodes, heads, S, P),
        TRANSPOSED=out is None,
        ROWS=LANES,
        STATES=states,
        COLUMNS=min(64, _power(P)),
        PRECISION=precision,
    )
    return of_heads.sum(0).to(left.dtype)


def edge_products(
    T: Tensor, L: Tensor, edge_index: Tensor, schedule: Schedule, width: int | None
) -> Tensor:
    """⟨T[target], L[source]⟩ of every edge [E, H], over the rows of n or of `width` numbers."""
    heads, edges = len(L), edge_index.shape[1]
    products = L.new_empty(edges, heads)
    rows = 16
    launch(
        edge_kernel,
        (cdiv(edges, rows), heads),
        *(T, L, edge_index.contiguous(), products, schedule.table),
        *(L[0].numel(), edges, heads, width or 0),
        ROW_FORM=width is None,
        ROWS=rows,
        COLUMNS=64,
    )
    return products


def _power(size: int) -> int:
    """The power of two that covers it, as products of tiles need it."""
    return max(16, next_power_of_2(size))


def _states(S: int, precision: str) -> int:
    """How many states at a time: three products instead of one take twice the registers."""
    return min(32 if precision == "tf32x3" else 64, _power(S))


@triton.jit
@no_type_check
def _tile(x, row, there, col, stop, stride):
    """x[row, col] in float32, zero where there is no such row or column."""
    at = x + row[:, None].to(tl.int64) * stride + col[None, :]
    return tl.load(at, mask=there[:, None] & (col < stop)[None, :], other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _kernel_tile(
    left, right, i, in_i, j, in_j, S, STATES: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """left rightᵀ of rows i and j."""
    K = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    for first in range(0, S, STATES):
        s = first + tl.arange(0, STATES)
        other = tl.trans(_tile(right, j, in_j, s, S, S))
        K += tl.dot(_tile(left, i, in_i, s, S, S), other, input_precision=PRECISION)
    return K


@triton.jit
@no_type_check
def _resolvent_tile(L, T, first, i, in_i, j, in_j, TRANSPOSED: tl.constexpr):
    """L or Lᵀ at rows i and columns j."""
    if TRANSPOSED:
        start = tl.load(part(T, ROW_START) + j, mask=in_j, other=0)
        at = L + start[:, None].to(tl.int64) + (i - first)[None, :]
        return tl.trans(tl.load(at, mask=in_j[:, None] & in_i[None, :], other=0.0))
    else:
        start = tl.load(part(T, ROW_START) + i, mask=in_i, other=0)
        at = L + start[:, None].to(tl.int64) + (j - first)[None, :]
        return tl.load(at, mask=in_i[:, None] & in_j[None, :], other=0.0)


@triton.jit
@no_type_check
def _block(T, number, ROWS: tl.constexpr):
    """First and last node of a block's graph, and the block's own nodes."""
    graph = tl.load(part(T, BLOCK_GRAPH) + number)
    first = tl.load(part(T, NODES) + graph)
    last = tl.load(part(T, NODES) + graph + 1)
    i = first + tl.load(part(T, BLOCK_LANE) + number) + tl.arange(0, ROWS)
    return first, last, i


@triton.jit(do_not_specialize=["numbers"])
@no_type_check
def mix_kernel(
    L,
    left,
    right,
    V,
    Y,
    T,
    numbers,
    heads,
    S,
    P,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    STATES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program takes ROWS nodes of one graph, one head, and COLUMNS of its P."""
    first, last, i = _block(T, tl.program_id(0), ROWS)
    head = tl.program_id(1)
    in_i = i < last
    L += head.to(tl.int64) * numbers
    p = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        j = start + tl.arange(0, ROWS)
        in_j = j < last
        masked = _kernel_tile(left, right, i, in_i, j, in_j, S, STATES, PRECISION)
        masked *= _resolvent_tile(L, T, first, i, in_i, j, in_j, TRANSPOSED)
        v = _tile(V + head * P, j, in_j, p, P, heads * P)
        total += tl.dot(masked, v, input_precision=PRECISION)
    at = Y + i[:, None].to(tl.int64) * heads * P + head * P + p[None, :]
    tl.store(at, total.to(Y.dtype.element_ty), mask=in_i[:, None] & (p < P)[None, :])


@triton.jit(do_not_specialize=["numbers", "nodes"])
@no_type_check
def project_kernel(
    L,
    x,
    y,
    left,
    right,
    projected,
    out,
    T,
    numbers,
    nodes,
    heads,
    S,
    P,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    STATES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program takes ROWS nodes of one graph, one head, and STATES of its S."""
    first, last, i = _block(T, tl.program_id(0), ROWS)
    head = tl.program_id(1)
    in_i = i < last
    L += head.to(tl.int64) * numbers
    s = tl.program_id(2) * STATES + tl.arange(0, STATES)
    total = tl.zeros([ROWS, STATES], tl.float32)
    for start in range(first, last, ROWS):
        j = start + tl.arange(0, ROWS)
        in_j = j < last
        M = tl.zeros([ROWS, ROWS], tl.float32)
        for column in range(0, P, COLUMNS):
            p = column + tl.arange(0, COLUMNS)
            of_j = tl.trans(_tile(y + head * P, j, in_j, p, P, heads * P))
            of_i = _tile(x + head * P, i, in_i, p, P, heads * P)
            M += tl.dot(of_i, of_j, input_precision=PRECISION)
        masked = M * _resolvent_tile(L, T, first, i, in_i, j, in_j, TRANSPOSED)
        total += tl.dot(masked, _tile(right, j, in_j, s, S, S), input_precision=PRECISION)
        if not TRANSPOSED:  # noqa: SIM102 (known when compiling, unlike the next one)
            if tl.program_id(2) == 0:
                M *= _kernel_tile(left, right, i, in_i, j, in_j, S, STATES, PRECISION)
                row = tl.load(part(T, ROW_START) + i, mask=in_i, other=0).to(tl.int64)
                at = out + head.to(tl.int64) * numbers + row[:, None] + (j - first)[None, :]
                tl.store(at, M, mask=in_i[:, None] & in_j[None, :])
    at = projected + (head.to(tl.int64) * nodes + i[:, None]) * S + s[None, :]
    tl.store(at, total, mask=in_i[:, None] & (s < S)[None, :])


@triton.jit(do_not_specialize=["edges"])
@no_type_check
def edge_kernel(
    X,
    Z,
    edge_index,
    products,
    T,
    numbers_of_a_head,
    edges,
    heads,
    width,
    ROW_FORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program takes ROWS edges and one head."""
    edge = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    there = edge < edges
    source = tl.load(edge_index + edge, mask=there, other=0)
    target = tl.load(edge_index + edges + edge, mask=there, other=0)
    X += head * numbers_of_a_head
    Z += head * numbers_of_a_head
    if ROW_FORM:
        starts = part(T, ROW_START)
        x = X + tl.load(starts + target, mask=there, other=0).to(tl.int64)
        z = Z + tl.load(starts + source, mask=there, other=0).to(tl.int64)
        widths = tl.load(part(T, ROW_SIZE) + source, mask=there, other=0)
    else:
        x, z = X + target * width, Z + source * width
        widths = tl.where(there, width, 0)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, tl.max(widths), COLUMNS):
        lane = first + tl.arange(0, COLUMNS)
        inside = lane[None, :] < widths[:, None]
        of_target = tl.load(x[:, None] + lane[None, :], mask=inside, other=0.0)
        of_source = tl.load(z[:, None] + lane[None, :], mask=inside, other=0.0)
        total += tl.sum(of_target * of_source, axis=1)
    tl.store(products + edge.to(tl.int64) * heads + head, total, mask=there)
