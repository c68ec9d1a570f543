"""Sums of grids' resolvent products on a CPU in float32: the loops, which torch has no ops for.

Numba compiles what is called and keeps the code beside this file. Each call does one task and
writes what no other task writes, so that threads may share the tasks, and no result depends on how
many threads there are.

Shapes as in `kernels.grid`, with D DAGs, of which those that share B and C are one of N
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
from numba.extending import intrinsic, models, register_jitable, register_model

LANES = 16  # floats of a vector: of AVX-512; LLVM splits it where vectors are shorter
VECTORS = 2
STATES = 4
VALUES = VECTORS * LANES
BLOCK = STATES * VALUES
LEAST = 2.0**-20  # of a factor that states are divided by; the greatest is as far from one
BAND = 2**18  # numbers of the states kept at a time, half of a core's second cache

compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


class Vectors(types.Type):
    """Type of `count` vectors of floats in registers."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(name=f"Vectors({count})")


_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_ONE, _VALUES, _BLOCK = Vectors(1), Vectors(VECTORS), Vectors(STATES * VECTORS)


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


def _zeros(kind: Vectors):
    return kind(), lambda context, *_: ir.Constant(context.get_value_type(kind), None)


@intrinsic
@no_type_check
def zero_block(typing):
    """A block of zeros."""
    return _zeros(_BLOCK)


@intrinsic
@no_type_check
def zero_values(typing):
    """Zeros of a node."""
    return _zeros(_VALUES)


@intrinsic
@no_type_check
def zero_vector(typing):
    """A vector of zeros."""
    return _zeros(_ONE)


@intrinsic
@no_type_check
def load_vector(typing, array, at):
    """The vector array[at:]."""
    return _loaded(_ONE, array)


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
    """along · h + down · g + x[at : at + STATES] ⊗ values; h is but added where `along` is one."""

    def code(context, builder, signature, args):
        h, g, values = (_unpacked(builder, args[i]) for i in (1, 3, 6))
        h = _times_unless_one(builder, args[0], h)
        down = _everywhere(builder, args[2])
        numbers = _numbers(builder, _address(context, builder, signature.args[4], *args[4:6]))
        new = []
        for i in range(_BLOCK.count):
            own = builder.fmul(numbers[i // VECTORS], values[i % VECTORS])
            new.append(builder.fadd(h[i], _multiply_add(builder, down, g[i], own)))
        return _packed(builder, new)

    single = types.float32
    return _BLOCK(single, _BLOCK, single, _BLOCK, x, types.int64, _VALUES), code


def _times_unless_one(builder, a, vectors: list) -> list:
    """a times each vector, by a branch, as it is hardly ever taken."""
    before = builder.block
    with builder.if_then(builder.fcmp_unordered("!=", a, ir.Constant(ir.FloatType(), 1))):
        factor = _everywhere(builder, a)
        products, within = [builder.fmul(factor, x) for x in vectors], builder.block
    results = [builder.phi(_VECTOR) for _ in vectors]
    for result, x, product in zip(results, vectors, products, strict=True):
        result.add_incoming(x, before)
        result.add_incoming(product, within)
    return results


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

    y = LANES  # the first place of the second vector
    # Of a, a, b, b: one of the two parts is but a choice among lanes that stay where they are.
    ab, cd = (added(*pair, (0, 1, y + 2, y + 3), (2, 3, y, y + 1)) for pair in ((a, b), (c, d)))
    total = added(ab, cd, (0, 2, y, y + 2), (1, 3, y + 1, y + 3))
    return _folded(builder, total, STATES)


def _folded(builder, x, count: int):
    """Halves of a vector added up until `count` numbers are left."""
    while (half := x.type.count // 2) >= count:
        parts = (range(half), range(half, 2 * half))
        x = builder.fadd(*(_shuffled(builder, x, x, [*part]) for part in parts))
    return x


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


@intrinsic
@no_type_check
def weighted(typing, a, x, b, y):
    """The vector a x + b y."""

    def code(context, builder, signature, args):
        a, b = (_everywhere(builder, args[i]) for i in (0, 2))
        (x,), (y,) = (_unpacked(builder, args[i]) for i in (1, 3))
        return _packed(builder, [_multiply_add(builder, a, x, builder.fmul(b, y))])

    return _ONE(types.float32, _ONE, types.float32, _ONE), code


@intrinsic
@no_type_check
def product_and(typing, x, y, z):
    """The vector x y + z."""

    def code(context, builder, signature, args):
        (x,), (y,), (z,) = (_unpacked(builder, each) for each in args)
        return _packed(builder, [_multiply_add(builder, x, y, z)])

    return _ONE(_ONE, _ONE, _ONE), code


@intrinsic
@no_type_check
def total_of(typing, x):
    """The sum of a vector's numbers."""

    def code(context, builder, signature, args):
        (x,) = _unpacked(builder, args[0])
        x = _folded(builder, x, 1)
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return types.float32(_ONE), code


@intrinsic
@no_type_check
def scaled_and(typing, a, x, y):
    """a x + y, of a node's values."""

    def code(context, builder, signature, args):
        a = _everywhere(builder, args[0])
        pairs = zip(*(_unpacked(builder, args[i]) for i in (1, 2)), strict=True)
        return _packed(builder, [_multiply_add(builder, a, x, y) for x, y in pairs])

    return _VALUES(types.float32, _VALUES, _VALUES), code


@intrinsic
@no_type_check
def inner_product(typing, x, y):
    """The sum of x y, of a node's values."""

    def code(context, builder, signature, args):
        total = ir.Constant(_VECTOR, None)
        for x, y in zip(*(_unpacked(builder, each) for each in args), strict=True):
            total = _multiply_add(builder, x, y, total)
        total = _folded(builder, total, 1)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return types.float32(_VALUES, _VALUES), code


@compiled
@no_type_check
def _take(x, image, head, first, values):
    """A head's values from `first` on, and zeros behind the last, into values [n · VALUES]."""
    _, n, H, P = x.shape
    flat = x.reshape(-1)
    for v in range(n):
        at = ((image * n + v) * H + head) * P + first
        if P - first >= VALUES:
            store(values, v * VALUES, load_values(flat, at))
        else:
            for p in range(VALUES):
                values[v * VALUES + p] = flat[at + p] if p < P - first else 0


@compiled
@no_type_check
def _put(values, x, image, head, first):
    _, n, H, P = x.shape
    flat = x.reshape(-1)
    for v in range(n):
        at = ((image * n + v) * H + head) * P + first
        if P - first >= VALUES:
            store(flat, at, load_values(values, v * VALUES))
        else:
            for p in range(P - first):
                flat[at + p] = values[v * VALUES + p]


@compiled
@no_type_check
def _scale(factor, values, scaled):
    for v in range(len(factor)):
        x = load_values(values, v * VALUES)
        store(scaled, v * VALUES, scaled_and(factor[v], x, zero_values()))


@compiled
@no_type_check
def _add_scaled(factor, values, total):
    for v in range(len(factor)):
        x, y = load_values(values, v * VALUES), load_values(total, v * VALUES)
        store(total, v * VALUES, scaled_and(factor[v], x, y))


@compiled
@no_type_check
def _inner_products(x, y, products):
    for v in range(len(products)):
        products[v] = inner_product(load_values(x, v * VALUES), load_values(y, v * VALUES))


@compiled
@no_type_check
def _totals_of_edges(x, R, K, corner, factor, of_left, of_top):
    """Gradients of the weights, from those between states that `factor` divides."""
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(R):
        for k in range(K):
            v = start + r * down + k * along
            if k > 0:
                u = v - along
                of_left[v] = factor[u] / factor[v] * total_of(load_vector(x, 2 * u * LANES))
            if r > 0:
                u = v - down
                of_top[v] = factor[u] / factor[v] * total_of(load_vector(x, (2 * u + 1) * LANES))


@compiled
@no_type_check
def _straighten(R, K, corner, left, top, along_rows, down_columns, factor):
    """Weights between states divided by `factor`, so that nearly all along a row are one.

    A state is then added to the next one, where processors can while they multiply others. The
    factor is the product of the weights from where it last began, as it does with every row and
    before it leaves what numbers can hold.
    """
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(R):
        product = numba.float32(1)
        for k in range(K):
            v = start + r * down + k * along
            if k > 0:
                product *= left[v]
            if k > 0 and LEAST < abs(product) < 1 / LEAST:
                along_rows[v] = 1
            else:
                along_rows[v] = product
                product = numba.float32(1)
            factor[v] = product
            down_columns[v] = top[v] * factor[v - down] / product if r > 0 else 0


@compiled
@no_type_check
def _read_states(R, K, corner, left, top, B, C, x, row, y):
    """Add to y what nodes read of a block of states, of which `row` holds a row.

    Two rows go together, so that what one hands on stays in registers.
    """
    row[:] = 0
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(0, R, 2):
        paired = r + 1 < R
        h, under = zero_block(), zero_block()
        for k in range(K):
            v = start + r * down + k * along
            above, values = load_block(row, k * BLOCK), load_values(x, v * VALUES)
            h = next_block(left[v], h, top[v], above, B, v * STATES, values)
            store(y, v * VALUES, read(load_values(y, v * VALUES), C, v * STATES, h))
            if paired:
                u = v + down
                values = load_values(x, u * VALUES)
                under = next_block(left[u], under, top[u], h, B, u * STATES, values)
                store(row, k * BLOCK, under)
                store(y, u * VALUES, read(load_values(y, u * VALUES), C, u * STATES, under))


@compiled
@no_type_check
def _pass_rows(first, last, K, corner, left, top, B, x, before, row):
    """The row of a block of states before `last`, from that before `first`."""
    start, down, along = corner[0], corner[1], corner[2]
    above = before
    for r in range(first, last, 2):
        paired = r + 1 < last
        h, under = zero_block(), zero_block()
        for k in range(K):
            v = start + r * down + k * along
            from_above, values = load_block(above, k * BLOCK), load_values(x, v * VALUES)
            h = next_block(left[v], h, top[v], from_above, B, v * STATES, values)
            if paired:
                u = v + down
                values = load_values(x, u * VALUES)
                under = next_block(left[u], under, top[u], h, B, u * STATES, values)
                store(row, k * BLOCK, under)
            else:
                store(row, k * BLOCK, h)
        above = row


@compiled
@no_type_check
def _states_of_band(first, last, K, corner, left, top, B, x, dy, before, states, dC):
    """Rows of states, of which that before `first` is given; adds to dC."""
    start, down, along = corner[0], corner[1], corner[2]
    above = before
    for r in range(first, last, 2):
        paired = r + 1 < last
        row = states[(r - first) * K * BLOCK :]
        row_under = states[(r - first + paired) * K * BLOCK :]
        h, under = zero_block(), zero_block()
        for k in range(K):
            v = start + r * down + k * along
            from_above, values = load_block(above, k * BLOCK), load_values(x, v * VALUES)
            h = next_block(left[v], h, top[v], from_above, B, v * STATES, values)
            store(row, k * BLOCK, h)
            add_products(dC, v * STATES, h, load_values(dy, v * VALUES))
            if paired:
                u = v + down
                values = load_values(x, u * VALUES)
                under = next_block(left[u], under, top[u], h, B, u * STATES, values)
                store(row_under, k * BLOCK, under)
                add_products(dC, u * STATES, under, load_values(dy, u * VALUES))
        above = row_under


@compiled
@no_type_check
def _adjoint_of_band(
    first, last, R, K, corner, left, top, B, C, x, dy, states, row, dB, dx, d_edges
):  # fmt: skip
    """The recurrence from below, where `row` holds g of the row below; adds to all gradients.

    As in `_read_states` two rows go together, so that what one hands on stays in registers. A
    node's state meets what is below and behind it, so that it is read once.
    """
    start, down, along = corner[0], corner[1], corner[2]
    for r in range(last - 1, first - 1, -2):
        paired = r > first
        own = states[(r - first) * K * BLOCK :]
        above = states[(r - first - paired) * K * BLOCK :]
        g, over = zero_block(), zero_block()
        behind, behind_over = numba.float32(1), numba.float32(1)
        for k in range(K - 1, -1, -1):
            v = start + r * down + k * along
            under = top[v + down] if r < R - 1 else numba.float32(0)
            below, h = load_block(row, k * BLOCK), load_block(own, k * BLOCK)
            add_inner_product(d_edges, 2 * v * LANES, g, h)
            add_inner_product(d_edges, (2 * v + 1) * LANES, below, h)
            values = load_values(dy, v * VALUES)
            g = next_block(behind, g, under, below, C, v * STATES, values)
            behind = left[v]
            add_products(dB, v * STATES, g, load_values(x, v * VALUES))
            store(dx, v * VALUES, read(load_values(dx, v * VALUES), B, v * STATES, g))
            if paired:
                u = v - down
                h = load_block(above, k * BLOCK)
                add_inner_product(d_edges, 2 * u * LANES, over, h)
                add_inner_product(d_edges, (2 * u + 1) * LANES, g, h)
                values = load_values(dy, u * VALUES)
                over = next_block(behind_over, over, top[v], g, C, u * STATES, values)
                behind_over = left[u]
                store(row, k * BLOCK, over)
                add_products(dB, u * STATES, over, load_values(x, u * VALUES))
                store(dx, u * VALUES, read(load_values(dx, u * VALUES), B, u * STATES, over))
            else:
                store(row, k * BLOCK, g)


def rows_of_a_band(R: int, K: int) -> int:
    """Rows whose states are kept at a time."""
    most = max(1, BAND // (K * BLOCK))
    return -(-R // -(-R // most))


def scratch_of_states(R: int, K: int, S: int) -> tuple[int, int]:
    """Numbers that `mix_states` and `differentiate_states` need for themselves."""
    n, row, band = R * K, K * BLOCK, rows_of_a_band(R, K)
    of_blocks = (-(-R // band) + 1) * -(-S // STATES) * row
    weights = 3 * padded(n)
    return (
        4 * n * VALUES + weights + row,
        6 * n * VALUES + weights + 2 * n * LANES + of_blocks + band * row,
    )


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
    n, H, blocks = R * K, V.shape[2], -(-V.shape[3] // VALUES)
    image, head, first = task // (H * blocks), task // blocks % H, task % blocks * VALUES
    values, x, y, total = scratch[: 4 * n * VALUES].reshape(4, n * VALUES)
    rest = scratch[4 * n * VALUES :]
    w, u, factor = rest[: 3 * padded(n)].reshape(3, padded(n))[:, :n]
    row = rest[3 * padded(n) :][: K * BLOCK]
    _take(V, image, head, first, values)
    _scale(skip[image, head], values, total)
    for d in range(len(group)):
        _straighten(R, K, corners[d], left[d, image, head], top[d, image, head], w, u, factor)
        _scale(scale[d, image, head] / factor, values, x)
        y[:] = 0
        for s in range(B.shape[2]):
            b, c = B[group[d], image, s], C[group[d], image, s]
            _read_states(R, K, corners[d], w, u, b, c, x, row, y)
        _add_scaled(factor, y, total)
    _put(total, Y, image, head, first)


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
        dB, dC: [parts, N, G, S / STATES, n · STATES], to be summed over the parts.
        dV, dY: [G, n, H, P].
    """
    n, H, blocks, parts = R * K, V.shape[2], -(-V.shape[3] // VALUES), dB.shape[0]
    size, image, part, lanes = n * VALUES, task // parts, task % parts, H * blocks
    values, dy, dv, x, dx, scaled_dy = scratch[: 6 * size].reshape(6, size)
    rest, size = scratch[6 * size :], padded(n)
    w, u, factor = rest[: 3 * size].reshape(3, size)[:, :n]
    rest, size = rest[3 * size :], 2 * n * LANES
    of_edges, rest = rest[:size], rest[size:]
    size, blocks_S, bands = K * BLOCK, B.shape[2], -(-R // band)
    states, rest = rest[: band * size], rest[band * size :]
    g, rest = rest[: blocks_S * size].reshape(blocks_S, size), rest[blocks_S * size :]
    kept = rest[: blocks_S * bands * size].reshape(bands, blocks_S, size)
    dB[part, :, image] = 0
    dC[part, :, image] = 0
    for lane in range(part * lanes // parts, (part + 1) * lanes // parts):
        head, block = lane // blocks, lane % blocks
        _take(V, image, head, block * VALUES, values)
        _take(dY, image, head, block * VALUES, dy)
        _scale(skip[image, head], dy, dv)
        _inner_products(dy, values, d_skip[block, image, head])
        for d in range(len(group)):
            corner = corners[d]
            _straighten(R, K, corner, left[d, image, head], top[d, image, head], w, u, factor)
            entering = scale[d, image, head] / factor
            _scale(entering, values, x)
            _scale(factor, dy, scaled_dy)
            dx[:] = 0
            of_edges[:] = 0
            g[:] = 0
            kept[0] = 0
            for i in range(1, bands):
                for s in range(blocks_S):
                    _pass_rows(
                        i * band - band, i * band, K, corner, w, u, B[group[d], image, s], x,
                        kept[i - 1, s], kept[i, s],
                    )  # fmt: skip
            for i in range(bands - 1, -1, -1):
                first, last = i * band, min(i * band + band, R)
                for s in range(blocks_S):
                    b, c = B[group[d], image, s], C[group[d], image, s]
                    db, dc = dB[part, group[d], image, s], dC[part, group[d], image, s]
                    before = kept[i, s]
                    _states_of_band(
                        first, last, K, corner, w, u, b, x, scaled_dy, before, states, dc
                    )
                    _adjoint_of_band(
                        first, last, R, K, corner, w, u, b, c, x, scaled_dy, states, g[s],
                        db, dx, of_edges,
                    )  # fmt: skip
            _add_scaled(entering, dx, dv)
            _inner_products(dx, values, d_scale[block, d, image, head])
            d_scale[block, d, image, head] /= factor
            dw, du = d_left[block, d, image, head], d_top[block, d, image, head]
            _totals_of_edges(of_edges, R, K, corner, factor, dw, du)
        _put(dv, dV, image, head, block * VALUES)


@compiled
@no_type_check
def _seen(r, R, K, down):
    """Vectors of a matrix's row that hold the nodes of the first r + 1 rows from the root."""
    begin, end = (0, (r + 1) * K) if down > 0 else ((R - 1 - r) * K, R * K)
    return begin // LANES * LANES, padded(end)


@register_jitable
@no_type_check
def padded(n):
    """Numbers of a row of n in whole vectors."""
    return (n + LANES - 1) // LANES * LANES


@compiled
@no_type_check
def _put_diagonal(skip, width, at, M):
    M[at : at + len(skip) * width] = 0
    for v in range(len(skip)):
        M[at + v * width + v] = skip[v]


@compiled
@no_type_check
def mask(
    task, scratch, R, K, first_image, corners, group, left, top, scale, skip, kernel, M
):  # fmt: skip
    """M = diag(skip) + Σ_d L_d diag(scale_d) ⊙ kernel, a task of each image and head of a tile.

    Args:
        scratch: [K · width], where width = padded(n).
        kernel: [N, t, n, width] products of C and B of a tile's t images, of which `first_image` is
            the first one; zeros behind n.
        M: [t, H, n, width], what is behind n being for nobody.
    """
    n, H, width = R * K, M.shape[1], M.shape[3]
    image, head, size = task // H, task % H, n * width
    pairs, m, of_m = kernel.reshape(-1), M.reshape(-1), task * size
    _put_diagonal(skip[first_image + image, head], width, of_m, m)
    for d in range(len(group)):
        start, down, along = corners[d, 0], corners[d, 1], corners[d, 2]
        w, u = left[d, first_image + image, head], top[d, first_image + image, head]
        of_pairs = (group[d] * kernel.shape[1] + image) * size
        L = scratch[: K * width]
        L[:] = 0
        for r in range(R):
            begin, end = _seen(r, R, K, down)
            for k in range(K):
                v = start + r * down + k * along
                row, before = k * width, max(k - 1, 0) * width
                beside = w[v] if k > 0 else numba.float32(0)
                for i in range(begin, end, LANES):
                    x = weighted(beside, load_vector(L, before + i), u[v], load_vector(L, row + i))
                    store(L, row + i, x)
                    at = v * width + i
                    x = product_and(load_vector(pairs, of_pairs + at), x, load_vector(m, of_m + at))
                    store(m, of_m + at, x)
                own = scale[d, first_image + image, head, v]
                L[row + v] += own
                m[of_m + v * width + v] += pairs[of_pairs + v * width + v] * own


@compiled
@no_type_check
def differentiate_mask(
    task, scratch, R, K, first_image, corners, group, left, top, scale, skip, kernel, dM,
    d_left, d_top, d_scale, d_skip, d_kernel,
):  # fmt: skip
    """Gradients, and M in the place of dM: a task of each image of a tile and part of the heads.

    Args:
        scratch: [(2 n + K) · width], as in `mask`.
        dM: [t, H, n, width], zeros behind n.
        d_left, d_top, d_scale: [D, G, H, n], zeros where nothing enters.
        d_skip: [G, H, n].
        d_kernel: [parts, N, t, n, width], to be summed over the parts.
    """
    n, H, parts, width = R * K, dM.shape[1], d_kernel.shape[0], dM.shape[3]
    at_image, part, size = task // parts, task % parts, n * width
    image, tile = first_image + at_image, kernel.shape[1]
    pairs, dm, d_pairs = kernel.reshape(-1), dM.reshape(-1), d_kernel.reshape(-1)
    L, m, g = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 2 * size + K * width]
    d_kernel[part, :, at_image] = 0
    for head in range(part * H // parts, (part + 1) * H // parts):
        of_m = (at_image * H + head) * size
        for v in range(n):
            d_skip[image, head, v] = dm[of_m + v * width + v]
        _put_diagonal(skip[image, head], width, 0, m)
        for d in range(len(group)):
            corner, w, u = corners[d], left[d, image, head], top[d, image, head]
            own, of_pairs = scale[d, image, head], (group[d] * tile + at_image) * size
            of_d_pairs = part * len(kernel) * tile * size + of_pairs
            _paths(
                R, K, width, corner, w, u, own, pairs, of_pairs, dm, of_m, L, m, d_pairs, of_d_pairs
            )  # fmt: skip
            dw, du, d_own = d_left[d, image, head], d_top[d, image, head], d_scale[d, image, head]
            _adjoint_of_paths(
                R, K, width, corner, w, u, pairs, of_pairs, dm, of_m, L, g, dw, du, d_own
            )
        dm[of_m : of_m + size] = m


@compiled
@no_type_check
def _paths(
    R, K, width, corner, w, u, own, pairs, of_pairs, dm, of_m, L, m, d_pairs, of_d_pairs
):  # fmt: skip
    """L diag(own), whose masked product is added to m and whose part in the mask to d_pairs."""
    start, down, along = corner[0], corner[1], corner[2]
    L[:] = 0
    for r in range(R):
        begin, end = _seen(r, R, K, down)
        for k in range(K):
            v = start + r * down + k * along
            beside, above = v - along if k > 0 else v, v - down if r > 0 else v
            to_right = w[v] if k > 0 else numba.float32(0)
            for i in range(begin, end, LANES):
                x = weighted(
                    to_right, load_vector(L, beside * width + i),
                    u[v], load_vector(L, above * width + i),
                )  # fmt: skip
                at = v * width + i
                store(L, at, x)
                store(m, at, product_and(load_vector(pairs, of_pairs + at), x, load_vector(m, at)))
                total = load_vector(d_pairs, of_d_pairs + at)
                total = product_and(load_vector(dm, of_m + at), x, total)
                store(d_pairs, of_d_pairs + at, total)
            at = v * width + v
            L[at] += own[v]
            m[at] += pairs[of_pairs + at] * own[v]
            d_pairs[of_d_pairs + at] += dm[of_m + at] * own[v]


@compiled
@no_type_check
def _adjoint_of_paths(
    R, K, width, corner, w, u, pairs, of_pairs, dm, of_m, L, g, dw, du, d_own
):  # fmt: skip
    """The recurrence from below, of which g holds a row of the grid."""
    start, down, along = corner[0], corner[1], corner[2]
    g[:] = 0
    for r in range(R - 1, -1, -1):
        begin, end = _seen(r, R, K, down)
        for k in range(K - 1, -1, -1):
            v = start + r * down + k * along
            row, behind = k * width, min(k + 1, K - 1) * width
            to_right = w[v + along] if k < K - 1 else numba.float32(0)
            to_below = u[v + down] if r < R - 1 else numba.float32(0)
            beside, above = v - along if k > 0 else v, v - down if r > 0 else v
            of_left, of_top = zero_vector(), zero_vector()
            for i in range(begin, end, LANES):
                x = weighted(
                    to_right, load_vector(g, behind + i), to_below, load_vector(g, row + i)
                )
                at = v * width + i
                x = product_and(load_vector(pairs, of_pairs + at), load_vector(dm, of_m + at), x)
                store(g, row + i, x)
                of_left = product_and(x, load_vector(L, beside * width + i), of_left)
                of_top = product_and(x, load_vector(L, above * width + i), of_top)
            d_own[v] = g[row + v]
            if k > 0:
                dw[v] = total_of(of_left)
            if r > 0:
                du[v] = total_of(of_top)
