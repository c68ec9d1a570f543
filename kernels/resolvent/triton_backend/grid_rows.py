"""Sums of DAGs of small grids on a GPU as one matrix per head: Y = M V, M = Σ_d L_d ⊙ (C_d B_dᵀ).

With nodes numbered from a DAG's root on, the rows of its L obey L_r = R_r (top_r L_{r−1} + E_r),
where R_r is the chain matrix of a row's left weights and E_r holds its nodes' scales. So column s
of L begins in the row of its node s, and each of its numbers comes from two neighbours' towards the
root:

    L[i, s] = left[i] L[i beside, s] + top[i] L[i above, s] + (i = s) scale[i].

Let dM = dY Vᵀ, and let g obey the same from the far side on, g[i] = dL[i] + left[k] g[k] +
top[l] g[l] over the nodes k and l that i sends to, with dL = dM ⊙ (C Bᵀ). Then d left[i] and
d top[i] are Σ_s g[i, s] L[neighbour, s], d scale is the diagonal of g, and d(C Bᵀ) is Σ_heads dM ⊙ L.

A program that walks a DAG has the columns of one row of nodes and of a few heads, a lane each. A
row of L or g is a tuple of K float32 numbers a lane; no lane needs another's. L goes to memory, in
bfloat16 where V is; from there other programs, one for each pair of rows of an image, merge it into
M and take the gradient of C Bᵀ. Products with V and dY are cuBLAS's. DAGs of a set share B and C.
What rows of sources contribute to one weight's gradient is added up by torch.

Shapes: G images, R rows, K columns, n = R · K nodes, H heads, S state, P head dimension, D DAGs,
N sets; t images are worked on at a time. Of two rows, q is the one of the sources.
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

LANES = 32  # of a program that walks, which is one warp
MEMORY = 2**30  # bytes of L, M and dM


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
        for t in dags.groups(values):
            M, _ = dags.merged(dags.walked(t, values.dtype), _products(B[:, t], C[:, t]), t)
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
        for t in dags.groups(values):
            dM = dags.matrices(t, values.dtype)
            for h in range(V.shape[3]):
                torch.bmm(_of_head(dY[t], h), _of_head(values[t], h).mT, out=dM[:, h])
            d_skip[t] = dM.diagonal(dim1=-2, dim2=-1).mT.unflatten(1, V.shape[1:3])
            products, L = _products(B[:, t], C[:, t]), dags.walked(t, values.dtype)
            M, d_products = dags.merged(L, products, t, dM)
            for h in range(V.shape[3]):
                torch.bmm(M[:, h].mT, _of_head(dY[t], h), out=_of_head(dV[t], h))
            of_weights = dags.of_weights(dM, products, L, t)
            for whole, part in zip((d_left, d_top, d_scale), of_weights, strict=True):
                whole[:, t] = part
            d_products = d_products.flatten(0, 1)
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


class _Dags(NamedTuple):
    """Weights from each DAG's root on, a head's side by side, and what else all launches need.

    Attributes:
        tile: K, and heads and sources of a program that walks.
    """

    left: Float[Tensor, "D G H R K"]
    top: Float[Tensor, "D G H R K"]
    scale: Float[Tensor, "D G H R K"]
    skip: Float[Tensor, "G H R K"]
    corners: list[int]
    sets: list[int]
    tile: dict[str, int]

    @classmethod
    def of(
        cls,
        left: Tensor,
        top: Tensor,
        scale: Tensor,
        skip: Tensor,
        corners: list[int],
        sets: list[int],
    ) -> "_Dags":
        H, K = skip.shape[3], skip.shape[2]
        sources = max(4, triton.next_power_of_2(K))
        heads = min(max(1, LANES // sources), triton.next_power_of_2(H))
        tile = {"K": K, "HEADS": heads, "SOURCES": sources}
        weights = (
            torch.stack([_turned(x, corner) for x, corner in zip(of_dags, corners, strict=True)])
            for of_dags in (left, top, scale)
        )
        weights = (x.movedim(-1, 2).contiguous() for x in weights)
        return cls(*weights, skip.movedim(-1, 1).contiguous(), corners, sets, tile)

    def groups(self, values: Tensor) -> Iterator[slice]:
        """Images that are worked on together, as `MEMORY` allows; one at least."""
        G, H, R, K = self.skip.shape
        lanes = self.tile["HEADS"] * self.tile["SOURCES"]
        L = len(self.corners) * triton.cdiv(H, self.tile["HEADS"]) * R * R * K * lanes // 2
        numbers = L + 2 * H * (R * K) ** 2
        step = max(1, MEMORY // (numbers * values.element_size()))
        for first in range(0, G, step):
            yield slice(first, min(first + step, G))

    def matrices(self, t: slice, dtype: torch.dtype) -> Float[Tensor, "t H n n"]:
        """Unwritten; cuBLAS's fast kernels want rows that begin at whole 16 bytes."""
        _, H, R, K = self.skip.shape
        padded = triton.cdiv(R * K, 8) * 8
        return self.skip.new_empty(t.stop - t.start, H, R * K, padded, dtype=dtype)[..., : R * K]

    def walked(self, t: slice, dtype: torch.dtype) -> Float[Tensor, "D t blocks pairs K lanes"]:
        """L of all DAGs in their own order, as the programs' lanes had it."""
        G, H, R, K = self.skip.shape
        heads, sources = self.tile["HEADS"], self.tile["SOURCES"]
        D, images, blocks = len(self.corners), t.stop - t.start, triton.cdiv(H, heads)
        L = self.skip.new_empty(
            D, images, blocks, R * (R + 1) // 2, K, heads * sources, dtype=dtype
        )
        for d in range(D):
            weights = (self.left[d, t], self.top[d, t], self.scale[d, t])
            grid = (images * R * blocks,)
            launch(grid_rows_kernel, grid, *weights, L[d], R, H, num_warps=1, **self.tile)
        return L

    def merged(
        self, L: Tensor, products: Float[Tensor, "N t n n"], t: slice, dM: Tensor | None = None
    ) -> tuple[Float[Tensor, "t H n n"], Float[Tensor, "N t n n"]]:
        """M, and with its gradient that of C Bᵀ."""
        _, H, R, _ = self.skip.shape
        M, d_products = self.matrices(t, L.dtype), torch.empty_like(products)
        launch(
            grid_rows_merge_kernel,
            ((t.stop - t.start) * R * R,),
            *(L, products, self.skip[t], M, M if dM is None else dM, d_products),
            *(t.stop - t.start, R, H, M.stride(-2)),
            num_warps=1 if self.tile["SOURCES"] <= 16 else 4,
            DAGS=len(self.corners),
            FROM=_in_twos(self.corners),
            SETS=len(products),
            SET_OF=_in_twos(self.sets),
            BACKWARD=dM is not None,
            **self.tile,
        )
        return M, d_products

    def of_weights(
        self, dM: Float[Tensor, "t H n n"], products: Tensor, L: Tensor, t: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of left, top and scale, [D, t, R, K, H] each, turned back."""
        _, H, R, K = self.skip.shape
        D, images, blocks = L.shape[:3]
        # A piece for every row of sources, which stays 0 in the rows before it.
        pieces = L.new_zeros(2, D, images, H, R, R, K, dtype=torch.float32)
        d_scale = pieces.new_empty(D, images, H, R, K)
        for d, (corner, number) in enumerate(zip(self.corners, self.sets, strict=True)):
            launch(
                grid_rows_adjoint_kernel,
                (images * R * blocks,),
                *(self.left[d, t], self.top[d, t], dM, products[number], L[d]),
                *(*pieces[:, d], d_scale[d], R, H, dM.stride(-2), corner // 2, corner % 2),
                num_warps=1,
                **self.tile,
            )
        return tuple(
            torch.stack(
                [
                    _turned(x, corner)
                    for x, corner in zip(of_dags.movedim(2, -1), self.corners, strict=True)
                ]
            )
            for of_dags in (*pieces.sum(4), d_scale)
        )


def _turned(x_GRKH: Tensor, corner: int) -> Tensor:
    """From the images' orientation to that of a DAG, or back."""
    dims = [dim for dim, away in ((1, corner // 2), (2, corner % 2)) if away]
    return x_GRKH.flip(dims) if dims else x_GRKH


def _in_twos(numbers: list[int]) -> int:
    """Numbers below 4, two bits each."""
    return sum(number << 2 * i for i, number in enumerate(numbers))


@triton.jit
@no_type_check
def _program(R, H, HEADS: tl.constexpr):
    """Image of a program that walks, in 64 bits, its row of sources and its block of heads."""
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
def _place(image, block, q, r, R, H, K: tl.constexpr, HEADS: tl.constexpr, SOURCES: tl.constexpr):
    """Where L of the nodes of row r from those of row q ≤ r begins."""
    pair = q * R - q * (q - 1) // 2 + r - q
    pairs = R * (R + 1) // 2
    return ((image * tl.cdiv(H, HEADS) + block) * pairs + pair) * (K * HEADS * SOURCES)


@triton.jit
@no_type_check
def grid_rows_kernel(
    left,
    top,
    scale,
    L,
    R,
    H,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """L of one DAG from the row of the sources on."""
    image, q, block = _program(R, H, HEADS)
    h, j = _lanes(block, HEADS, SOURCES)
    here = (h < H) & (j < K)
    weights = (image * H + h) * (R * K)
    L += (h - block * HEADS) * SOURCES + j
    own = tl.load(scale + weights + q * K + j, mask=here, other=0.0).to(tl.float32)
    none = tl.zeros([HEADS, SOURCES], tl.float32)
    L_row = ()
    for _ in tl.static_range(K):
        L_row = L_row + (none,)  # noqa: RUF005
    for r in range(q, R):
        of_row = weights + r * K
        begins = tl.where(r == q, own, 0.0)
        x = none
        new = ()
        for k in tl.static_range(K):
            w_top = tl.load(top + of_row + k, mask=here & (r > q), other=0.0).to(tl.float32)
            entering = w_top * L_row[k] + tl.where(j == k, begins, 0.0)
            if k > 0:
                w_left = tl.load(left + of_row + k, mask=here, other=0.0).to(tl.float32)
                x = w_left * x + entering
            else:
                x = entering
            new = new + (x,)  # noqa: RUF005
        L_row = new
        at = L + _place(image, block, q, r, R, H, K, HEADS, SOURCES)
        for k in tl.static_range(K):
            number = L_row[k].to(L.dtype.element_ty)
            tl.store(at + k * (HEADS * SOURCES), number, mask=here)


@triton.jit
@no_type_check
def _of_dag(
    L,
    image,
    head,
    r,
    q,
    k,
    j,
    inside,
    R,
    H,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
    CORNER: tl.constexpr,
):
    """L of the nodes k of row r from the nodes j of row q, which a DAG numbers from its root on."""
    if CORNER >= 2:
        r = R - 1 - r
        q = R - 1 - q
    if CORNER % 2 == 1:
        k = K - 1 - k
        j = K - 1 - j
    L += _place(image, head // HEADS, q, r, R, H, K, HEADS, SOURCES)
    at = k * (HEADS * SOURCES) + head % HEADS * SOURCES + j
    return tl.load(L + at, mask=inside & (r >= q), other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def grid_rows_merge_kernel(
    L,
    products,
    skip,
    M,
    dM,
    d_products,
    t,
    R,
    H,
    width,
    DAGS: tl.constexpr,
    FROM: tl.constexpr,
    SETS: tl.constexpr,
    SET_OF: tl.constexpr,
    BACKWARD: tl.constexpr,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """M of one row from one row of sources for all heads, or the gradient of C Bᵀ besides.

    FROM and SET_OF hold each DAG's corner and set, in two bits.
    """
    program = tl.program_id(0)
    image, r, q = (program // R // R).to(tl.int64), program // R % R, program % R
    k = tl.arange(0, SOURCES)[:, None]
    j = tl.arange(0, SOURCES)[None, :]
    inside = (k < K) & (j < K)
    n = R * K
    product = ()
    d_product = ()
    for number in tl.static_range(SETS):
        at = ((image + number * t) * n + r * K + k) * n + q * K + j
        product = product + (tl.load(products + at, mask=inside, other=0.0),)  # noqa: RUF005
        d_product = d_product + (tl.zeros([SOURCES, SOURCES], tl.float32),)  # noqa: RUF005
    for head in range(H):
        row = (image * H + head) * n + r * K + k
        of_itself = inside & (k == j) & (r == q)
        M_kj = tl.load(skip + row + j * 0, mask=of_itself, other=0.0).to(tl.float32)
        if BACKWARD:
            dM_kj = tl.load(dM + row * width + q * K + j, mask=inside, other=0.0).to(tl.float32)
        new = ()
        for number in tl.static_range(SETS):
            L_kj = tl.zeros([SOURCES, SOURCES], tl.float32)
            for d in tl.static_range(DAGS):
                if (SET_OF >> (2 * d) & 3) == number:
                    L_kj += _of_dag(
                        L, image + d * t, head, r, q, k, j, inside, R, H, K, HEADS, SOURCES,
                        FROM >> (2 * d) & 3,
                    )  # fmt: skip
            M_kj += L_kj * product[number]
            if BACKWARD:
                new = new + (d_product[number] + dM_kj * L_kj,)  # noqa: RUF005
        tl.store(M + row * width + q * K + j, M_kj.to(M.dtype.element_ty), mask=inside)
        if BACKWARD:
            d_product = new
    if BACKWARD:
        for number in tl.static_range(SETS):
            at = ((image + number * t) * n + r * K + k) * n + q * K + j
            tl.store(d_products + at, d_product[number], mask=inside)


@triton.jit(do_not_specialize=["bottom", "right"])
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
    bottom,
    right,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """g of one DAG from the last row back to that of the sources.

    The DAG's own order but for dM and C Bᵀ, in which its root is at the bottom (1) or the top (0),
    and at the right or the left.
    """
    image, q, block = _program(R, H, HEADS)
    h, j = _lanes(block, HEADS, SOURCES)
    here = (h < H) & (j < K)
    n = R * K
    weights = (image * H + h) * n
    source = (q + bottom * (R - 1 - 2 * q)) * K + j + right * (K - 1 - 2 * j)
    dM += weights * width + source
    products += image * n * n + source
    L += (h - block * HEADS) * SOURCES + j
    pieces = weights * R + q * n + j
    none = tl.zeros([HEADS, SOURCES], tl.float32)
    d_own = none
    g = ()
    for _ in tl.static_range(K):
        g = g + (none,)  # noqa: RUF005
    for walked in range(R - q):
        r = R - 1 - walked
        of_row = weights + r * K
        target = (r + bottom * (R - 1 - 2 * r)) * K + right * (K - 1)
        L_row = L + _place(image, block, q, r, R, H, K, HEADS, SOURCES)
        L_above = L + _place(image, block, q, r - 1, R, H, K, HEADS, SOURCES)
        d_beside = none
        d_above = none
        d_own = none
        x = none
        new = ()
        for c in tl.static_range(K):
            k = K - 1 - c
            i = target + k * (1 - 2 * right)
            dL = tl.load(dM + i * width, mask=here, other=0.0).to(tl.float32)
            dL *= tl.load(products + i * n, mask=here, other=0.0)
            w_top = tl.load(top + of_row + (K + k), mask=here & (walked > 0), other=0.0)
            dL += w_top.to(tl.float32) * g[c]
            if c > 0:
                w_left = tl.load(left + of_row + (k + 1), mask=here, other=0.0)
                x = w_left.to(tl.float32) * x + dL
            else:
                x = dL
            new = new + (x,)  # noqa: RUF005
            if k > 0:
                at = L_row + (k - 1) * (HEADS * SOURCES)
                beside = tl.load(at, mask=here, other=0.0).to(tl.float32)
                d_beside = tl.where(j == k, tl.sum(x * beside, 1)[:, None], d_beside)
            at = L_above + k * (HEADS * SOURCES)
            above = tl.load(at, mask=here & (r > q), other=0.0).to(tl.float32)
            d_above = tl.where(j == k, tl.sum(x * above, 1)[:, None], d_above)
            d_own = tl.where(j == k, x, d_own)
        g = new
        tl.store(d_left + pieces + r * K, d_beside, mask=here)
        tl.store(d_top + pieces + r * K, d_above, mask=here)
    tl.store(d_scale + weights + q * K + j, d_own, mask=here)
