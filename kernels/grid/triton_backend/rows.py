"""Sums of DAGs of small grids on a GPU as one matrix per head: Y = M V, M = Σ_d L_d ⊙ (C_d B_dᵀ).

With nodes numbered from a DAG's root on, the rows of its L obey L_r = R_r (top_r L_{r−1} + E_r),
where R_r is the chain matrix of a row's left weights and E_r holds its nodes' scales. So column s
of L begins in the row of its node s, and each of its numbers comes from two neighbours' towards the
root:

    L[i, s] = left[i] L[i beside, s] + top[i] L[i above, s] + (i = s) scale[i].

Let dM = dY Vᵀ, and let g obey the same from the far side on, g[i] = dL[i] + left[k] g[k] +
top[l] g[l] over the nodes k and l that i sends to, with dL = dM ⊙ (C Bᵀ). Then d left[i] and
d top[i] are Σ_s g[i, s] L[neighbour, s], d scale is the diagonal of g, d skip that of dM, and
d(C Bᵀ) is Σ_heads dM ⊙ L.

A program that walks a DAG has the columns of one row of nodes and of a few heads, a lane each. A
row of L or g is a tuple of K float32 numbers a lane; no lane needs another's. L goes to memory, in
bfloat16 where V is; from there other programs, one for each pair of rows of an image, merge it into
M and take the gradient of C Bᵀ. What rows of sources contribute to one weight's gradient goes to
memory, too, and is then added up. Products with V and dY are cuBLAS's. DAGs of a set share B and C.

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
from kernels.launch import cdiv, launch, next_power_of_2

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
    """As `kernels.grid.grid_dags`, which checks; L is computed in float32.

    Args:
        left, top, scale: of every DAG.
        B, C: of every set of DAGs.
        skip: what a node's values add beside the DAGs.
        V: values per head.
        corners: of every DAG, the number of its root in `kernels.grid.CORNERS`; no two
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
            M = dags.matrices(t, values.dtype)
            dags.merge(dags.walked(t, values.dtype), _products(B[:, t], C[:, t]), M, t)
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
    d_left, d_top, d_scale, dB, dC, d_skip = (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (left, top, scale, B, C, skip)
    )
    dags = _Dags.of(left, top, scale, skip, corners, sets)
    values, dY = (x.to(_dtype_of_products(V)).contiguous() for x in (V, dY))
    dV = torch.empty_like(values)
    with torch.autocast(V.device.type, enabled=False):
        for t in dags.groups(values):
            M, dM = (dags.matrices(t, values.dtype) for _ in range(2))
            for h in range(V.shape[3]):
                torch.bmm(_of_head(dY[t], h), _of_head(values[t], h).mT, out=dM[:, h])
            L, products = dags.walked(t, values.dtype), _products(B[:, t], C[:, t])
            d_products = torch.empty_like(products)
            dags.merge(L, products, M, t, (dM, d_products, d_skip[t]))
            for h in range(V.shape[3]):
                torch.bmm(M[:, h].mT, _of_head(dY[t], h), out=_of_head(dV[t], h))
            dags.walk_back(dM, products, L, t, [x[:, t] for x in (d_left, d_top, d_scale)])
            d_products = d_products.flatten(0, 1)
            of_B = torch.bmm(d_products.mT, _by_nodes(C[:, t]))
            of_C = torch.bmm(d_products, _by_nodes(B[:, t]))
            dB[:, t], dC[:, t] = of_B.view_as(dB[:, t]), of_C.view_as(dC[:, t])
    return d_left, d_top, d_scale, dB, dC, d_skip, dV.to(V.dtype)


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
    """What all launches need.

    Attributes:
        tile: K, and heads and sources of a program that walks.
    """

    left: Float[Tensor, "D G R K H"]
    top: Float[Tensor, "D G R K H"]
    scale: Float[Tensor, "D G R K H"]
    skip: Float[Tensor, "G R K H"]
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
        _, _, K, H = skip.shape
        sources = max(4, next_power_of_2(K))
        heads = min(max(1, LANES // sources), next_power_of_2(H))
        tile = {"K": K, "HEADS": heads, "SOURCES": sources}
        left, top, scale, skip = (x.contiguous() for x in (left, top, scale, skip))
        return cls(left, top, scale, skip, corners, sets, tile)

    @property
    def blocks(self) -> int:
        """Of heads."""
        return cdiv(self.skip.shape[3], self.tile["HEADS"])

    @property
    def lanes(self) -> int:
        """Of a program that walks."""
        return self.tile["HEADS"] * self.tile["SOURCES"]

    def groups(self, values: Tensor) -> Iterator[slice]:
        """Images that are worked on together, as `MEMORY` allows; one at least."""
        G, R, K, H = self.skip.shape
        L = len(self.corners) * self.blocks * R * (R + 1) // 2 * K * self.lanes
        numbers = L + 2 * H * (R * K) ** 2
        step = max(1, MEMORY // (numbers * values.element_size()))
        for first in range(0, G, step):
            yield slice(first, min(first + step, G))

    def matrices(self, t: slice, dtype: torch.dtype) -> Float[Tensor, "t H n n"]:
        """Unwritten; cuBLAS's fast kernels want rows that begin at whole 16 bytes."""
        _, R, K, H = self.skip.shape
        padded = cdiv(R * K, 8) * 8
        return self.skip.new_empty(t.stop - t.start, H, R * K, padded, dtype=dtype)[..., : R * K]

    def walked(self, t: slice, dtype: torch.dtype) -> Float[Tensor, "D t blocks pairs K lanes"]:
        """L of all DAGs in their own order, as the programs' lanes had it."""
        _, R, K, H = self.skip.shape
        shape = (t.stop - t.start, self.blocks, R * (R + 1) // 2, K, self.lanes)
        L = self.skip.new_empty(len(self.corners), *shape, dtype=dtype)
        for d, corner in enumerate(self.corners):
            weights = (self.left[d, t], self.top[d, t], self.scale[d, t])
            launch(
                grid_rows_kernel,
                (shape[0] * self.blocks * R,),
                *(*weights, L[d], R, H, *_ways(corner)),
                num_warps=1,
                **self.tile,
            )
        return L

    def merge(
        self,
        L: Float[Tensor, "D t blocks pairs K lanes"],
        products: Float[Tensor, "N t n n"],
        M: Float[Tensor, "t H n n"],
        t: slice,
        gradients: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Write M, and given its gradient those of C Bᵀ and skip."""
        images, H, _, _ = M.shape
        R = self.skip.shape[1]
        launch(
            grid_rows_merge_kernel,
            (images * R * R,),
            *(L, products, self.skip[t], M, *(gradients or (M, M, M))),
            *(images, R, H, M.stride(-2)),
            num_warps=1 if self.tile["SOURCES"] <= 16 else 4,
            DAGS=len(self.corners),
            FROM=_in_twos(self.corners),
            SETS=len(products),
            SET_OF=_in_twos(self.sets),
            BACKWARD=gradients is not None,
            **self.tile,
        )

    def walk_back(
        self,
        dM: Float[Tensor, "t H n n"],
        products: Float[Tensor, "N t n n"],
        L: Float[Tensor, "D t blocks pairs K lanes"],
        t: slice,
        gradients: list[Float[Tensor, "D t R K H"]],
    ) -> None:
        """Write the gradients of left, top and scale."""
        images, H, _, _ = dM.shape
        R = self.skip.shape[1]
        pieces = L.new_empty(2, *L.shape[1:4], self.lanes, dtype=torch.float32)
        grid = (images * self.blocks * R,)
        for d, (corner, number) in enumerate(zip(self.corners, self.sets, strict=True)):
            d_left, d_top, d_scale = (x[d] for x in gradients)
            launch(
                grid_rows_adjoint_kernel,
                grid,
                *(self.left[d, t], self.top[d, t], dM, products[number], L[d]),
                *(*pieces, d_scale, R, H, dM.stride(-2), *_ways(corner)),
                num_warps=1,
                **self.tile,
            )
            arguments = (*pieces, d_left, d_top, R, H, *_ways(corner))
            launch(grid_rows_sum_kernel, grid, *arguments, num_warps=1, **self.tile)


def _ways(corner: int) -> tuple[int, int, int]:
    """Whether a DAG's root is at the bottom, whether at the right, and 1.

    The last is how far apart a node's heads are. Kernels must not know, or Triton would lay lanes
    along the heads where they are loaded, and along the sources elsewhere.
    """
    return corner // 2, corner % 2, 1


def _in_twos(numbers: list[int]) -> int:
    """Numbers below 4, two bits each."""
    return sum(number << 2 * i for i, number in enumerate(numbers))


@triton.jit
@no_type_check
def _program(R, H, HEADS: tl.constexpr):
    """Image of a program, in 64 bits, its row of an image and its block of heads."""
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
def _pair(image, block, q, r, R, H, HEADS: tl.constexpr):
    """Number of the pair of rows q ≤ r of a DAG, for a block of heads of an image."""
    before = (image * tl.cdiv(H, HEADS) + block) * (R * (R + 1) // 2)
    return before + q * R - q * (q - 1) // 2 + r - q


@triton.jit
@no_type_check
def _turned(at, size, far):
    """Place of a row or column in an image, or back, where the root is at the far end (1)."""
    return at + far * (size - 1 - 2 * at)


@triton.jit(do_not_specialize=["bottom", "right", "apart"])
@no_type_check
def grid_rows_kernel(
    left,
    top,
    scale,
    L,
    R,
    H,
    bottom,
    right,
    apart,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """L of one DAG from the row of the sources on."""
    image, q, block = _program(R, H, HEADS)
    h, j = _lanes(block, HEADS, SOURCES)
    here = (h < H) & (j < K)
    first = image * R * K * H + h * apart
    left += first
    top += first
    L += (h - block * HEADS) * SOURCES + j
    source = _turned(q, R, bottom) * K + _turned(j, K, right)
    own = tl.load(scale + first + source * H, mask=here, other=0.0).to(tl.float32)
    none = tl.zeros([HEADS, SOURCES], tl.float32)
    L_row = ()
    for _ in tl.static_range(K):
        L_row = L_row + (none,)  # noqa: RUF005
    for r in range(q, R):
        row = _turned(r, R, bottom) * K
        begins = tl.where(r == q, own, 0.0)
        x = none
        new = ()
        for k in tl.static_range(K):
            at = (row + _turned(k, K, right)) * H
            w_top = tl.load(top + at, mask=here & (r > q), other=0.0).to(tl.float32)
            entering = w_top * L_row[k] + tl.where(j == k, begins, 0.0)
            if k > 0:
                w_left = tl.load(left + at, mask=here, other=0.0).to(tl.float32)
                x = w_left * x + entering
            else:
                x = entering
            new = new + (x,)  # noqa: RUF005
        L_row = new
        place = _pair(image, block, q, r, R, H, HEADS) * (K * HEADS * SOURCES)
        for k in tl.static_range(K):
            number = L_row[k].to(L.dtype.element_ty)
            tl.store(L + place + k * (HEADS * SOURCES), number, mask=here)


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
    L += _pair(image, head // HEADS, q, r, R, H, HEADS) * (K * HEADS * SOURCES)
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
    d_skip,
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
    """M of one row from one row of sources for all heads, and the gradients of C Bᵀ and skip.

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
        at = (image * n + r * K + k) * H + head + j * 0
        M_kj = tl.load(skip + at, mask=of_itself, other=0.0).to(tl.float32)
        if BACKWARD:
            dM_kj = tl.load(dM + row * width + q * K + j, mask=inside, other=0.0).to(tl.float32)
            tl.store(d_skip + at, dM_kj.to(d_skip.dtype.element_ty), mask=of_itself)
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


@triton.jit(do_not_specialize=["bottom", "right", "apart"])
@no_type_check
def grid_rows_adjoint_kernel(
    left,
    top,
    dM,
    products,
    L,
    of_left,
    of_top,
    d_scale,
    R,
    H,
    width,
    bottom,
    right,
    apart,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """g of one DAG from the last row back to that of the sources, and what it tells of weights."""
    image, q, block = _program(R, H, HEADS)
    h, j = _lanes(block, HEADS, SOURCES)
    here = (h < H) & (j < K)
    n = R * K
    first = image * n * H + h * apart
    left += first
    top += first
    source = _turned(q, R, bottom) * K + _turned(j, K, right)
    dM += (image * H + h) * n * width + source
    products += image * n * n + source
    lane = (h - block * HEADS) * SOURCES + j
    none = tl.zeros([HEADS, SOURCES], tl.float32)
    d_own = none
    g = ()
    for _ in tl.static_range(K):
        g = g + (none,)  # noqa: RUF005
    for walked in range(R - q):
        r = R - 1 - walked
        row = _turned(r, R, bottom) * K
        row_below = _turned(r + 1, R, bottom) * K
        pair = _pair(image, block, q, r, R, H, HEADS)
        L_row = L + pair * (K * HEADS * SOURCES) + lane
        d_beside = none
        d_above = none
        d_own = none
        x = none
        new = ()
        for c in tl.static_range(K):
            k = K - 1 - c
            column = _turned(k, K, right)
            dL = tl.load(dM + (row + column) * width, mask=here, other=0.0).to(tl.float32)
            dL *= tl.load(products + (row + column) * n, mask=here, other=0.0)
            at = (row_below + column) * H
            w_top = tl.load(top + at, mask=here & (walked > 0), other=0.0).to(tl.float32)
            dL += w_top * g[c]
            if c > 0:
                at = (row + _turned(k + 1, K, right)) * H
                w_left = tl.load(left + at, mask=here, other=0.0).to(tl.float32)
                x = w_left * x + dL
            else:
                x = dL
            new = new + (x,)  # noqa: RUF005
            if c < K - 1:
                place = (k - 1) * (HEADS * SOURCES)
                beside = tl.load(L_row + place, mask=here, other=0.0).to(tl.float32)
                d_beside = tl.where(j == k, tl.sum(x * beside, 1)[:, None], d_beside)
            # The pair of q and r − 1 stands before that of q and r.
            place = (k - K) * (HEADS * SOURCES)
            above = tl.load(L_row + place, mask=here & (r > q), other=0.0).to(tl.float32)
            d_above = tl.where(j == k, tl.sum(x * above, 1)[:, None], d_above)
            d_own = tl.where(j == k, x, d_own)
        g = new
        tl.store(of_left + pair * (HEADS * SOURCES) + lane, d_beside, mask=here)
        tl.store(of_top + pair * (HEADS * SOURCES) + lane, d_above, mask=here)
    tl.store(d_scale + first + source * H, d_own.to(d_scale.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["bottom", "right", "apart"])
@no_type_check
def grid_rows_sum_kernel(
    of_left,
    of_top,
    d_left,
    d_top,
    R,
    H,
    bottom,
    right,
    apart,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    SOURCES: tl.constexpr,
):
    """Gradients of the weights of a DAG's row from what the rows of sources told."""
    image, r, block = _program(R, H, HEADS)
    h, k = _lanes(block, HEADS, SOURCES)
    here = (h < H) & (k < K)
    lane = (h - block * HEADS) * SOURCES + k
    left = tl.zeros([HEADS, SOURCES], tl.float32)
    top = tl.zeros([HEADS, SOURCES], tl.float32)
    for q in range(r + 1):
        at = _pair(image, block, q, r, R, H, HEADS) * (HEADS * SOURCES) + lane
        left += tl.load(of_left + at, mask=here, other=0.0)
        top += tl.load(of_top + at, mask=here, other=0.0)
    node = (image * R + _turned(r, R, bottom)) * K + _turned(k, K, right)
    at = node * H + h * apart
    tl.store(d_left + at, left.to(d_left.dtype.element_ty), mask=here)
    tl.store(d_top + at, top.to(d_top.dtype.element_ty), mask=here)
