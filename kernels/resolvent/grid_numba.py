"""Sums of grids' resolvent products on a CPU in float32: the loops, which torch has no ops for.

Numba compiles what is called and keeps the code beside this file. Each call does one task and
writes what no other task writes, so that threads may share the tasks, and no result depends on how
many threads there are.

Shapes as in `kernels.resolvent.grid`, with D DAGs, of which those that share B and C are one of N
groups. Arrays are contiguous. Rows r and columns k are counted from a DAG's root, nodes v = 0 … n−1
in the image: `corners` [D, 3] holds the node at the root, and the steps down and along the grid
from there. What a weight would let enter a grid is zero. A block is `STATES` × `VALUES` of a head's
S × P states, vectors that stay in registers; blocks of B and C are [S / STATES, n · STATES].
"""

from typing import no_type_check

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16  # floats of a vector: of AVX-512; LLVM splits it where vectors are shorter
VECTORS = 2
STATES = 4
VALUES = VECTORS * LANES
BLOCK = STATES * VALUES
BAND = 2**17  # numbers of the states kept at a time, a quarter of a core's second cache

compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
# Sums may be taken in any order, the same at every call.
reordered = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"}
)


class Vectors(types.Type):
    """Type of `count` vectors of floats in registers."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(name=f"Vectors({count})")


_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_BLOCK, _VALUES = Vectors(STATES * VECTORS), Vectors(VECTORS)


@register_model(Vectors)
class _VectorsModel(models.PrimitiveModel):
    def __init__(self, manager, kind: Vectors):
        super().__init__(manager, kind, ir.ArrayType(_VECTOR, kind.count))


def _unpacked(builder, vectors) -> list:
    return [builder.extract_value(vectors, i) for i in range(vectors.type.count)]


def _packed(builder, vectors: list):
    packed = ir.Constant(ir.ArrayType(_VECTOR, len(vectors)), ir.Undefined)
    for i, vector in enumerate(vectors):
        packed = builder.insert_value(packed, vector, i)
    return packed


def _shuffled(builder, x, y, places: list[int]):
    """The vector of these places of x and, counted on, y."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
    return builder.shuffle_vector(x, y, mask)


def _everywhere(builder, number):
    """The vector of one number."""
    first = ir.Constant(ir.IntType(32), 0)
    x = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, first)
    return _shuffled(builder, x, x, [0] * LANES)


def _multiply_add(builder, x, y, z):
    """x y + z."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    name = f"llvm.fmuladd.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])


def _address(context, builder, array_type, array, at):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [at])


def _vector_at(builder, address, i: int, lanes: int):
    """Address of the i-th vector from an address on."""
    at = builder.gep(address, [ir.Constant(ir.IntType(64), i * lanes)])
    return builder.bitcast(at, ir.VectorType(ir.FloatType(), lanes).as_pointer())


def _load(builder, address, i: int = 0, lanes: int = LANES):
    return builder.load(_vector_at(builder, address, i, lanes), align=4)


def _store(builder, vector, address, i: int = 0):
    builder.store(vector, _vector_at(builder, address, i, vector.type.count), align=4)


def _numbers(builder, address) -> list:
    """Vectors of each of a node's `STATES` numbers."""
    at = [builder.gep(address, [ir.Constant(ir.IntType(64), s)]) for s in range(STATES)]
    return [_everywhere(builder, builder.load(x)) for x in at]


def _loaded(kind: Vectors, array):
    def code(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args)
        return _packed(builder, [_load(builder, address, i) for i in range(kind.count)])

    return kind(array, types.int64), code


@intrinsic
@no_type_check
def zero_block(typing):
    """A block of zeros."""
    return _BLOCK(), lambda context, builder, *_: ir.Constant(context.get_value_type(_BLOCK), None)


@intrinsic
@no_type_check
def load_block(typing, array, at):
    """The block array[at:]."""
    return _loaded(_BLOCK, array)


@intrinsic
@no_type_check
def load_values(typing, array, at):
    """A node's values, array[at:]."""
    return _loaded(_VALUES, array)


@intrinsic
@no_type_check
def store(typing, array, at, vectors):
    """array[at:] = vectors."""

    def code(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args[:2])
        for i, vector in enumerate(_unpacked(builder, args[2])):
            _store(builder, vector, address, i)
        return context.get_dummy_value()

    return types.void(array, types.int64, vectors), code


@intrinsic
@no_type_check
def next_block(typing, along, h, down, g, x, at, values):
    """along · h + down · g + x[at : at + STATES] ⊗ values."""

    def code(context, builder, signature, args):
        along, down = (_everywhere(builder, args[i]) for i in (0, 2))
        h, g, values = (_unpacked(builder, args[i]) for i in (1, 3, 6))
        numbers = _numbers(builder, _address(context, builder, signature.args[4], *args[4:6]))
        new = []
        for i in range(_BLOCK.count):
            own = builder.fmul(numbers[i // VECTORS], values[i % VECTORS])
            from_above = _multiply_add(builder, down, g[i], own)
            new.append(_multiply_add(builder, along, h[i], from_above))
        return _packed(builder, new)

    single = types.float32
    return _BLOCK(single, _BLOCK, single, _BLOCK, x, types.int64, _VALUES), code


@intrinsic
@no_type_check
def read(typing, values, x, at, h):
    """values + x[at : at + STATES] h."""

    def code(context, builder, signature, args):
        values, h = (_unpacked(builder, args[i]) for i in (0, 3))
        numbers = _numbers(builder, _address(context, builder, signature.args[1], *args[1:3]))
        for i in range(_BLOCK.count):
            p = i % VECTORS
            values[p] = _multiply_add(builder, numbers[i // VECTORS], h[i], values[p])
        return _packed(builder, values)

    return _VALUES(_VALUES, x, types.int64, _BLOCK), code


@intrinsic
@no_type_check
def add_products(typing, array, at, h, values):
    """array[at : at + STATES] += h values, summed over p."""

    def code(context, builder, signature, args):
        h, values = (_unpacked(builder, args[i]) for i in (2, 3))
        sums = []
        for s in range(STATES):
            total = builder.fmul(h[s * VECTORS], values[0])
            for p in range(1, VECTORS):
                total = _multiply_add(builder, h[s * VECTORS + p], values[p], total)
            sums.append(total)
        address = _address(context, builder, signature.args[0], *args[:2])
        total = builder.fadd(_sums_of_four(builder, *sums), _load(builder, address, 0, STATES))
        _store(builder, total, address)
        return context.get_dummy_value()

    return types.void(array, types.int64, _BLOCK, _VALUES), code


def _sums_of_four(builder, a, b, c, d):
    """The vector of four vectors' sums, within quarters first as these cross no 128 bits."""

    def added(x, y, left: tuple, right: tuple):
        halves = ([q + i for q in range(0, LANES, 4) for i in places] for places in (left, right))
        return builder.fadd(*(_shuffled(builder, x, y, places) for places in halves))

    b_of, next_of = LANES, LANES + 1
    ab, cd = (
        added(x, y, (0, b_of, 1, next_of), (2, b_of + 2, 3, next_of + 2))
        for x, y in ((a, b), (c, d))
    )
    total = added(ab, cd, (0, 1, b_of, next_of), (2, 3, b_of + 2, next_of + 2))
    while total.type.count > STATES:
        half = total.type.count // 2
        parts = (range(half), range(half, 2 * half))
        total = builder.fadd(*(_shuffled(builder, total, total, [*part]) for part in parts))
    return total


@intrinsic
@no_type_check
def add_inner_product(typing, array, at, g, h):
    """array[at : at + LANES] += g h, summed over vectors."""

    def code(context, builder, signature, args):
        g, h = (_unpacked(builder, args[i]) for i in (2, 3))
        address = _address(context, builder, signature.args[0], *args[:2])
        # Two sums, as each waits for its own last step.
        totals = [_load(builder, address), builder.fmul(g[0], h[0])]
        for i in range(1, _BLOCK.count):
            totals[i % 2] = _multiply_add(builder, g[i], h[i], totals[i % 2])
        _store(builder, builder.fadd(*totals), address)
        return context.get_dummy_value()

    return types.void(array, types.int64, _BLOCK, _BLOCK), code


@compiled
@no_type_check
def _take(x, image, head, first, values):
    """A head's values from `first` on, and zeros behind the last, into values [n · VALUES]."""
    width = min(VALUES, x.shape[3] - first)
    for v in range(x.shape[1]):
        for p in range(width):
            values[v * VALUES + p] = x[image, v, head, first + p]
        for p in range(width, VALUES):
            values[v * VALUES + p] = 0


@compiled
@no_type_check
def _put(values, x, image, head, first):
    for v in range(x.shape[1]):
        for p in range(min(VALUES, x.shape[3] - first)):
            x[image, v, head, first + p] = values[v * VALUES + p]


@compiled
@no_type_check
def _scale(factor, values, scaled):
    for v in range(len(factor)):
        for p in range(v * VALUES, v * VALUES + VALUES):
            scaled[p] = factor[v] * values[p]


@compiled
@no_type_check
def _add_scaled(factor, values, total):
    for v in range(len(factor)):
        for p in range(v * VALUES, v * VALUES + VALUES):
            total[p] += factor[v] * values[p]


@reordered
@no_type_check
def _inner_products(x, y, products):
    for v in range(len(products)):
        total = numba.float32(0)
        for p in range(v * VALUES, v * VALUES + VALUES):
            total += x[p] * y[p]
        products[v] = total


@reordered
@no_type_check
def _totals(x, totals):
    for v in range(len(totals)):
        total = numba.float32(0)
        for p in range(v * LANES, v * LANES + LANES):
            total += x[p]
        totals[v] = total


@compiled
@no_type_check
def _read_states(R, K, corner, left, top, B, C, x, row, y):
    """Add to y what nodes read of a block of states, of which `row` holds a row."""
    row[:] = 0
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(R):
        h = zero_block()
        for k in range(K):
            v = start + r * down + k * along
            above, values = load_block(row, k * BLOCK), load_values(x, v * VALUES)
            h = next_block(left[v], h, top[v], above, B, v * STATES, values)
            store(row, k * BLOCK, h)
            store(y, v * VALUES, read(load_values(y, v * VALUES), C, v * STATES, h))


@compiled
@no_type_check
def _pass_rows(first, last, K, corner, left, top, B, x, row):
    """Bring a row's block of states to the row before `last`, from that before `first`."""
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(first, last):
        h = zero_block()
        for k in range(K):
            v = start + r * down + k * along
            above, values = load_block(row, k * BLOCK), load_values(x, v * VALUES)
            h = next_block(left[v], h, top[v], above, B, v * STATES, values)
            store(row, k * BLOCK, h)


@compiled
@no_type_check
def _states_of_band(first, last, K, corner, left, top, B, x, dy, states, dC):
    """Rows of states behind that before `first`, which stands there already; add to dC."""
    at = K * BLOCK
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(first, last):
        h = zero_block()
        for k in range(K):
            v = start + r * down + k * along
            above, values = load_block(states, at - K * BLOCK), load_values(x, v * VALUES)
            h = next_block(left[v], h, top[v], above, B, v * STATES, values)
            store(states, at, h)
            add_products(dC, v * STATES, h, load_values(dy, v * VALUES))
            at += BLOCK


@compiled
@no_type_check
def _adjoint_of_band(
    first, last, R, K, corner, left, top, B, C, x, dy, states, row, dB, dx, d_left, d_top
):  # fmt: skip
    """The recurrence from below, where `row` holds g of the row below; adds to all gradients."""
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(last - 1, first - 1, -1):
        g = zero_block()
        beside = numba.float32(0)
        for k in range(K - 1, -1, -1):
            v = start + r * down + k * along
            under = top[v + down] if r < R - 1 else numba.float32(0)
            below, values = load_block(row, k * BLOCK), load_values(dy, v * VALUES)
            g = next_block(beside, g, under, below, C, v * STATES, values)
            store(row, k * BLOCK, g)
            beside = left[v]
            add_products(dB, v * STATES, g, load_values(x, v * VALUES))
            store(dx, v * VALUES, read(load_values(dx, v * VALUES), B, v * STATES, g))
            at = ((r - first + 1) * K + k) * BLOCK
            if k > 0:
                add_inner_product(d_left, v * LANES, g, load_block(states, at - BLOCK))
            if r > 0:
                add_inner_product(d_top, v * LANES, g, load_block(states, at - K * BLOCK))


@compiled
@no_type_check
def _differentiate_block(
    R, K, band, corner, left, top, B, C, x, dy, kept, states, row, dB, dC, dx, d_left, d_top
):  # fmt: skip
    """All gradients of a block of states, of which `kept` holds the row before each band."""
    size = K * BLOCK
    kept[:size] = 0
    for first in range(band, R, band):
        i = first // band
        kept[i * size : i * size + size] = kept[i * size - size : i * size]
        before = kept[i * size : i * size + size]
        _pass_rows(first - band, first, K, corner, left, top, B, x, before)
    row[:] = 0
    for i in range((R - 1) // band, -1, -1):
        first, last = i * band, min(i * band + band, R)
        states[:size] = kept[i * size : i * size + size]
        _states_of_band(first, last, K, corner, left, top, B, x, dy, states, dC)
        _adjoint_of_band(
            first, last, R, K, corner, left, top, B, C, x, dy, states, row, dB, dx, d_left, d_top
        )  # fmt: skip


def rows_of_a_band(R: int, K: int) -> int:
    """Rows whose states are kept at a time."""
    return min(R, max(1, BAND // (K * BLOCK)))


def scratch_of_states(R: int, K: int) -> tuple[int, int]:
    """Numbers that `mix_states` and `differentiate_states` need for themselves."""
    n, row, band = R * K, K * BLOCK, rows_of_a_band(R, K)
    kept = -(-R // band) * row
    return 3 * n * VALUES + row, 5 * n * VALUES + 2 * n * LANES + kept + (band + 2) * row


@compiled
@no_type_check
def mix_states(
    task, scratch, R, K, corners, group, left, top, scale, skip, B, C, V, Y
):  # fmt: skip
    """Y of VALUES of a head's values: a task of each of G, H and P / VALUES.

    Args:
        group: [D].
        left, top, scale: [D, G, H, n].
        skip: [G, H, n].
        B, C: [N, G, S / STATES, n · STATES].
        V, Y: [G, n, H, P].
    """
    H, blocks, size = V.shape[2], -(-V.shape[3] // VALUES), R * K * VALUES
    image, head, first = task // (H * blocks), task // blocks % H, task % blocks * VALUES
    values, x, y = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    row = scratch[3 * size : 3 * size + K * BLOCK]
    _take(V, image, head, first, values)
    _scale(skip[image, head], values, y)
    for d in range(len(group)):
        _scale(scale[d, image, head], values, x)
        w, u = left[d, image, head], top[d, image, head]
        for s in range(B.shape[2]):
            b, c = B[group[d], image, s], C[group[d], image, s]
            _read_states(R, K, corners[d], w, u, b, c, x, row, y)
    _put(y, Y, image, head, first)


@compiled
@no_type_check
def differentiate_states(
    task, scratch, R, K, band, corners, group, left, top, scale, skip, B, C, V, dY,
    d_left, d_top, d_scale, d_skip, dB, dC, dV,
):  # fmt: skip
    """Gradients, a task of each of G and of the parts of the lanes, each head's VALUES of values.

    Args:
        band: `rows_of_a_band`.
        d_left, d_top, d_scale: [P / VALUES, D, G, H, n], to be summed over P / VALUES.
        d_skip: [P / VALUES, G, H, n].
        dB, dC: [parts, N, G, S / STATES, n · STATES], zeros, to be summed over the parts.
        dV, dY: [G, n, H, P].
    """
    n, H, blocks, parts = R * K, V.shape[2], -(-V.shape[3] // VALUES), dB.shape[0]
    size, image, part, lanes = n * VALUES, task // parts, task % parts, H * blocks
    values, dy, dv = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    x, dx = scratch[3 * size : 4 * size], scratch[4 * size : 5 * size]
    rest, size = scratch[5 * size :], n * LANES
    of_left, of_top = rest[:size], rest[size : 2 * size]
    rest, size = rest[2 * size :], K * BLOCK
    row, states, kept = rest[:size], rest[size : (band + 2) * size], rest[(band + 2) * size :]
    for lane in range(part * lanes // parts, (part + 1) * lanes // parts):
        head, block = lane // blocks, lane % blocks
        _take(V, image, head, block * VALUES, values)
        _take(dY, image, head, block * VALUES, dy)
        _scale(skip[image, head], dy, dv)
        _inner_products(dy, values, d_skip[block, image, head])
        for d in range(len(group)):
            _scale(scale[d, image, head], values, x)
            w, u = left[d, image, head], top[d, image, head]
            dx[:] = 0
            of_left[:] = 0
            of_top[:] = 0
            for s in range(B.shape[2]):
                b, c = B[group[d], image, s], C[group[d], image, s]
                db, dc = dB[part, group[d], image, s], dC[part, group[d], image, s]
                _differentiate_block(
                    R, K, band, corners[d], w, u, b, c, x, dy, kept, states, row, db, dc, dx,
                    of_left, of_top,
                )  # fmt: skip
            _add_scaled(scale[d, image, head], dx, dv)
            _inner_products(dx, values, d_scale[block, d, image, head])
            _totals(of_left, d_left[block, d, image, head])
            _totals(of_top, d_top[block, d, image, head])
        _put(dv, dV, image, head, block * VALUES)


@compiled
@no_type_check
def _seen(r, R, K, down):
    """The range of nodes in the first r + 1 rows from the root."""
    return (0, (r + 1) * K) if down > 0 else ((R - 1 - r) * K, R * K)


@compiled
@no_type_check
def mask(
    task, scratch, R, K, first_image, corners, group, left, top, scale, skip, kernel, M
):  # fmt: skip
    """M = diag(skip) + Σ_d L_d diag(scale_d) ⊙ kernel, a task of each image and head of a tile.

    Args:
        scratch: [K · n].
        kernel: [N, t, n, n] products of C and B of the tile's images, of which `first_image` is the
            first one.
        M: [t, H, n, n].
    """
    n, H = R * K, M.shape[1]
    at, head = task // H, task % H
    image, m = first_image + at, M[at, head]
    L = scratch[: K * n].reshape(K, n)
    m[:] = 0
    for v in range(n):
        m[v, v] = skip[image, head, v]
    for d in range(len(group)):
        start, down, along = corners[d, 0], corners[d, 1], corners[d, 2]
        w, u = left[d, image, head], top[d, image, head]
        L[:] = 0
        for r in range(R):
            begin, end = _seen(r, R, K, down)
            for k in range(K):
                v = start + r * down + k * along
                row, before = L[k, begin:end], L[max(k - 1, 0), begin:end]
                beside = w[v] if k > 0 else numba.float32(0)
                masked, pairs = m[v, begin:end], kernel[group[d], at, v, begin:end]
                _advance(beside, before, u[v], row, scale[d, image, head, v], v - begin)
                for i in range(len(row)):
                    masked[i] += pairs[i] * row[i]


@compiled
@no_type_check
def _advance(along, before, down, row, own, place):
    """A row of L from its neighbours' rows, of which that above stands in its place."""
    for i in range(len(row)):
        row[i] = along * before[i] + down * row[i]
    row[place] += own


@reordered
@no_type_check
def differentiate_mask(
    task, scratch, R, K, first_image, corners, group, left, top, scale, skip, kernel, dM,
    d_left, d_top, d_scale, d_skip, d_kernel,
):  # fmt: skip
    """Gradients, and M in the place of dM: a task of each image of a tile and part of the heads.

    Args:
        scratch: [2 n² + K · n].
        dM: [t, H, n, n].
        d_left, d_top, d_scale: [D, G, H, n], zeros where nothing enters.
        d_skip: [G, H, n].
        d_kernel: [parts, N, t, n, n], zeros, to be summed over the parts.
    """
    n, H, parts = R * K, dM.shape[1], d_kernel.shape[0]
    at, part = task // parts, task % parts
    image, size = first_image + at, n * n
    L, m = scratch[:size].reshape(n, n), scratch[size : 2 * size].reshape(n, n)
    g = scratch[2 * size : 2 * size + K * n].reshape(K, n)
    for head in range(part * H // parts, (part + 1) * H // parts):
        dm = dM[at, head]
        m[:] = 0
        for v in range(n):
            m[v, v] = skip[image, head, v]
            d_skip[image, head, v] = dm[v, v]
        for d in range(len(group)):
            start, down, along = corners[d, 0], corners[d, 1], corners[d, 2]
            w, u = left[d, image, head], top[d, image, head]
            L[:] = 0
            for r in range(R):
                begin, end = _seen(r, R, K, down)
                for k in range(K):
                    v = start + r * down + k * along
                    row = L[v, begin:end]
                    if r > 0:
                        row[:] = L[v - down, begin:end]
                    before = L[v - along, begin:end] if k > 0 else row
                    beside = w[v] if k > 0 else numba.float32(0)
                    _advance(beside, before, u[v], row, scale[d, image, head, v], v - begin)
                    masked, pairs = m[v, begin:end], kernel[group[d], at, v, begin:end]
                    of_pairs = d_kernel[part, group[d], at, v, begin:end]
                    of_masked = dm[v, begin:end]
                    for i in range(len(row)):
                        masked[i] += pairs[i] * row[i]
                        of_pairs[i] += of_masked[i] * row[i]
            g[:] = 0
            for r in range(R - 1, -1, -1):
                begin, end = _seen(r, R, K, down)
                for k in range(K - 1, -1, -1):
                    v = start + r * down + k * along
                    row, behind = g[k, begin:end], g[min(k + 1, K - 1), begin:end]
                    beside = w[v + along] if k < K - 1 else numba.float32(0)
                    under = u[v + down] if r < R - 1 else numba.float32(0)
                    pairs, of_masked = kernel[group[d], at, v, begin:end], dm[v, begin:end]
                    for i in range(len(row)):
                        row[i] = beside * behind[i] + under * row[i] + of_masked[i] * pairs[i]
                    d_scale[d, image, head, v] = row[v - begin]
                    if k > 0:
                        d_left[d, image, head, v] = _product(row, L[v - along, begin:end])
                    if r > 0:
                        d_top[d, image, head, v] = _product(row, L[v - down, begin:end])
        dm[:] = m


@reordered
@no_type_check
def _product(x, y):
    total = numba.float32(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total
