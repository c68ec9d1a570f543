"""Triton kernel of complex matrix products, by which modes are mixed and leading axes transformed.

Shapes: T products of P × Q by Q × R numbers; p, q, r tiles of them. A pair 2 is real, imaginary.
"""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kernels.launch import cdiv, launch, next_power_of_2


def complex_product(
    A: Float[Tensor, "2 T P Q"],
    B: Float[Tensor, "2 T Q R"],
    out: Float[Tensor, "2 T P R"],
    *,
    conj_A: bool = False,
    conj_B: bool = False,
) -> None:
    """Write the T products A B into `out`; all three may lie in memory in any order.

    Nearly as exact as float32 whatever the dtypes: beside a field's numbers there are few of these.

    Args:
        conj_A, conj_B: take the complex conjugate of that factor.
    """
    _, T, P, Q = A.shape
    R = B.shape[3]
    p, r = (min(max(16, next_power_of_2(n)), 32) for n in (P, R))
    strides = (*A.stride(), *B.stride(), *out.stride())
    grid = (T * cdiv(P, p) * cdiv(R, r),)
    tiles = {"P_TILE": p, "R_TILE": r, "Q_TILE": 16}
    sign = {"CONJ_A": conj_A, "CONJ_B": conj_B}
    launch(product_kernel, grid, A, B, out, T, P, R, Q, *strides, num_stages=3, **tiles, **sign)


@triton.jit
@no_type_check
def product_kernel(
    A,
    B,
    out,
    T,
    P,
    R,
    Q,
    A_part,
    A_t,
    A_p,
    A_q,
    B_part,
    B_t,
    B_q,
    B_r,
    out_part,
    out_t,
    out_p,
    out_r,
    P_TILE: tl.constexpr,
    R_TILE: tl.constexpr,
    Q_TILE: tl.constexpr,
    CONJ_A: tl.constexpr,
    CONJ_B: tl.constexpr,
):
    """A tile of one product; the programs of neighbouring products stand side by side."""
    t = (tl.program_id(0) % T).to(tl.int64)
    tile = tl.program_id(0) // T
    columns = tl.cdiv(R, R_TILE)
    p = tile // columns * P_TILE + tl.arange(0, P_TILE)
    r = tile % columns * R_TILE + tl.arange(0, R_TILE)
    A += t * A_t
    B += t * B_t
    re = tl.zeros((P_TILE, R_TILE), tl.float32)
    im = tl.zeros((P_TILE, R_TILE), tl.float32)
    for start in range(0, Q, Q_TILE):
        q = start + tl.arange(0, Q_TILE)
        at = A + (p.to(tl.int64) * A_p)[:, None] + (q.to(tl.int64) * A_q)[None, :]
        inside = (p < P)[:, None] & (q < Q)[None, :]
        A_re = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        A_im = tl.load(at + A_part, mask=inside, other=0.0).to(tl.float32)
        at = B + (q.to(tl.int64) * B_q)[:, None] + (r.to(tl.int64) * B_r)[None, :]
        inside = (q < Q)[:, None] & (r < R)[None, :]
        B_re = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        B_im = tl.load(at + B_part, mask=inside, other=0.0).to(tl.float32)
        A_im = -A_im if CONJ_A else A_im
        B_im = -B_im if CONJ_B else B_im
        re = tl.dot(A_re, B_re, re, input_precision="tf32x3")
        re = tl.dot(-A_im, B_im, re, input_precision="tf32x3")
        im = tl.dot(A_re, B_im, im, input_precision="tf32x3")
        im = tl.dot(A_im, B_re, im, input_precision="tf32x3")
    at = out + t * out_t + (p.to(tl.int64) * out_p)[:, None] + (r.to(tl.int64) * out_r)[None, :]
    inside = (p < P)[:, None] & (r < R)[None, :]
    tl.store(at, re.to(out.dtype.element_ty), mask=inside)
    tl.store(at + out_part, im.to(out.dtype.element_ty), mask=inside)
