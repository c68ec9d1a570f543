"""LU of I − A of every graph and head, and solves with it: one program walks a `Schedule`.

A program's threads wait for each other between levels only, so nothing depends on how they are
scheduled: results are the same bit by bit, and there are no atomics. Loops must not load ahead
(num_stages=1), for they read what the same program has written.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import cdiv, launch
from kernels.resolvent.schedule import (
    FRONT,
    FRONT_DIAGONAL,
    HEADER,
    LANES,
    RECIPROCAL,
    Schedule,
)

ROWS = 16  # of a level that a program works on together

NODES = tl.constexpr(HEADER.index("nodes"))
ROW_START = tl.constexpr(HEADER.index("row_start"))
ROW_SIZE = tl.constexpr(HEADER.index("row_size"))
BLOCK_GRAPH = tl.constexpr(HEADER.index("block_graph"))
BLOCK_LANE = tl.constexpr(HEADER.index("block_lane"))
VALUES = tl.constexpr(HEADER.index("levels"))
FRONTS = tl.constexpr(HEADER.index("front"))
HALVES = tl.constexpr(HEADER.index("lower.levels"))
PARTS_OF_A_HALF = tl.constexpr(7)
IS_RECIPROCAL = tl.constexpr(RECIPROCAL)
IS_IN_FRONT = tl.constexpr(FRONT)
IS_FRONT_DIAGONAL = tl.constexpr(FRONT_DIAGONAL)


def factorise(weight_EH: Tensor, schedule: Schedule) -> Tensor:
    """The factors' values [H, slots] in float32, as solves add them."""
    heads = weight_EH.shape[1]
    values = weight_EH.new_empty(heads, schedule.slots, dtype=torch.float32)
    launch(
        factorise_kernel,
        (schedule.graphs, heads),
        *(values, weight_EH.contiguous(), schedule.table, schedule.slots, heads),
        BLOCK=128,
        TILE=schedule.tile,
    )
    return values


def resolvent_rows(values: Tensor, schedule: Schedule) -> Tensor:
    """(I − A)⁻¹ of all graphs [H, Σ n²], the rows of a matrix end to end."""
    L = values.new_empty(len(values), schedule.numbers)
    _solve(L, values, schedule, transposed=False, identity=True)
    return L


def solve_rows_(X: Tensor, values: Tensor, schedule: Schedule) -> None:
    """(I − A)⁻ᵀ X of all graphs in the place of X [H, Σ n²]."""
    _solve(X, values, schedule, transposed=True, identity=False)


def _solve(X: Tensor, values: Tensor, schedule: Schedule, transposed: bool, identity: bool) -> None:
    launch(
        solve_kernel,
        (schedule.blocks, 1, len(values)),
        *(X, values, schedule.table, schedule.slots, schedule.numbers, 0),
        TRANSPOSED=transposed,
        ROW_FORM=True,
        IDENTITY=identity,
        ROWS=ROWS,
        COLUMNS=LANES,
        TILE=schedule.tile,
    )


def solve_states_(X_HNW: Tensor, values: Tensor, schedule: Schedule, transposed: bool) -> None:
    """(I − A)⁻¹ X or (I − A)⁻ᵀ X in the place of X, W columns a node."""
    heads, nodes, width = X_HNW.shape
    columns = 64 if width > LANES else LANES
    launch(
        solve_kernel,
        (schedule.graphs, cdiv(width, columns), heads),
        *(X_HNW, values, schedule.table, schedule.slots, nodes * width, width),
        TRANSPOSED=transposed,
        ROW_FORM=False,
        IDENTITY=False,
        ROWS=ROWS,
        COLUMNS=columns,
        TILE=schedule.tile,
    )


@triton.jit
@no_type_check
def part(T, number):
    """Where a part of the table begins."""
    return T + tl.load(T + number)


@triton.jit(do_not_specialize=["slots"])
@no_type_check
def factorise_kernel(values, weight, T, slots, heads, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """A program takes one head of one graph.

    A value is that of I − A less the sum of left · right / pivot over the pivots before it. Both
    triangles stay unscaled meanwhile, so that a level reads nothing that it writes.
    """
    graph, head = tl.program_id(0), tl.program_id(1)
    values += head.to(tl.int64) * slots
    F = values + tl.load(part(T, FRONTS + 2) + graph)
    front = part(T, FRONTS) + graph
    m = tl.load(front + 1) - tl.load(front)
    r, c = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    for i in range(0, m, TILE):
        for j in range(0, m, TILE):
            tl.store(F + (i + r) * m + j + c, tl.where(i + r == j + c, 1.0, 0.0))
    tl.debug_barrier()

    levels, starts = part(T, VALUES) + graph, part(T, VALUES + 1)
    targets, kinds = part(T, VALUES + 2), part(T, VALUES + 3)
    edge_starts, edges = part(T, VALUES + 4), part(T, VALUES + 5)
    term_starts = part(T, VALUES + 6)
    lefts, rights, pivots = part(T, VALUES + 7), part(T, VALUES + 8), part(T, VALUES + 9)
    first_level, last_level = tl.load(levels), tl.load(levels + 1)
    for level in range(first_level, last_level):
        end = tl.load(starts + level + 1)
        for first in range(tl.load(starts + level), end, BLOCK):
            k = first + tl.arange(0, BLOCK)
            there = k < end
            kind = tl.load(kinds + k, mask=there, other=0)
            diagonal = (kind == IS_RECIPROCAL) | (kind == IS_FRONT_DIAGONAL)
            value = tl.where(diagonal, 1.0, 0.0)
            start = tl.load(edge_starts + k, mask=there, other=0)
            count = tl.load(edge_starts + k + 1, mask=there, other=0) - start
            for n in range(0, tl.max(count)):
                here = n < count
                edge = tl.load(edges + start + n, mask=here, other=0).to(tl.int64)
                a = tl.load(weight + edge * heads + head, mask=here, other=0.0)
                value -= a.to(tl.float32)
            start = tl.load(term_starts + k, mask=there, other=0)
            count = tl.load(term_starts + k + 1, mask=there, other=0) - start
            for n in range(0, tl.max(count)):
                here = n < count
                left = tl.load(lefts + start + n, mask=here, other=0)
                right = tl.load(rights + start + n, mask=here, other=0)
                pivot = tl.load(pivots + start + n, mask=here, other=0)
                product = tl.load(values + left, mask=here, other=0.0)
                product *= tl.load(values + pivot, mask=here, other=0.0)
                value -= product * tl.load(values + right, mask=here, other=0.0)
            is_pivot = there & (kind == IS_RECIPROCAL)
            value = tl.where(is_pivot, 1.0 / tl.where(is_pivot, value, 1.0), value)
            tl.store(values + tl.load(targets + k, mask=there, other=0), value, mask=there)
        tl.debug_barrier()

    end = tl.load(starts + last_level)
    for first in range(tl.load(starts + first_level), end, BLOCK):
        k = first + tl.arange(0, BLOCK)
        kind = tl.load(kinds + k, mask=k < end, other=IS_IN_FRONT)
        off = kind >= 0
        target = tl.load(targets + k, mask=off, other=0)
        value = tl.load(values + target, mask=off, other=0.0)
        value *= tl.load(values + kind, mask=off, other=0.0)
        tl.store(values + target, -value, mask=off)  # a solve subtracts, a sweep adds
    _factorise_front(F, m, TILE)


@triton.jit
@no_type_check
def _factorise_front(F, m, TILE: tl.constexpr):
    """Block LU of F [m, m] in place: unit lower tiles, inverted tiles on the diagonal."""
    r, c = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    at = r * m + c
    for k in range(0, m, TILE):
        inverse = _inverted(tl.load(F + k * m + k + at), TILE)
        tl.store(F + k * m + k + at, inverse)
        for i in range(k + TILE, m, TILE):
            below = F + i * m + k + at
            tl.store(below, tl.dot(tl.load(below), inverse, input_precision="tf32x3"))
        tl.debug_barrier()
        for i in range(k + TILE, m, TILE):
            left = tl.load(F + i * m + k + at)
            for j in range(k + TILE, m, TILE):
                here = F + i * m + j + at
                right = tl.load(F + k * m + j + at)
                tl.store(here, tl.load(here) - tl.dot(left, right, input_precision="tf32x3"))
        tl.debug_barrier()


@triton.jit
@no_type_check
def _inverted(A, TILE: tl.constexpr):
    """A⁻¹ by Gauss and Jordan's elimination without pivoting."""
    r, c = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    for k in range(TILE):
        row = tl.sum(tl.where(r == k, A, 0.0), axis=0)[None, :]
        col = tl.sum(tl.where(c == k, A, 0.0), axis=1)[:, None]
        reciprocal = 1.0 / tl.sum(tl.sum(tl.where((r == k) & (c == k), A, 0.0), axis=1), axis=0)
        others = tl.where(c == k, 0.0, A) - tl.where(c == k, reciprocal, row * reciprocal) * col
        own = tl.where(c == k, reciprocal, row * reciprocal)
        A = tl.where(r == k, own, others)
    return A


@triton.jit(do_not_specialize=["slots"])
@no_type_check
def solve_kernel(
    X,
    values,
    T,
    slots,
    numbers_of_a_head,
    width,
    TRANSPOSED: tl.constexpr,
    ROW_FORM: tl.constexpr,
    IDENTITY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program takes some columns of one graph's right side, for one head, in place.

    In the row form a graph of n nodes has n columns, else every node has `width`.
    """
    head = tl.program_id(2)
    values += head.to(tl.int64) * slots
    X += head.to(tl.int64) * numbers_of_a_head
    if ROW_FORM:
        graph = tl.load(part(T, BLOCK_GRAPH) + tl.program_id(0))
        lane = tl.load(part(T, BLOCK_LANE) + tl.program_id(0)) + tl.arange(0, COLUMNS)
        first = tl.load(part(T, NODES) + graph)
        width = tl.load(part(T, NODES) + graph + 1) - first
    else:
        graph = tl.program_id(0)
        lane = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if IDENTITY:
        for i in range(first, first + width, ROWS):
            node = i + tl.arange(0, ROWS)
            at, inside = _rows(X, T, node, node < first + width, lane, width, ROW_FORM)
            own = (node - first)[:, None] == lane[None, :]
            tl.store(at, tl.where(own, 1.0, 0.0), mask=inside)
        tl.debug_barrier()
    half: tl.constexpr = HALVES + (2 * PARTS_OF_A_HALF if TRANSPOSED else 0)
    _sweep(X, values, T, graph, lane, width, half, ROW_FORM, ROWS)
    _solve_front(X, values, T, graph, lane, width, TRANSPOSED, ROW_FORM, TILE)
    _sweep(X, values, T, graph, lane, width, half + PARTS_OF_A_HALF, ROW_FORM, ROWS)


@triton.jit
@no_type_check
def _rows(X, T, node, there, lane, width, ROW_FORM: tl.constexpr):
    """Where these columns of some nodes' rows stand, and which of them exist."""
    if ROW_FORM:
        start = tl.load(part(T, ROW_START) + node, mask=there, other=0).to(tl.int64)
    else:
        start = node.to(tl.int64) * width
    return X + start[:, None] + lane[None, :], there[:, None] & (lane < width)[None, :]


@triton.jit
@no_type_check
def _sweep(
    X, values, T, graph, lane, width, half, ROW_FORM: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Level by level, rows become weighted sums of themselves and of rows that are done."""
    levels, starts = part(T, half) + graph, part(T, half + 1)
    rows, owns, term_starts = part(T, half + 2), part(T, half + 3), part(T, half + 4)
    terms, cols = part(T, half + 5), part(T, half + 6)
    for level in range(tl.load(levels), tl.load(levels + 1)):
        end = tl.load(starts + level + 1)
        for first in range(tl.load(starts + level), end, ROWS):
            k = first + tl.arange(0, ROWS)
            there = k < end
            node = tl.load(rows + k, mask=there, other=0)
            own = tl.load(owns + k, mask=there, other=-1)
            at, inside = _rows(X, T, node, there, lane, width, ROW_FORM)
            x = tl.load(at, mask=inside, other=0.0)
            x *= tl.load(values + own, mask=own >= 0, other=1.0)[:, None]
            start = tl.load(term_starts + k, mask=there, other=0)
            count = tl.load(term_starts + k + 1, mask=there, other=0) - start
            for n in range(0, tl.max(count)):
                here = n < count
                term = tl.load(terms + start + n, mask=here, other=0)
                factor = tl.load(values + term, mask=here, other=0.0)
                col = tl.load(cols + start + n, mask=here, other=0)
                from_there, inside_there = _rows(X, T, col, here, lane, width, ROW_FORM)
                x += factor[:, None] * tl.load(from_there, mask=inside_there, other=0.0)
            tl.store(at, x, mask=inside)
        tl.debug_barrier()


@triton.jit
@no_type_check
def _solve_front(
    X,
    values,
    T,
    graph,
    lane,
    width,
    TRANSPOSED: tl.constexpr,
    ROW_FORM: tl.constexpr,
    TILE: tl.constexpr,
):
    """Solve with the front's block LU: down with its first triangle, up with its second one."""
    begin = tl.load(part(T, FRONTS) + graph)
    m = tl.load(part(T, FRONTS) + graph + 1) - begin
    nodes = part(T, FRONTS + 1) + begin
    F = values + tl.load(part(T, FRONTS + 2) + graph)
    r = tl.arange(0, TILE)
    at = (r[None, :] * m + r[:, None]) if TRANSPOSED else (r[:, None] * m + r[None, :])
    for step in range(0, 2 * m, TILE):
        down = step < m
        i = tl.where(down, step, 2 * m - TILE - step)
        node = tl.load(nodes + i + r)
        rows, inside = _rows(X, T, node, node >= 0, lane, width, ROW_FORM)
        x = tl.load(rows, mask=inside, other=0.0)
        for j in range(tl.where(down, 0, i + TILE), tl.where(down, i, m), TILE):
            other = tl.load(nodes + j + r)
            there, known = _rows(X, T, other, other >= 0, lane, width, ROW_FORM)
            tile = (j * m + i) if TRANSPOSED else (i * m + j)
            x -= tl.dot(
                tl.load(F + tile + at),
                tl.load(there, mask=known, other=0.0),
                input_precision="tf32x3",
            )
        if down == TRANSPOSED:  # the triangle whose diagonal is not one
            x = tl.dot(tl.load(F + i * m + i + at), x, input_precision="tf32x3")
        tl.store(rows, x, mask=inside)
        tl.debug_barrier()
