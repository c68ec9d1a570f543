"""Sums of DAGs of small grids on a GPU as one matrix per head: Y = M V, M = Σ_d L_d ⊙ (C_d B_dᵀ).

In its own order, from the root on, the rows of a DAG's L obey L_r = R_r (top_r L_{r−1} + E_r), with
R_r the chain matrix of a row's left weights and E_r its nodes' scales. So column s of L starts in
the row q of its node s, and every number of it is two products of its neighbours towards the root:

    L[k, s] = left[k] L[k beside, s] + top[k] L[k above, s] + (k = s) scale[k].

With g the same recurrence from the far side on dL = dM ⊙ (C Bᵀ), where dM = dY Vᵀ, that is
g[k] = dL[k] + left[k'] g[k'] + top[k″] g[k″] over the nodes k', k″ that k sends to: d left and d top
are Σ_s g[k, s] L[neighbour, s], d scale is the diagonal of g, d(C Bᵀ) is Σ_heads dM ⊙ L.

A program has the columns of one row of nodes and of a few heads, a lane each, and walks the rows of
the image; a row of L is a tuple of K numbers a lane, always in float32, and no lane needs another.
DAGs from the top write rows from q down, those from the bottom rows up to q: apart from row q, where
all meet, two launches write M without reading it. Products with V and dY are cuBLAS's, in bfloat16
where V is. The DAGs of a set share B and C. What the rows q contribute to one weight's gradient
goes to memory as it is, and torch adds it up.

Shapes: G images, R rows, K columns, n = R · K nodes, H heads, S state, P head dimension, D DAGs,
N sets; t images are worked on at a time. M is [t, H, n, n], its rows padded to whole 16 bytes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kernels.autograd import differentiate_by
from kernels.launch import launch

LANES = 32  # of a program, which is one warp
MEMORY = 2**30  # bytes of M, its gradient and L


def grid_rows(
    left: Float[Tensor, "D G R K H"],
    top: Float[Tensor, "D G R K H"],
    scale: Float[Tensor, "D G R K H"],
    B: Float[Tensor, "N G R K S"],
    C: Float[Tensor, "N G R K S"],
    skip: Float[Tensor, "G R K H"],
    V: Float[Tensor, "G R K H P"],
    corners: Sequence[int],
    sets: Sequence[int],
) -> Float[Tensor, "G R K H P"]:
    """As `kernels.resolvent.grid_dags.grid_dags`, which checks; L is computed in float32.

    Args:
        left, top, scale: of every DAG.
        B, C: of every set of DAGs.
        skip: what a node's values add beside the DAGs.
        V: values per head.
        corners: of every DAG, the number of its root in `kernels.resolvent.grid.CORNERS`; no two
            are the same.
        sets: of every DAG, whose B and C it has.

    Source: Lahoti et al., arXiv:2510.12111, vision experiments.
    """
    return _grid_rows(left, top, scale, B, C, skip, V, list(corners), list(sets))


@torch.library.custom_op("resolvent::grid_rows", mutates_args=())
def _grid_rows(
    left: Tensor,
    top: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor,
    V: Tensor,
    corners: list[int],
    sets: list[int],
) -> Tensor:
    dags = _Dags.of(left, top, scale, skip, corners, sets)
    values = V.to(_dtype_of_products(V)).contiguous()
    Y = torch.empty_like(values)
    with torch.autocast(V.device.type, enabled=False):
        for t in dags.groups(values.element_size(), kept=False):
            M, _ = dags.merged(_products(B[:, t], C[:, t]), t, values.dtype, keep=False)
            for h in range(V.shape[3]):
                torch.bmm(M[:, h], _of_head(values[t], h), out=_of_head(Y[t], h))
    return Y.to(V.dtype)


@_grid_rows.register_fake
def _(left, top, scale, B, C, skip, V, corners, sets):
    return torch.empty_like(V, memory_format=torch.contiguous_format)


@torch.library.custom_op("resolvent::grid_rows_backward", mutates_args=())
def _grid_rows_backward(
    dY: Tensor,
    left: Tensor,
    top: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor,
    V: Tensor,
    corners: list[int],
    sets: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (left, top, scale, B, C, skip)
    gradients = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)
    d_left, d_top, d_scale, dB, dC, d_skip = gradients
    dags = _Dags.of(left, top, scale, skip, corners, sets)
    values, dY = (x.to(_dtype_of_products(V)).contiguous() for x in (V, dY))
    dV = torch.empty_like(values)
    with torch.autocast(V.device.type, enabled=False):
        for t in dags.groups(values.element_size(), kept=True):
            dM = dags.matrices(t, values.dtype)
            for h in range(V.shape[3]):
                torch.bmm(_of_head(dY[t], h), _of_head(values[t], h).mT, out=dM[:, h])
            d_skip[t] = dM.diagonal(dim1=-2, dim2=-1).mT.unflatten(1, V.shape[1:3])
            products = _products(B[:, t], C[:, t])
            M, kept = dags.merged(products, t, values.dtype, keep=True)
            for h in range(V.shape[3]):
                torch.bmm(M[:, h].mT, _of_head(dY[t], h), out=_of_head(dV[t], h))
            for whole, part in zip(
                (d_left, d_top, d_scale), dags.of_weights(dM, products, kept, t), strict=True
            ):
                whole[:, t] = part.movedim(2, -1)
            d_products = dags.of_products(dM, kept).flatten(0, 1)
            of_B = torch.bmm(d_products.mT, _by_nodes(C[:, t]))
            of_C = torch.bmm(d_products, _by_nodes(B[:, t]))
            dB[:, t], dC[:, t] = of_B.view_as(dB[:, t]), of_C.view_as(dC[:, t])
    return *gradients, dV.to(V.dtype)


differentiate_by(_grid_rows, _grid_rows_backward, gradients=7)


def _dtype_of_products(V: Tensor) -> torch.dtype:
    """Products in float16 might overflow."""
    return V.dtype if V.dtype == torch.bfloat16 else torch.float32


def _of_head(x_tRKHP: Tensor, h: int) -> Tensor:
    """[t, n, P], without a copy."""
    return x_tRKHP.flatten(1, 2)[:, :, h]


def _by_nodes(x_NtRKS: Tensor) -> Tensor:
    """[N · t, n, S] in float32."""
    return x_NtRKS.float().flatten(0, 1).flatten(1, 2)


def _products(B: Tensor, C: Tensor) -> Float[Tensor, "N t n n"]:
    """C Bᵀ."""
    products = torch.bmm(_by_nodes(C), _by_nodes(B).mT)
    return products.unflatten(0, B.shape[:2])


class _Kept(NamedTuple):
    """L of all DAGs, as the programs of a walk had it, of those from the left and from the right.

    [t, blocks of heads, R rows of sources q, R + 1, K, LANES or fewer] each: rows from q down come
    from the top, one place further on, those up to q from the bottom, so that both have room.
    """

    left: Tensor
    right: Tensor


class _Dags(NamedTuple):
    """What a walk reads, its weights with the nodes of a head side by side, and its constants."""

    left: Float[Tensor, "D G H R K"]
    top: Float[Tensor, "D G H R K"]
    scale: Float[Tensor, "D G H R K"]
    skip: Float[Tensor, "G H R K"]
    corners: tuple[int, ...]
    sets: tuple[int, ...]

    @classmethod
    def of(
        cls, left: Tensor, top: Tensor, scale: Tensor, skip: Tensor, corners: list, sets: list
    ) -> "_Dags":
        weights = (x.movedim(-1, 2).contiguous() for x in (left, top, scale))
        return cls(*weights, skip.movedim(-1, 1).contiguous(), tuple(corners), tuple(sets))

    @property
    def tile(self) -> dict[str, int]:
        """Heads and sources of a program, and K."""
        H, K = self.skip.shape[1], self.skip.shape[3]
        sources = max(4, triton.next_power_of_2(K))
        heads = min(max(1, LANES // sources), triton.next_power_of_2(H))
        return {"K": K, "HEADS": heads, "SOURCES": sources}

    def groups(self, bytes_each: int, kept: bool) -> Iterator[slice]:
        """Images that are worked on together, as `MEMORY` allows; one at least."""
        G, H, R, K = self.skip.shape
        numbers = H * (R * K) ** 2 * bytes_each * (4 if kept else 1)
        numbers += (1 + max(self.sets)) * (R * K) ** 2 * 4 * (2 if kept else 1)
        step = max(1, MEMORY // numbers)
        for first in range(0, G, step):
            yield slice(first, min(first + step, G))

    def matrices(self, t: slice, dtype: torch.dtype) -> Float[Tensor, "t H n n"]:
        """Unwritten; cuBLAS's fast kernels want rows that begin at 16 bytes."""
        H, R, K = self.skip.shape[1:]
        padded = triton.cdiv(R * K, 8) * 8
        M = self.skip.new_empty(t.stop - t.start, H, R * K, padded, dtype=dtype)
        return M[..., : R * K]

    def at(self, corner: int) -> int:
        """Number of the DAG rooted there, −1 for none."""
        return self.corners.index(corner) if corner in self.corners else -1

    def merged(
        self, products: Float[Tensor, "N t n n"], t: slice, dtype: torch.dtype, keep: bool
    ) -> tuple[Float[Tensor, "t H n n"], _Kept | None]:
        """M, and what the backward pass needs of L."""
        G, H, R, K = self.skip.shape
        images, tile = t.stop - t.start, self.tile
        M = self.matrices(t, dtype)
        blocks, lanes = triton.cdiv(H, tile["HEADS"]), tile["HEADS"] * tile["SOURCES"]
        kept = None
        if keep:
            sides = {corner % 2 for corner in self.corners}
            shape = (len(sides), images, blocks, R, R + 1, K, lanes)
            L = M.new_empty(shape)
            kept = _Kept(L[0], L[-1])
        tensors = (self.left[:, t], self.top[:, t], self.scale[:, t], self.skip[t], products, M)
        for step, (from_left, from_right), (back_left, back_right) in (
            (1, (0, 1), (2, 3)),
            (-1, (2, 3), (0, 1)),
        ):
            launch(
                grid_rows_kernel,
                (images * R * blocks,),
                *tensors,
                *(kept or (M, M)),
                *(G, images, R, H, M.stride(-2)),
                num_warps=1,
                STEP=step,
                FROM_LEFT=self.at(from_left),
                FROM_RIGHT=self.at(from_right),
                BACK_LEFT=self.at(back_left),
                BACK_RIGHT=self.at(back_right),
                SETS=sum(number << 2 * d for d, number in enumerate(self.sets)),
                KEEP=keep,
                **tile,
            )
        return M, kept

    def of_weights(
        self, dM: Float[Tensor, "t H n n"], products: Tensor, kept: _Kept, t: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of left, top and scale, [D, t, H, R, K] each."""
        D, H, (images, R, K) = len(self.corners), self.skip.shape[1], self._sizes(t)
        # In a piece for every row of sources; of those beyond, rows know nothing.
        pieces = self.skip.new_zeros(2, D, images, H, R, R, K, dtype=torch.float32)
        d_scale = pieces.new_empty(D, images, H, R, K)
        tile = self.tile
        for d, (corner, number) in enumerate(zip(self.corners, self.sets, strict=True)):
            launch(
                grid_rows_adjoint_kernel,
                (images * R * triton.cdiv(H, tile["HEADS"]),),
                *(self.left[d, t], self.top[d, t], dM, products[number], kept[corner % 2]),
                *(*pieces[:, d], d_scale[d], R, H, dM.stride(-2)),
                num_warps=1,
                STEP=1 if corner < 2 else -1,
                RIGHT=corner % 2 == 1,
                **tile,
            )
        d_left, d_top = pieces.sum(4)
        return d_left, d_top, d_scale

    def of_products(
        self, dM: Float[Tensor, "t H n n"], kept: _Kept
    ) -> Float[Tensor, "N t n n"]:
        """Gradient of C Bᵀ."""
        images, H, n, _ = dM.shape
        R = self.skip.shape[2]
        dK = dM.new_empty(1 + max(self.sets), images, n, n, dtype=torch.float32)
        for number, gradient in enumerate(dK):
            of_set = {c for c, its in zip(self.corners, self.sets, strict=True) if its == number}
            launch(
                grid_rows_products_kernel,
                (images * R * R,),
                *(dM, *kept, gradient, R, H, dM.stride(-2)),
                num_warps=1 if self.tile["SOURCES"] <= 16 else 4,
                TOP_LEFT=0 in of_set,
                TOP_RIGHT=1 in of_set,
                BOTTOM_LEFT=2 in of_set,
                BOTTOM_RIGHT=3 in of_set,
                **self.tile,
            )
        return dK

    def _sizes(self, t: slice) -> tuple[int, int, int]:
        return t.stop - t.start, *self.skip.shape[2:]


@triton.jit
@no_type_check
def _program(R, H, HEADS: tl.constexpr):
    """Image of a program, in 64 bits, its row of sources and its block of heads."""
    blocks = tl.cdiv(H, HEADS)
    program = tl.program_id(0)
    return (program // blocks // R).to(tl.int64), program // blocks % R, program % blocks


@triton.jit
@no_type_check
def _lanes(block, HEADS: tl.constexpr, SOURCES: tl.constexpr):
    """Head and source of every lane."""
    h = block * HEADS + tl.arange(0, HEADS)[:, None]
    j = tl.arange(0, SOURCES)[None, :]
    # In full, so that all that is loaded lies in registers alike.
    return tl.broadcast_to(h, [HEADS, SOURCES]), tl.broadcast_to(j, [HEADS, SOURCES])


@triton.jit
@no_type_check
def _kept_at(image, block, q, R, H, K: tl.constexpr, HEADS: tl.constexpr, SOURCES: tl.constexpr):
    """Where a program's lanes have their L of the first row."""
    program = (image * tl.cdiv(H, HEADS) + block) * R + q
    lane = tl.arange(0, HEADS)[:, None] * SOURCES + tl.arange(0, SOURCES)[None, :]
    return program * (R + 1) * K * HEADS * SOURCES + lane


@triton.jit
@no_type_check
def _first_row(left, scale, j, here, K: tl.constexpr, RIGHT: tl.constexpr):
    """L in the row of its sources, in the order of the walk."""
    own = tl.load(scale + j, mask=here, other=0.0).to(tl.float32)
    x = tl.zeros(j.shape, tl.float32)
    L = ()
    for c in tl.static_range(K):
        k = K - 1 - c if RIGHT else c
        if c > 0:
            x *= tl.load(left + k, mask=here, other=0.0).to(tl.float32)
        x += tl.where(j == k, own, 0.0)
        L = L + (x,)  # noqa: RUF005
    return L


@triton.jit
@no_type_check
def _next_row(above, left, top, here, K: tl.constexpr, RIGHT: tl.constexpr):
    """L in a row beyond its sources, from that in the row before."""
    x = above[0] * 0.0
    L = ()
    for c in tl.static_range(K):
        k = K - 1 - c if RIGHT else c
        entering = above[c] * tl.load(top + k, mask=here, other=0.0).to(tl.float32)
        if c > 0:
            x = x * tl.load(left + k, mask=here, other=0.0).to(tl.float32) + entering
        else:
            x = entering
        L = L + (x,)  # noqa: RUF005
    return L


@triton.jit
@no_type_check
def _plus(M, L, products, nodes, here, K: tl.constexpr, RIGHT: tl.constexpr):
    """A row of M with what one DAG adds."""
    total = ()
    for k in tl.static_range(K):
        product = tl.load(products + k * nodes, mask=here, other=0.0)
        total = total + (M[k] + L[K - 1 - k if RIGHT else k] * product,)  # noqa: RUF005
    return total


@triton.jit
@no_type_check
def _put(at, x, stride, here, K: tl.constexpr, BACKWARDS: tl.constexpr):
    """A row of K numbers a lane to memory."""
    for k in tl.static_range(K):
        value = x[K - 1 - k if BACKWARDS else k]
        tl.store(at + k * stride, value.to(at.dtype.element_ty), mask=here)


@triton.jit
@no_type_check
def grid_rows_kernel(
    left,
    top,
    scale,
    skip,
    products,
    M,
    L_left,
    L_right,
    G,
    t,
    R,
    H,
    width,
    STEP: tl.constexpr,
    FROM_LEFT: tl.constexpr,
    FROM_RIGHT: tl.constexpr,
    BACK_LEFT: tl.constexpr,
    BACK_RIGHT: tl.constexpr,
    SETS: tl.constexpr,
    KEEP: tl.constexpr,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """M from the row of the sources down (STEP = 1), or above it (−1), and L of the DAGs that walk.

    FROM_LEFT and FROM_RIGHT are the numbers of the DAGs that walk this way, BACK_LEFT and BACK_RIGHT
    of those that walk the other way, −1 for none; SETS holds the set of every DAG in two bits.
    """
    image, q, block = _program(R, H, HEADS)
    h, j = _lanes(block, HEADS, SOURCES)
    here = (h < H) & (j < K)
    n = R * K
    weights = (image * H + h) * n + q * K
    columns = image * n * n + q * K + j
    M += (image * H + h) * n * width + q * K + j
    kept = _kept_at(image, block, q, R, H, K, HEADS, SOURCES)
    of_dag, of_set = (image * 0 + G) * H * n, (image * 0 + t) * n * n

    if STEP == 1:
        diagonal = tl.load(skip + weights + j, mask=here, other=0.0).to(tl.float32)
        M_row = ()
        for k in tl.static_range(K):
            M_row = M_row + (tl.where(j == k, diagonal, 0.0),)  # noqa: RUF005
    if FROM_LEFT >= 0:
        left_a = left + weights + FROM_LEFT * of_dag
        top_a = top + weights + FROM_LEFT * of_dag
        products_a = products + columns + (SETS >> 2 * FROM_LEFT & 3) * of_set
        a = _first_row(left_a, scale + weights + FROM_LEFT * of_dag, j, here, K, False)
        if KEEP:
            at = L_left + kept + (q + (STEP + 1) // 2) * K * HEADS * SOURCES
            _put(at, a, HEADS * SOURCES, here, K, False)
        if STEP == 1:
            M_row = _plus(M_row, a, products_a + q * K * n, n, here, K, False)
    if FROM_RIGHT >= 0:
        left_b = left + weights + FROM_RIGHT * of_dag
        top_b = top + weights + FROM_RIGHT * of_dag
        products_b = products + columns + (SETS >> 2 * FROM_RIGHT & 3) * of_set
        b = _first_row(left_b, scale + weights + FROM_RIGHT * of_dag, j, here, K, True)
        if KEEP:
            at = L_right + kept + (q + (STEP + 1) // 2) * K * HEADS * SOURCES
            _put(at, b, HEADS * SOURCES, here, K, True)
        if STEP == 1:
            M_row = _plus(M_row, b, products_b + q * K * n, n, here, K, True)
    if STEP == 1:
        if BACK_LEFT >= 0:
            at = weights + BACK_LEFT * of_dag
            c = _first_row(left + at, scale + at, j, here, K, False)
            products_c = products + columns + (SETS >> 2 * BACK_LEFT & 3) * of_set
            M_row = _plus(M_row, c, products_c + q * K * n, n, here, K, False)
        if BACK_RIGHT >= 0:
            at = weights + BACK_RIGHT * of_dag
            d = _first_row(left + at, scale + at, j, here, K, True)
            products_d = products + columns + (SETS >> 2 * BACK_RIGHT & 3) * of_set
            M_row = _plus(M_row, d, products_d + q * K * n, n, here, K, True)
        _put(M + q * K * width, M_row, width, here, K, False)

    for walked in range(1, R - q if STEP == 1 else q + 1):
        r = q + STEP * walked
        M_row = ()
        for _ in tl.static_range(K):
            M_row = M_row + (tl.zeros(j.shape, tl.float32),)  # noqa: RUF005
        if FROM_LEFT >= 0:
            at = STEP * walked * K
            a = _next_row(a, left_a + at, top_a + at, here, K, False)
            M_row = _plus(M_row, a, products_a + r * K * n, n, here, K, False)
        if FROM_RIGHT >= 0:
            at = STEP * walked * K
            b = _next_row(b, left_b + at, top_b + at, here, K, True)
            M_row = _plus(M_row, b, products_b + r * K * n, n, here, K, True)
        _put(M + r * K * width, M_row, width, here, K, False)
        if KEEP:
            at = kept + (r + (STEP + 1) // 2) * K * HEADS * SOURCES
            if FROM_LEFT >= 0:
                _put(L_left + at, a, HEADS * SOURCES, here, K, False)
            if FROM_RIGHT >= 0:
                _put(L_right + at, b, HEADS * SOURCES, here, K, True)


@triton.jit
@no_type_check
def grid_rows_adjoint_kernel(
    left,
    top,
    dM,
    products,
    L,
    d_left,
    d_top,
    d_scale,
    R,
    H,
    width,
    STEP: tl.constexpr,
    RIGHT: tl.constexpr,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """g of one DAG from the row farthest from its root back to that of the sources."""
    image, q, block = _program(R, H, HEADS)
    h, j = _lanes(block, HEADS, SOURCES)
    here = (h < H) & (j < K)
    n = R * K
    weights = (image * H + h) * n
    left += weights
    top += weights
    dM += weights * width + q * K + j
    products += image * n * n + q * K + j
    L += _kept_at(image, block, q, R, H, K, HEADS, SOURCES)
    pieces = weights * R + q * n + j

    none = tl.zeros(j.shape, tl.float32)
    d_own = none
    g = ()
    for _ in tl.static_range(K):
        g = g + (none,)  # noqa: RUF005
    for walked in range(R - q if STEP == 1 else q + 1):
        r = R - 1 - walked if STEP == 1 else walked
        last = (r + (STEP + 1) // 2) * K * HEADS * SOURCES
        before = last - STEP * K * HEADS * SOURCES
        d_beside = none
        d_above = none
        d_own = none
        x = none
        new = ()
        for c in tl.static_range(K):  # the column farthest from the root first
            k = c if RIGHT else K - 1 - c
            dm = tl.load(dM + (r * K + k) * width, mask=here, other=0.0).to(tl.float32)
            product = tl.load(products + (r * K + k) * n, mask=here, other=0.0)
            weight = tl.load(top + (r + STEP) * K + k, mask=here & (walked > 0), other=0.0)
            own = dm * product + weight.to(tl.float32) * g[c]
            if c > 0:
                weight = tl.load(left + r * K + (k - 1 if RIGHT else k + 1), mask=here, other=0.0)
                x = own + weight.to(tl.float32) * x
            else:
                x = own
            new = new + (x,)  # noqa: RUF005
            if c < K - 1:
                at = L + last + (k + 1 if RIGHT else k - 1) * HEADS * SOURCES
                beside = tl.load(at, mask=here, other=0.0).to(tl.float32)
                d_beside = tl.where(j == k, tl.sum(x * beside, 1)[:, None], d_beside)
            at = L + before + k * HEADS * SOURCES
            above = tl.load(at, mask=here & (r != q), other=0.0).to(tl.float32)
            d_above = tl.where(j == k, tl.sum(x * above, 1)[:, None], d_above)
            d_own = tl.where(j == k, x, d_own)
        g = new
        tl.store(d_left + pieces + r * K, d_beside, mask=here)
        tl.store(d_top + pieces + r * K, d_above, mask=here)
    tl.store(d_scale + weights + q * K + j, d_own, mask=here)


@triton.jit
@no_type_check
def grid_rows_products_kernel(
    dM,
    L_left,
    L_right,
    dK,
    R,
    H,
    width,
    TOP_LEFT: tl.constexpr,
    TOP_RIGHT: tl.constexpr,
    BOTTOM_LEFT: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """Σ_heads dM ⊙ L of the DAGs of a set, for one row of targets and one of sources."""
    program = tl.program_id(0)
    image, r, q = (program // R // R).to(tl.int64), program // R % R, program % R
    k = tl.arange(0, SOURCES)[:, None]
    j = tl.arange(0, SOURCES)[None, :]
    inside = (k < K) & (j < K)
    n = R * K
    total = tl.zeros([SOURCES, SOURCES], tl.float32)
    for head in range(H):
        at = ((image * H + head) * n + r * K + k) * width + q * K + j
        dm = tl.load(dM + at, mask=inside, other=0.0).to(tl.float32)
        program = (image * tl.cdiv(H, HEADS) + head // HEADS) * R + q
        of_top = (program * (R + 1) + r + 1) * K * HEADS * SOURCES
        of_bottom = of_top - K * HEADS * SOURCES
        lane = k * HEADS * SOURCES + head % HEADS * SOURCES + j
        L = tl.zeros([SOURCES, SOURCES], tl.float32)
        if TOP_LEFT:
            L += tl.load(L_left + of_top + lane, mask=inside & (r >= q), other=0.0)
        if TOP_RIGHT:
            L += tl.load(L_right + of_top + lane, mask=inside & (r >= q), other=0.0)
        if BOTTOM_LEFT:
            L += tl.load(L_left + of_bottom + lane, mask=inside & (r <= q), other=0.0)
        if BOTTOM_RIGHT:
            L += tl.load(L_right + of_bottom + lane, mask=inside & (r <= q), other=0.0)
        total += dm * L
    tl.store(dK + (image * n + r * K + k) * n + q * K + j, total, mask=inside)
