"""Sums of grids' DAGs by compiled `loops` and torch's products, with their gradients.

Shapes as in `kernels.grid`, with n = R · K nodes and D DAGs, of which those that share B
and C are one of N groups; t images are worked on at a time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kernels.autograd import refuse_second_derivatives
from kernels.grid.numba_backend import loops
from kernels.grid.numba_backend.loops import STATES, VALUES, padded

PARTS = 8  # of the heads, whose gradients are added up after: as many threads find something to do
MOST_NODES = 1024
TILE = 2**22  # numbers of the masked matrices at work


class Ways(NamedTuple):
    """How the DAGs of a sum run.

    Attributes:
        roots: of each DAG, one of `CORNERS`.
        groups: of each DAG, which B and C are its own.
    """

    roots: Sequence[str]
    groups: Sequence[int]


class _Operands(NamedTuple):
    """What both forms compute from, as `loops`' functions take it.

    Attributes:
        corners: int64 [D, 3].
        groups: int64 [D].
        left, top: zero where nothing enters.
    """

    R: int
    K: int
    corners: np.ndarray
    groups: np.ndarray
    left: Float[Tensor, "D G H n"]
    top: Float[Tensor, "D G H n"]
    scale: Float[Tensor, "D G H n"]
    skip: Float[Tensor, "G H n"]
    B: Float[Tensor, "N G n S"]
    C: Float[Tensor, "N G n S"]
    V: Float[Tensor, "G n H P"]

    @classmethod
    def of(cls, ways: Ways, skip: Tensor, V: Tensor, *tensors: Tensor) -> "_Operands":
        R, K = V.shape[1:3]
        D = len(ways.roots)
        left, top, scale = (torch.stack(tensors[i * D : i * D + D]) for i in range(3))
        B, C = (torch.stack(x).flatten(2, 3) for x in _halves(tensors[3 * D :]))
        corners = []
        for root, into_rows, into_columns in zip(ways.roots, left, top, strict=True):
            below, right = "bottom" in root, "right" in root
            into_rows[:, :, -1 if right else 0] = 0
            into_columns[:, -1 if below else 0] = 0
            start = (R - 1) * K * below + (K - 1) * right
            corners.append((start, -K if below else K, -1 if right else 1))
        left, top, scale, skip = (_by_head(x) for x in (left, top, scale, skip))
        V = V.flatten(1, 2).contiguous()
        groups = np.array(ways.groups)
        return cls(R, K, np.array(corners), groups, left, top, scale, skip, B, C, V)

    def empty_gradients(self, *pieces: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of left, top, scale and skip, zeros, as something may enter nowhere."""
        weights = (self.left, self.top, self.scale, self.skip)
        left, top, scale, skip = (self.V.new_zeros(*pieces, *x.shape) for x in weights)
        return left, top, scale, skip


class RowForm(torch.autograd.Function):
    """Y = M V, M = diag(skip) + Σ_d L_d diag(scale_d) ⊙ C Bᵀ; the backward pass builds M again.

    Inputs: `Ways`, skip, V, each DAG's left, then top, then scale, each group's B, then C.
    """

    @staticmethod
    def forward(ctx, ways: Ways, *tensors: Tensor) -> Tensor:
        ctx.ways = ways
        ctx.save_for_backward(*tensors)
        o = _Operands.of(ways, *tensors)
        Y = torch.empty_like(o.V)
        for t in _image_tiles(o):
            kernel, M = _kernel(o, t), _matrices(o, t)
            tasks, scratch = M.shape[0] * M.shape[1], o.K * M.shape[-1]
            _in_threads(loops.mask, tasks, scratch, *o[:2], t.start, *o[2:8], kernel, M)
            for image, m in enumerate(M[..., : M.shape[2]], t.start):
                Y[image] = torch.bmm(m, o.V[image].transpose(0, 1)).transpose(0, 1)
        return Y.view(tensors[1].shape)

    @staticmethod
    def backward(ctx, dY: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        o = _Operands.of(ctx.ways, *ctx.saved_tensors)
        dY = dY.flatten(1, 2)
        d_weights = o.empty_gradients()
        dB, dC, dV = (torch.empty_like(x) for x in (o.B, o.C, o.V))
        for t in _image_tiles(o):
            kernel, dM = _kernel(o, t), _matrices(o, t)
            for image, dm in enumerate(dM, t.start):
                V_HPn = _padded(o.V[image]).permute(1, 2, 0)
                torch.bmm(dY[image].transpose(0, 1), V_HPn, out=dm)
            parts = _parts(len(dM), lanes=dM.shape[1])
            d_kernel = kernel.new_empty(parts, *kernel.shape)
            (n, width), tasks = kernel.shape[2:], len(dM) * parts
            _in_threads(
                loops.differentiate_mask, tasks, (2 * n + o.K) * width,
                *o[:2], t.start, *o[2:8], kernel, dM, *d_weights, d_kernel,
            )  # fmt: skip
            for image, m in enumerate(dM[..., :n], t.start):
                dV[image] = torch.bmm(m.mT, dY[image].transpose(0, 1)).transpose(0, 1)
            d_kernel = d_kernel.sum(0)[..., :n]
            torch.matmul(d_kernel, o.B[:, t], out=dC[:, t])
            torch.matmul(d_kernel.mT, o.C[:, t], out=dB[:, t])
        return _gradients(o, *d_weights, dB, dC, dV)


class StateForm(torch.autograd.Function):
    """The recurrence of h = left h + top h + B ⊗ scale V from every root; inputs as `RowForm`'s.

    The backward pass computes h again, as `torch_backend._StateForm` does.
    """

    @staticmethod
    def forward(ctx, ways: Ways, *tensors: Tensor) -> Tensor:
        ctx.ways = ways
        ctx.save_for_backward(*tensors)
        o = _Operands.of(ways, *tensors)
        Y = torch.empty_like(o.V)
        scratch, _ = loops.scratch_of_states(o.R, o.K, o.B.shape[-1])
        operands = (*o[:8], *map(_in_blocks, (o.B, o.C)), o.V)
        _in_threads(loops.mix_states, o.V.shape[0] * _lanes(o), scratch, *operands, Y)
        return Y.view(tensors[1].shape)

    @staticmethod
    def backward(ctx, dY: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        o = _Operands.of(ctx.ways, *ctx.saved_tensors)
        dY = dY.flatten(1, 2).contiguous()
        B, C = map(_in_blocks, (o.B, o.C))
        parts = _parts(len(o.V), _lanes(o))
        d_weights = o.empty_gradients(_lanes(o) // o.V.shape[2])
        dB, dC = (x.new_empty(parts, *x.shape) for x in (B, C))
        dV = torch.empty_like(o.V)
        _, scratch = loops.scratch_of_states(o.R, o.K, o.B.shape[-1])
        _in_threads(
            loops.differentiate_states, o.V.shape[0] * parts, scratch,
            *o[:2], loops.rows_of_a_band(o.R, o.K), *o[2:8], B, C, o.V, dY,
            *d_weights, dB, dC, dV,
        )  # fmt: skip
        dB, dC = (_out_of_blocks(x.sum(0), o.B) for x in (dB, dC))
        d_left, d_top, d_scale, d_skip = (x.sum(0) for x in d_weights)
        return _gradients(o, d_left, d_top, d_scale, d_skip, dB, dC, dV)


def faster_form(D: int, V: Float[Tensor, "G R K H P"], S: int) -> Literal["row", "state"]:
    """By what a node of a head costs, forward and backward, as measured on 2 cores with AVX-512.

    With four DAGs of 64 states and 128 values the forms meet at 27 × 27 nodes. Matrices of more
    than `MOST_NODES` would need much memory.
    """
    _, R, K, _, P = V.shape
    if R * K > MOST_NODES:
        return "state"
    of_rows = R * K * (P + 32 * D)
    of_states = 5 * D * (S + 12) * -(-P // VALUES) * VALUES
    return "row" if of_rows < of_states else "state"


def _halves(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]


def _by_head(x: Float[Tensor, "*batch R K H"]) -> Float[Tensor, "*batch H n"]:
    return x.flatten(-3, -2).mT.contiguous()


def _in_blocks(x_NGnS: Tensor) -> Float[Tensor, "N G s n_STATES"]:
    """By blocks of states, the last one filled up with zeros."""
    x = functional.pad(x_NGnS, (0, -x_NGnS.shape[-1] % STATES)).unflatten(-1, (-1, STATES))
    return x.transpose(2, 3).flatten(-2).contiguous()


def _out_of_blocks(x: Tensor, like_NGnS: Tensor) -> Float[Tensor, "N G n S"]:
    x = x.unflatten(-1, (-1, STATES)).transpose(2, 3).flatten(-2)
    return x[..., : like_NGnS.shape[-1]]


def _lanes(o: _Operands) -> int:
    """Blocks of all heads' values."""
    H, P = o.V.shape[2:]
    return H * -(-P // VALUES)


def _parts(images: int, lanes: int) -> int:
    """Into how many parts an image's lanes are cut, whatever the number of threads."""
    return min(lanes, -(-PARTS // images))


def _image_tiles(o: _Operands) -> list[slice]:
    G, n, H, _ = o.V.shape
    step = max(1, TILE // (H * n * n))
    return [slice(first, min(first + step, G)) for first in range(0, G, step)]


def _padded(x: Float[Tensor, "*batch n H P"]) -> Float[Tensor, "*batch width H P"]:
    """Zeros added for nodes, so that there are whole vectors of them."""
    return functional.pad(x, (0, 0, 0, 0, 0, padded(x.shape[-3]) - x.shape[-3]))


def _kernel(o: _Operands, t: slice) -> Float[Tensor, "N t n width"]:
    """C Bᵀ, and zeros for nodes that are not there."""
    B = _padded(o.B[:, t].unsqueeze(-2)).squeeze(-2)
    return torch.matmul(o.C[:, t], B.mT)


def _matrices(o: _Operands, t: slice) -> Float[Tensor, "t H n width"]:
    _, n, H, _ = o.V.shape
    return o.V.new_empty(t.stop - t.start, H, n, padded(n))


def _gradients(
    o: _Operands,
    d_left: Tensor,
    d_top: Tensor,
    d_scale: Tensor,
    d_skip: Tensor,
    dB: Tensor,
    dC: Tensor,
    dV: Tensor,
) -> tuple[Tensor | None, ...]:
    """Of all inputs of the forms, shaped as these are."""
    sizes = (o.R, o.K)
    d_left, d_top, d_scale, d_skip = (
        x.mT.unflatten(-2, sizes) for x in (d_left, d_top, d_scale, d_skip)
    )
    of_dags = (*d_left, *d_top, *d_scale, *dB.unflatten(2, sizes), *dC.unflatten(2, sizes))
    return None, d_skip, dV.unflatten(1, sizes), *of_dags


def _in_threads(kernel: Callable, tasks: int, scratch: int, *arguments: object) -> None:
    """Call kernel(task, scratch, *arguments) for all tasks, in as many threads as torch uses.

    Threads of Python, as numba's own ones may not be called from two threads or after a fork. They
    take states and weights that decay below 1e-38 for zero: with such numbers loops are slow.
    """
    threads = min(torch.get_num_threads(), tasks)
    given = [x.detach().numpy() if isinstance(x, Tensor) else x for x in arguments]
    remaining = iter(range(tasks))

    def work() -> None:
        own = torch.empty(scratch).numpy()
        for task in remaining:
            kernel(task, own, *given)

    with ThreadPoolExecutor(
        threads, initializer=torch.set_flush_denormal, initargs=(True,)
    ) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
