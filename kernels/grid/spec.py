"""Grids as ops, one DAG and the sum of several: references, test inputs and peers."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kernels.grid import CORNERS, GridDag, grid_dags, grid_resolvent, peers
from kernels.grid.reference import grid_dags_reference, grid_edges, grid_reference
from kernels.resolvent.spec import make
from kernels.spec import Inputs, OpSpec


def grids(images: int, rows: int, columns: int, dtype: torch.dtype, seed: int, **options) -> Inputs:
    """A batch of DAGs of grids, whose weights are those that `make` gives such graphs."""
    none = torch.zeros(1, rows, columns, 0)
    edges, _ = grid_edges(none, none)
    nodes = rows * columns
    graphs = make([(lambda *_: edges, nodes)] * images, dtype, seed, **options)
    into, given = graphs["edge_index"][1], graphs["edge_weight"]
    along_row = (graphs["edge_index"].diff(dim=0)[0] == 1) & (columns > 1)
    weights = given.new_zeros(2 * images * nodes, given.shape[1])
    weights = weights.index_copy(0, into + images * nodes * ~along_row, given)
    shape = (images, rows, columns)
    left, top = weights.unflatten(0, (2, *shape))
    values = {name: graphs[name].unflatten(0, shape) for name in ("B", "C", "V")}
    return {"left": left, "top": top} | values


def corner_dags(
    left: Tensor,
    top: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    skip: Tensor,
    roots: Sequence[str] = tuple(CORNERS),
    mix: Callable[..., Tensor] = grid_dags,
    **options,
) -> Tensor:
    """`grid_dags`, or its reference, of tensors stacked by DAG, those of B and C by set of DAGs.

    There is one set, or one for each DAG, or two of four DAGs, which are the diagonal pairs.
    """
    D, N = len(left), len(B)
    sets = range(D) if N == D else ((0, 1, 1, 0) if N == 2 else (0,) * D)
    weights = zip(left.unbind(), top.unbind(), scale.unbind(), strict=True)
    pairs = list(zip(B.unbind(), C.unbind(), strict=True))
    dags = [
        GridDag(*of_dag, *pairs[number], root)
        for of_dag, number, root in zip(weights, sets, roots, strict=True)
    ]
    return mix(dags, V, skip, **options)


def corners(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    seed: int,
    roots: Sequence[str] = tuple(CORNERS),
    sets: int = 2,
    heads: int = 2,
    state: int = 4,
    head_dim: int = 3,
) -> Inputs:
    """Inputs of `corner_dags` on grids of a shape [G, R, K], weights of both signs below ½."""
    generator = torch.Generator().manual_seed(seed)
    D = len(roots)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    weights = torch.rand(2, D, *shape, heads, generator=generator, dtype=torch.float64) - 0.5
    left, top = weights.unbind()
    B, C = normal(2, sets, *shape, state).unbind()
    tensors = {"left": left, "top": top, "scale": normal(D, *shape, heads), "B": B, "C": C}
    tensors |= {"V": normal(*shape, heads, head_dim), "skip": normal(*shape, heads)}
    return {"roots": tuple(roots)} | {k: t.to(dtype) for k, t in tensors.items()}


def flop_of_grids(B, V, **_) -> tuple[int, int]:
    """Of the state form: each row's chain matrix times its states."""
    (G, R, K, heads, P), S = V.shape, B.shape[-1]
    nodes = G * R * K
    forward = S * P * (2 * K + 6)
    backward = forward + S * P * (2 * K + 14)
    return nodes * heads * forward, nodes * heads * backward


def flop_of_corners(left, B, V, **_) -> tuple[int, int]:
    """Of the row form: one product of each pair of nodes for each head, L, and C Bᵀ."""
    G, R, K, heads, P = V.shape
    pairs, dags = G * (R * K) ** 2, heads * (2 * len(left) + 2 * len(B))
    forward = 2 * heads * P + dags + 2 * len(B) * B.shape[-1]
    backward = 4 * heads * P + 5 * dags + 6 * len(B) * B.shape[-1]
    return pairs * forward, pairs * backward


GRID = OpSpec(
    name="grid",
    function=grid_resolvent,
    reference=grid_reference,
    differentiable=("left", "top", "B", "C", "V"),
    variants={"row": {"form": "row"}, "state": {"form": "state"}},
    gpu_variants={"triton": {"backend": "triton"}},
    cases={
        "one node": partial(grids, 1, 1, 1),
        "one column": partial(grids, 2, 9, 1),
        "one row": partial(grids, 2, 1, 9),
        "images": partial(grids, 3, 14, 14, signed=True),
        "small images": partial(grids, 2, 4, 6),
    },
    benchmarks={"64 images of 14 x 14": partial(grids, 64, 14, 14, heads=2, state=64, head_dim=32)},
    peers={"doubling, 32 terms": partial(peers.doubling, terms=32)},
    gpu_peers={},
    flop=flop_of_grids,
)

GRID_DAGS = OpSpec(
    name="grid",
    function=corner_dags,
    reference=partial(corner_dags, mix=grid_dags_reference),
    differentiable=("left", "top", "scale", "B", "C", "V", "skip"),
    variants={"row": {"form": "row"}, "state": {"form": "state"}},
    gpu_variants={"rows, triton": {"form": "row", "backend": "triton"}},
    cases={
        "one node": partial(corners, (2, 1, 1)),
        "one row": partial(corners, (1, 1, 6), heads=3),
        "one column": partial(corners, (1, 4, 1)),
        "wide": partial(corners, (1, 2, 9), heads=3),
        "high": partial(corners, (1, 4, 2), heads=1),
        "17 columns": partial(corners, (1, 2, 17)),
        "images": partial(corners, (2, 2, 3)),
        "large state and values": partial(corners, (1, 2, 3), state=17, head_dim=33),
        "a set for each DAG": partial(corners, (1, 3, 3), sets=4),
        "one set": partial(corners, (1, 3, 3), sets=1),
        **{root: partial(corners, (1, 3, 4), roots=[root], sets=1) for root in CORNERS},
        "two from the top": partial(corners, (1, 3, 4), roots=["top right", "top left"]),
        "two from the right": partial(
            corners, (1, 3, 4), roots=["bottom right", "top right"], sets=1
        ),
    },
    benchmarks={
        "four DAGs on 32 images of 14 x 14": partial(
            corners, (32, 14, 14), heads=12, state=64, head_dim=128
        )
    },
    peers={},
    gpu_peers={},
    flop=flop_of_corners,
)
