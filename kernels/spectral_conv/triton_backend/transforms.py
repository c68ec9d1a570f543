"""Triton kernels between real fields and the Fourier coefficients of their kept modes.

A spectrum lies in memory as [2, B, *K, C]: real, then imaginary parts, and channels last, so that
what mixes channels and what transforms leading axes reads and writes whole rows of it. To a
spectrum the last two axes go in one kernel, which reads a plane once. The way back goes axis by
axis: the kernel of the last one takes a tile of D channels × points, since the 1 × 1 convolution
that it adds mixes all channels at a point, and writes the field once.

Shapes: B samples, C channels in, D out, N points and K kept modes of an axis, m of the last one; G
planes, or R rows of points, of a channel. A table has the waves of the last axis: [2 · m, N].
"""

from collections.abc import Sequence
from math import prod
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kernels.launch import cdiv, dot_precision, launch, next_power_of_2
from kernels.spectral_conv.basis import waves
from kernels.spectral_conv.triton_backend.products import complex_product

PROGRAMS = 256  # as many keep the multiprocessors of a large GPU busy


def to_spectrum(
    x: Float[Tensor, "B C *points"],
    modes: Sequence[int],
    table: Float[Tensor, "_ N"],
    scale: float,
    before: Float[Tensor, "B C *points"] | None = None,
    kept: Float[Tensor, "B C *points"] | None = None,
) -> Float[Tensor, "2 B *modes C"]:
    """Coefficients of the kept modes of a real field, in float32.

    Args:
        x: contiguous, as all others but the table.
        modes: kept on every axis, m of the last one.
        table: [2 · m, N], waves of the last axis, cosines and negative sines, with the factor of
            every mode.
        scale: factor on all modes.
        before: what has entered a GELU whose output has the gradient x: the field is then the
            gradient of its input.
        kept: written with the field that is transformed, where there is a GELU.
    """
    B, C, *points = x.shape
    N, m = points[-1], modes[-1]
    gelu = {"GELU": before is not None, "KEEP": kept is not None}
    fields = (x, x if before is None else before, x if kept is None else kept)
    precision = dot_precision(x.dtype)
    options = {"M_TILE": 16, "N_TILE": 32, "PRECISION": precision} | gelu
    if len(points) == 1:
        lines = 16
        programs = cdiv(B * C, lines) * cdiv(m, options["M_TILE"])
        length, parts = _parts(N, options["N_TILE"], programs)
        X = x.new_empty(parts, 2, B, m, C, dtype=torch.float32)
        sizes = (B, C, N, m, length, parts, *X.stride()[:2], *table.stride())
        launch(
            lines_kernel, (programs * parts,), *fields, table, X, *sizes,
            R_TILE=lines, num_stages=3, **options,
        )  # fmt: skip
        return X[0] if parts == 1 else X.sum(0)
    G, rows, K = prod(points[:-2]), points[-2], modes[-2]
    options["K_TILE"] = _tile(K, 64)
    # More would spill registers, most of all the three products of tf32x3.
    options["R_TILE"] = _tile(rows, 32 if precision == "tf32x3" or K > 32 else 64)
    blocks = cdiv(K, options["K_TILE"]) * cdiv(m, options["M_TILE"])
    programs = B * G * blocks * C
    length, parts = _parts(rows, options["R_TILE"], programs)
    X = x.new_empty(parts, 2, B * G, K, m, C, dtype=torch.float32)
    leading = waves(rows, K, False, torch.float32, str(x.device))
    sizes = (C, G, rows, N, K, m, length, parts, *X.stride()[:2], *table.stride(), scale)
    launch(
        planes_kernel, (programs * parts,), *fields, table, leading, X, *sizes,
        num_stages=3, **options,
    )  # fmt: skip
    X = X[0] if parts == 1 else X.sum(0)
    X = _turn(X, B, points[:-2], modes, forward=True)
    return X.view(2, B, *modes, C)


def to_field(
    spectrum: Float[Tensor, "2 B *modes D"],
    table: Float[Tensor, "_ N"],
    scale: float,
    y: Float[Tensor, "B D *points"],
    *,
    x: Float[Tensor, "B C *points"] | None = None,
    skip: Float[Tensor, "D C"] | None = None,
    bias: Float[Tensor, " D"] | None = None,
    before: Float[Tensor, "B D *points"] | None = None,
    gelu: bool = False,
) -> None:
    """Write the real field whose coefficients these are, plus skip x + bias, then GELU, into y.

    Args:
        table, scale: as of `to_spectrum`.
        y: contiguous, as x and the spectrum.
        x, skip: the 1 × 1 convolution, both or none; skip may be transposed.
        bias: per channel.
        before: written with what enters the GELU.
        gelu: whether there is one.
    """
    B, D, *points = y.shape
    modes = spectrum.shape[2:-1]
    pairs = _turn(spectrum, B, points[:-1], modes, forward=False)
    rows, N, m = prod(points[:-1]), points[-1], modes[-1]
    C = D if skip is None else skip.shape[1]
    tiles = {"D_TILE": _tile(D, 64), "N_TILE": _tile(N, 64)}
    tiles |= {"M_TILE": _tile(m, 32), "C_TILE": _tile(C, 32)}
    parts = {"SKIP": skip is not None, "BIAS": bias is not None}
    parts |= {"KEEP": before is not None, "GELU": gelu}
    precision = dot_precision(y.dtype)
    given = (y if t is None else t for t in (x, skip, bias, before))
    strides = (*table.stride(), *((0, 0) if skip is None else skip.stride()))
    grid = (B * rows * cdiv(N, tiles["N_TILE"]) * cdiv(D, tiles["D_TILE"]),)
    sizes = (C, D, rows, N, rows * N, m, pairs.stride(0))
    launch(
        fields_kernel, grid, pairs, table, *given, y, *sizes, *strides, scale,
        num_stages=2, PRECISION=precision, **tiles, **parts,
    )  # fmt: skip


def _tile(size: int, most: int) -> int:
    """Of an operand of tl.dot, which takes no fewer than 16."""
    return min(max(16, next_power_of_2(size)), most)


def _parts(size: int, tile: int, programs: int) -> tuple[int, int]:
    """Length of each of the parts, and their number, that leave enough programs."""
    tiles = cdiv(size, tile)
    length = cdiv(tiles, min(tiles, cdiv(PROGRAMS, programs))) * tile
    return length, cdiv(size, length)


def _turn(
    pairs: Tensor,
    B: int,
    points: Sequence[int],
    modes: Sequence[int],
    *,
    forward: bool,
) -> Tensor:
    """Transform the leading axes with these points to their modes, the last first, or back."""
    axes = range(len(points))
    for axis in reversed(axes) if forward else axes:
        N, K = points[axis], modes[axis]
        images = B * prod(points[:axis])
        given = pairs.reshape(2, images, N if forward else K, -1)
        wave = waves(N, K, False, torch.float32, str(pairs.device))[:, None]
        wave = (wave if forward else wave.mT).expand(-1, images, -1, -1)
        pairs = given.new_empty(2, images, K if forward else N, given.shape[3])
        complex_product(wave, given, pairs, conj_A=forward)
    return pairs


@triton.jit
@no_type_check
def lines_kernel(
    x,
    before,
    kept,
    table,
    X,
    B,
    C,
    N,
    m,
    length,
    parts,
    X_parts,
    X_imaginary,
    table_k,
    table_n,
    R_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    M_TILE: tl.constexpr,
    GELU: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Modes of some lines, one a channel of a sample, from a part of their points."""
    program = tl.program_id(0)
    blocks = tl.cdiv(m, M_TILE)
    part, program = program % parts, program // parts
    block = program % blocks
    line = (program // blocks).to(tl.int64) * R_TILE + tl.arange(0, R_TILE)
    j = block * M_TILE + tl.arange(0, M_TILE)
    there = line < B * C
    first = part * length
    last = tl.minimum(first + length, N)
    re, im = _modes_of_rows(
        x,
        before,
        kept,
        table,
        line * N,
        there,
        first,
        last,
        m,
        j,
        table_k,
        table_n,
        block == 0,
        R_TILE,
        N_TILE,
        M_TILE,
        GELU,
        KEEP,
        PRECISION,
    )
    sample, channel = line // C, line % C
    at = X + part.to(tl.int64) * X_parts
    at += (sample * m * C + channel)[:, None] + (j * C)[None, :]
    inside = there[:, None] & (j < m)[None, :]
    tl.store(at, re, mask=inside)
    tl.store(at + X_imaginary, im, mask=inside)


@triton.jit
@no_type_check
def planes_kernel(
    x,
    before,
    kept,
    table,
    leading,
    X,
    C,
    G,
    N1,
    N2,
    K,
    m,
    length,
    parts,
    X_parts,
    X_imaginary,
    table_k,
    table_n,
    scale,
    R_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    M_TILE: tl.constexpr,
    GELU: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of the modes of one plane [N1, N2], from a part of its rows.

    The programs of neighbouring channels, which stand side by side in X, run side by side.
    """
    program = tl.program_id(0)
    blocks_K, blocks_m = tl.cdiv(K, K_TILE), tl.cdiv(m, M_TILE)
    channel, program = program % C, program // C
    part, program = program % parts, program // parts
    block_m, program = program % blocks_m, program // blocks_m
    block_K, image = program % blocks_K, (program // blocks_K).to(tl.int64)
    plane = ((image // G * C + channel) * G + image % G) * N1 * N2
    k = block_K * K_TILE + tl.arange(0, K_TILE)
    j = block_m * M_TILE + tl.arange(0, M_TILE)
    X_re = tl.zeros((K_TILE, M_TILE), tl.float32)
    X_im = tl.zeros((K_TILE, M_TILE), tl.float32)
    last = tl.minimum(part * length + length, N1)
    for start in range(part * length, last, R_TILE):
        row = start + tl.arange(0, R_TILE)
        re, im = _modes_of_rows(
            x + plane,
            before + plane,
            kept + plane,
            table,
            row * N2,
            row < last,
            0,
            N2,
            m,
            j,
            table_k,
            table_n,
            (block_m == 0) & (block_K == 0),
            R_TILE,
            N_TILE,
            M_TILE,
            GELU,
            KEEP,
            PRECISION,
        )
        at = leading + k[:, None] * N1 + row[None, :]
        inside = (k < K)[:, None] & (row < last)[None, :]
        cos = tl.load(at, mask=inside, other=0.0)
        sin = tl.load(at + K * N1, mask=inside, other=0.0)
        X_re = tl.dot(cos, re, X_re, input_precision=PRECISION)
        X_re = tl.dot(sin, im, X_re, input_precision=PRECISION)
        X_im = tl.dot(cos, im, X_im, input_precision=PRECISION)
        X_im = tl.dot(-sin, re, X_im, input_precision=PRECISION)
    at = X + part.to(tl.int64) * X_parts + image * K * m * C + channel
    at += (k[:, None] * m + j[None, :]) * C
    inside = (k < K)[:, None] & (j < m)[None, :]
    tl.store(at, X_re * scale, mask=inside)
    tl.store(at + X_imaginary, X_im * scale, mask=inside)


@triton.jit
@no_type_check
def fields_kernel(
    pairs,
    table,
    x,
    skip,
    bias,
    before,
    y,
    C,
    D,
    rows,
    N,
    points,
    m,
    imaginary,
    table_k,
    table_n,
    skip_d,
    skip_c,
    scale,
    D_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    M_TILE: tl.constexpr,
    C_TILE: tl.constexpr,
    SKIP: tl.constexpr,
    BIAS: tl.constexpr,
    KEEP: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some channels at some points of a row, from the modes [2, B, rows, m, D] of the last axis.

    The programs that read the same tile of x run side by side.
    """
    program = tl.program_id(0)
    blocks_D, blocks_N = tl.cdiv(D, D_TILE), tl.cdiv(N, N_TILE)
    d = program % blocks_D * D_TILE + tl.arange(0, D_TILE)
    n = program // blocks_D % blocks_N * N_TILE + tl.arange(0, N_TILE)
    row = (program // blocks_D // blocks_N).to(tl.int64)
    total = tl.zeros((D_TILE, N_TILE), tl.float32)
    pairs += row * m * D
    for start in range(0, m, M_TILE):
        j = start + tl.arange(0, M_TILE)
        at = pairs + j[None, :] * D + d[:, None]
        inside = (j < m)[None, :] & (d < D)[:, None]
        re = tl.load(at, mask=inside, other=0.0)
        im = tl.load(at + imaginary, mask=inside, other=0.0)
        at = table + j[:, None] * table_k + n[None, :] * table_n
        inside = (j < m)[:, None] & (n < N)[None, :]
        cos = tl.load(at, mask=inside, other=0.0)
        sin = tl.load(at + m * table_k, mask=inside, other=0.0)
        total = tl.dot(re, cos, total, input_precision=PRECISION)
        total = tl.dot(im, sin, total, input_precision=PRECISION)
    total *= scale
    sample = row // rows
    place = row % rows * N + n
    if SKIP:
        for start in range(0, C, C_TILE):
            c = start + tl.arange(0, C_TILE)
            at = skip + d[:, None] * skip_d + c[None, :] * skip_c
            inside = (d < D)[:, None] & (c < C)[None, :]
            by = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            at = x + ((sample * C + c) * points)[:, None] + place[None, :]
            inside = (c < C)[:, None] & (n < N)[None, :]
            of = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            total = tl.dot(by, of, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[:, None]
    at = ((sample * D + d) * points)[:, None] + place[None, :]
    inside = (d < D)[:, None] & (n < N)[None, :]
    if KEEP:
        tl.store(before + at, total.to(before.dtype.element_ty), mask=inside)
    if GELU:
        total *= _below(total)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _modes_of_rows(
    x,
    before,
    kept,
    table,
    at_row,
    there,
    first,
    last,
    m,
    j,
    table_k,
    table_n,
    keeps,
    R_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    M_TILE: tl.constexpr,
    GELU: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Real and imaginary parts of modes j of the rows at `at_row`, from points first … last − 1."""
    re = tl.zeros((R_TILE, M_TILE), tl.float32)
    im = tl.zeros((R_TILE, M_TILE), tl.float32)
    for start in range(first, last, N_TILE):
        n = start + tl.arange(0, N_TILE)
        at = at_row[:, None] + n[None, :]
        inside = there[:, None] & (n < last)[None, :]
        field = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if GELU:
            field *= _slope(tl.load(before + at, mask=inside, other=0.0).to(tl.float32))
            if KEEP:
                tl.store(kept + at, field.to(kept.dtype.element_ty), mask=inside & keeps)
        at = table + n[:, None] * table_n + j[None, :] * table_k
        inside = (n < last)[:, None] & (j < m)[None, :]
        cos = tl.load(at, mask=inside, other=0.0)
        sin = tl.load(at + m * table_k, mask=inside, other=0.0)
        re = tl.dot(field, cos, re, input_precision=PRECISION)
        im = tl.dot(field, sin, im, input_precision=PRECISION)
    return re, im


@triton.jit
@no_type_check
def _below(z):
    """The probability that a normal number is below z; GELU is z times it."""
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)


@triton.jit
@no_type_check
def _slope(z):
    """Derivative of GELU."""
    return _below(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
