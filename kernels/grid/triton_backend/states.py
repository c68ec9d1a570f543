"""The resolvent product on the DAG of a grid on a GPU: a program walks the rows of one image.

A row's states obey h_r = R_r (top_r h_{r−1} + B_r ⊗ V_r), y = ⟨C, h⟩, where R_r is the chain matrix
of the row's left weights. With g the gradient of what enters a node, which obeys
g_r = R_rᵀ (top_{r+1} g_{r+1} + C_r ⊗ dY_r): dV = ⟨B, g⟩, dB = ⟨V, g⟩, dC = ⟨dY, h⟩, and d left and
d top are inner products of g with the h of the neighbour to the left and above.

The S × P states of a node never meet, but in these inner products. So a program takes one head of
one image and a block of p × s states, which stay in registers from row to row. What the blocks, and
for B and C the heads, contribute to one number goes to memory as it is, and torch adds it up.

Shapes: G images, R rows, K columns, H heads, S state, P head dimension. A launch of the backward
pass works on t images and m heads. k, p, s are the nodes of a row, values and states of a program.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kernels.autograd import differentiate_by
from kernels.launch import cdiv, dot_precision, launch, next_power_of_2

MOST_STATES = 128, 2**12  # of a node, and of a row, in a program's registers
MEMORY = 2**29  # bytes of h and of gradients in pieces; on the largest images some 400 programs


def grid_product(
    left: Float[Tensor, "G R K H"],
    top: Float[Tensor, "G R K H"],
    B: Float[Tensor, "G R K S"],
    C: Float[Tensor, "G R K S"],
    V: Float[Tensor, "G R K H P"],
) -> Float[Tensor, "G R K H P"]:
    """As `kernels.grid.grid_resolvent`, which checks; accumulated in float32.

    Args:
        left: weight of the edge that enters a node from its left; not read in the first column.
        top: weight of the edge that enters a node from above; not read in the first row.
        B, C: input and output projection of every node, shared by the heads.
        V: values per head.

    Source: Lahoti et al., arXiv:2510.12111, vision experiments.
    """
    return _grid(left, top, B, C, V)


@torch.library.custom_op("resolvent::grid", mutates_args=())
def _grid(left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor) -> Tensor:
    left, top, B, C, V = (x.contiguous() for x in (left, top, B, C, V))
    G, R, K, H, P = V.shape
    S = B.shape[-1]
    # All of S, where possible, so that Y comes in one piece.
    tile = _Tile.of(K, S, P, most_states=128)
    pieces = cdiv(S, tile.states)
    Y = V.new_empty(pieces, *V.shape, dtype=V.dtype if pieces == 1 else torch.float32)
    launch(
        grid_kernel,
        (G * tile.blocks(S, P), H),
        *(left, top, B, C, V, Y, G, R, K, H, S, P),
        **tile.options(V),
    )
    return Y[0] if pieces == 1 else Y.sum(0).to(V.dtype)


@_grid.register_fake
def _(left, top, B, C, V):
    return torch.empty_like(V, memory_format=torch.contiguous_format)


@torch.library.custom_op("resolvent::grid_backward", mutates_args=())
def _grid_backward(
    dY: Tensor, left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dY, left, top, B, C, V = (x.contiguous() for x in (dY, left, top, B, C, V))
    d_left, d_top, dV = (torch.empty_like(x) for x in (left, top, V))
    dB, dC = (torch.zeros_like(x, dtype=torch.float32) for x in (B, C))
    S, P = B.shape[-1], V.shape[-1]
    # As many of P as of S: few pieces of dB and dC, for which P is cut, and of dV, for which S is.
    tile = _Tile.of(V.shape[2], S, P, most_states=8)
    for t, heads in _groups(V, S, tile):
        inputs = (dY[t], left[t], top[t], B[t], C[t], V[t])
        of_left, of_top, of_B, of_C, of_V = _gradients(*inputs, heads, tile)
        d_left[t, ..., heads], d_top[t, ..., heads] = of_left.sum(0), of_top.sum(0)
        dV[t, ..., heads, :] = of_V.sum(0)
        dB[t] += of_B.sum(0)
        dC[t] += of_C.sum(0)
    return d_left, d_top, dB.to(B.dtype), dC.to(C.dtype), dV


differentiate_by(_grid, _grid_backward, gradients=5)


class _Tile(NamedTuple):
    """Sizes of a program, powers of two."""

    nodes: int
    values: int
    states: int

    @classmethod
    def of(cls, K: int, S: int, P: int, most_states: int) -> "_Tile":
        nodes = max(16, next_power_of_2(K))
        most_columns = min(MOST_STATES[0], MOST_STATES[1] // nodes)
        states = min(most_states, most_columns, next_power_of_2(S))
        # At least 16 columns, as products of tiles need it.
        values = max(min(most_columns // states, next_power_of_2(P)), 16 // states)
        return cls(nodes, values, states)

    def blocks(self, S: int, P: int) -> int:
        return cdiv(S, self.states) * cdiv(P, self.values)

    def options(self, V: Tensor) -> dict[str, Any]:
        """What a launch needs besides arguments."""
        return {
            "num_warps": 4 if self.nodes == 16 else 8,
            "NODES": self.nodes,
            "VALUES": self.values,
            "STATES": self.states,
            "PRECISION": dot_precision(V.dtype),
        }


def _groups(V: Tensor, S: int, tile: _Tile) -> Iterator[tuple[slice, slice]]:
    """Images and heads that are worked on together, as `MEMORY` allows; one of each at least."""
    G, R, K, H, P = V.shape
    pieces = 2 * S * cdiv(P, tile.values) + P * cdiv(S, tile.states)
    pieces += 2 * tile.blocks(S, P)
    together = max(1, MEMORY // (4 * R * K * (S * P + pieces)))
    images, heads = max(1, together // H), cdiv(H, cdiv(H, together))
    for t in range(0, G, images):
        for head in range(0, H, heads):
            yield slice(t, min(t + images, G)), slice(head, min(head + heads, H))


def _gradients(
    dY: Tensor, left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor, heads: slice,
    tile: _Tile,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of left, top, B, C and of V, each in pieces along a new first axis."""
    t, R, K, H, P = V.shape
    S, m = B.shape[-1], heads.stop - heads.start
    blocks_S, blocks_P = cdiv(S, tile.states), cdiv(P, tile.values)

    def empty(*shape: int) -> Tensor:
        return V.new_empty(*shape, dtype=torch.float32)

    h = empty(t, m, R, K, P, S)
    of_left, of_top = (empty(blocks_S * blocks_P, t, R, K, m) for _ in range(2))
    of_B, of_C = (empty(m * blocks_P, t, R, K, S) for _ in range(2))
    of_V = empty(blocks_S, t, R, K, m, P)
    grid, sizes = (t * blocks_S * blocks_P, m), (t, R, K, H, S, P, heads.start)
    outputs, options = (of_left, of_top, of_B, of_V), tile.options(V)
    launch(grid_states_kernel, grid, left, top, B, V, dY, h, of_C, *sizes, **options)
    launch(grid_adjoint_kernel, grid, left, top, B, C, V, dY, h, *outputs, *sizes, **options)
    return of_left, of_top, of_B, of_C, of_V


@triton.jit
@no_type_check
def _chain(left, k):
    """R of a row: [i, j] holds left[j + 1] ⋯ left[i], for i ≥ j."""
    i, j = k[:, None], k[None, :]
    products = tl.cumprod(tl.where(i > j, left[:, None], 1.0), axis=0)
    return tl.where(i >= j, products, 0.0)


@triton.jit
@no_type_check
def _weights(x, row, k, K, H, head, there):
    """The weights of a row's nodes, zero where none are there."""
    return tl.load(x + row * K * H + head + k * H, mask=there, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _tile(x, row, k, K, width, first, c, stop):
    """x[row, k, first + c] in float32, zero where there is no node k or no column c.

    Only `row` may need 64 bits; whatever varies within a row stays in registers of 32.
    """
    at = x + row * K * width + first + (k[:, None] * width + c[None, :])
    return tl.load(at, mask=(k < K)[:, None] & (c < stop)[None, :], other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _block(S, P, VALUES: tl.constexpr, STATES: tl.constexpr):
    """Image of a program, its block of values and its block of states."""
    blocks_S, blocks_P = tl.cdiv(S, STATES), tl.cdiv(P, VALUES)
    block = tl.program_id(0) % (blocks_S * blocks_P)
    return tl.program_id(0) // (blocks_S * blocks_P), block // blocks_S, block % blocks_S


@triton.jit
@no_type_check
def _advance(chain, x_ks, y_kp, weight, g_kps, PRECISION: tl.constexpr):
    """The chain matrix times what x ⊗ y and the neighbouring row's states send to a row."""
    nodes: tl.constexpr = g_kps.shape[0]
    columns: tl.constexpr = g_kps.shape[1] * g_kps.shape[2]
    # Added up as a matrix: Triton 3.7 fails on sm_90 where a product's operand is a reshaped sum.
    own = tl.reshape(y_kp[:, :, None] * x_ks[:, None, :], [nodes, columns])
    entering = own + weight[:, None] * tl.reshape(g_kps, [nodes, columns])
    return tl.reshape(tl.dot(chain, entering, input_precision=PRECISION), g_kps.shape)


@triton.jit
@no_type_check
def _next_row(h_kps, left, top, B, V, row, r, k, p, s, K, H, S, P, head, PRECISION: tl.constexpr):
    """States of row r from those of the row above."""
    here = k < K
    chain = _chain(_weights(left, row, k, K, H, head, here & (k > 0)), k)
    weight = _weights(top, row, k, K, H, head, here & (r > 0))
    b_ks = _tile(B, row, k, K, S, 0, s, S)
    v_kp = _tile(V, row, k, K, H * P, head * P, p, P)
    return _advance(chain, b_ks, v_kp, weight, h_kps, PRECISION)


@triton.jit
@no_type_check
def _states_at(h, row, k, p, s, K, S, P):
    """Where the states of a row's nodes stand."""
    of_row = k[:, None, None] * (P * S) + p[None, :, None] * S + s[None, None, :]
    return h + row * K * P * S + of_row


@triton.jit
@no_type_check
def grid_kernel(
    left,
    top,
    B,
    C,
    V,
    Y,
    G,
    R,
    K,
    H,
    S,
    P,
    NODES: tl.constexpr,
    VALUES: tl.constexpr,
    STATES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Y, in a piece for every block of states."""
    image, block_P, block_S = _block(S, P, VALUES, STATES)
    head = tl.program_id(1)
    k = tl.arange(0, NODES)
    p, s = block_P * VALUES + tl.arange(0, VALUES), block_S * STATES + tl.arange(0, STATES)
    inside = (k < K)[:, None] & (p < P)[None, :]
    h_kps = tl.zeros([NODES, VALUES, STATES], tl.float32)
    for r in range(R):
        row = image.to(tl.int64) * R + r
        h_kps = _next_row(
            h_kps, left, top, B, V, row, r, k, p, s, K, H, S, P, head, PRECISION
        )  # fmt: skip
        c_ks = _tile(C, row, k, K, S, 0, s, S)
        y_kp = tl.sum(c_ks[:, None, :] * h_kps, axis=2)
        at = Y + (block_S.to(tl.int64) * G * R + row) * K * H * P + head * P
        at += k[:, None] * (H * P) + p[None, :]
        tl.store(at, y_kp.to(Y.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def grid_states_kernel(
    left,
    top,
    B,
    V,
    dY,
    h,
    dC,
    t,
    R,
    K,
    H,
    S,
    P,
    first_head,
    NODES: tl.constexpr,
    VALUES: tl.constexpr,
    STATES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h of all rows, and dC in a piece for every head and block of values."""
    image, block_P, block_S = _block(S, P, VALUES, STATES)
    head = first_head + tl.program_id(1)
    k = tl.arange(0, NODES)
    p, s = block_P * VALUES + tl.arange(0, VALUES), block_S * STATES + tl.arange(0, STATES)
    here = k < K
    inside = here[:, None, None] & (p < P)[None, :, None] & (s < S)[None, None, :]
    h += (image.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * R * K * P * S
    piece = tl.program_id(1) * tl.cdiv(P, VALUES) + block_P
    h_kps = tl.zeros([NODES, VALUES, STATES], tl.float32)
    for r in range(R):
        row = image.to(tl.int64) * R + r
        h_kps = _next_row(
            h_kps, left, top, B, V, row, r, k, p, s, K, H, S, P, head, PRECISION
        )  # fmt: skip
        tl.store(_states_at(h, row - image * R, k, p, s, K, S, P), h_kps, mask=inside)
        dy_kp = _tile(dY, row, k, K, H * P, head * P, p, P)
        dc_ks = tl.sum(dy_kp[:, :, None] * h_kps, axis=1)
        at = dC + (piece.to(tl.int64) * t * R + row) * K * S + (k[:, None] * S + s[None, :])
        tl.store(at, dc_ks, mask=here[:, None] & (s < S)[None, :])


@triton.jit
@no_type_check
def grid_adjoint_kernel(
    left,
    top,
    B,
    C,
    V,
    dY,
    h,
    d_left,
    d_top,
    dB,
    dV,
    t,
    R,
    K,
    H,
    S,
    P,
    first_head,
    NODES: tl.constexpr,
    VALUES: tl.constexpr,
    STATES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """g from the last row up, and from it and h the pieces of all gradients but dC."""
    image, block_P, block_S = _block(S, P, VALUES, STATES)
    m, head = tl.num_programs(1), first_head + tl.program_id(1)
    k = tl.arange(0, NODES)
    p, s = block_P * VALUES + tl.arange(0, VALUES), block_S * STATES + tl.arange(0, STATES)
    here = k < K
    inside = (p < P)[None, :, None] & (s < S)[None, None, :]
    h += (image.to(tl.int64) * m + tl.program_id(1)) * R * K * P * S
    piece = tl.program_id(1) * tl.cdiv(P, VALUES) + block_P
    block = block_P * tl.cdiv(S, STATES) + block_S
    g_kps = tl.zeros([NODES, VALUES, STATES], tl.float32)
    for step in range(R):
        r = R - 1 - step
        row = image.to(tl.int64) * R + r
        chain = _chain(_weights(left, row, k, K, H, head, here & (k > 0)), k)
        weight = _weights(top, row + 1, k, K, H, head, here & (step > 0))
        c_ks = _tile(C, row, k, K, S, 0, s, S)
        dy_kp = _tile(dY, row, k, K, H * P, head * P, p, P)
        g_kps = _advance(tl.trans(chain), c_ks, dy_kp, weight, g_kps, PRECISION)

        b_ks = _tile(B, row, k, K, S, 0, s, S)
        dv_kp = tl.sum(b_ks[:, None, :] * g_kps, axis=2)
        at = dV + (block_S.to(tl.int64) * t * R + row) * K * m * P + tl.program_id(1) * P
        at += k[:, None] * (m * P) + p[None, :]
        tl.store(at, dv_kp, mask=here[:, None] & (p < P)[None, :])

        v_kp = _tile(V, row, k, K, H * P, head * P, p, P)
        db_ks = tl.sum(v_kp[:, :, None] * g_kps, axis=1)
        at = dB + (piece.to(tl.int64) * t * R + row) * K * S + (k[:, None] * S + s[None, :])
        tl.store(at, db_ks, mask=here[:, None] & (s < S)[None, :])

        at = (block.to(tl.int64) * t * R + row) * K * m + tl.program_id(1) + k * m
        own = row - image * R
        of_h = _states_at(h, own, k - 1, p, s, K, S, P)
        beside = tl.load(of_h, mask=(here & (k > 0))[:, None, None] & inside, other=0.0)
        product = tl.sum(tl.sum(g_kps * beside, axis=2), axis=1)
        tl.store(d_left + at, tl.where(k > 0, product, 0.0), mask=here)
        of_h = _states_at(h, own - 1, k, p, s, K, S, P)
        above = tl.load(of_h, mask=(here & (r > 0))[:, None, None] & inside, other=0.0)
        product = tl.sum(tl.sum(g_kps * above, axis=2), axis=1)
        tl.store(d_top + at, tl.where(r > 0, product, 0.0), mask=here)
