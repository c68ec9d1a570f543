"""The resolvent as an op: its references, forms, test inputs and peers."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kernels.resolvent import (
    ChainPlan,
    GridDag,
    GridPlan,
    grid_dags,
    peers,
    resolvent,
    resolvent_reference,
)
from kernels.resolvent.grid import CORNERS
from kernels.spec import Inputs, OpSpec


def peptide(nodes: int, generator: torch.Generator) -> Tensor:
    """A backbone with side branches, both ways: every third node hangs on one before it."""
    child = torch.arange(1, nodes)
    reach = torch.where(child % 3 == 0, torch.randint(1, 4, child.shape, generator=generator), 1)
    return both_ways(torch.stack([(child - reach).clamp(min=0), child]))


def tree(nodes: int, generator: torch.Generator) -> Tensor:
    """A random recursive tree, both ways."""
    child = torch.arange(1, nodes)
    parent = (torch.rand(child.shape, generator=generator) * child).long()
    return both_ways(torch.stack([parent, child]))


def path(nodes: int, generator: torch.Generator) -> Tensor:
    """A directed chain."""
    return torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])


def cycle(nodes: int, generator: torch.Generator) -> Tensor:
    """A directed cycle; a self-loop on one node."""
    return torch.stack([torch.arange(nodes), torch.arange(1, nodes + 1) % nodes])


def hub(nodes: int, generator: torch.Generator) -> Tensor:
    """One node joined to all others, both ways."""
    return both_ways(torch.stack([torch.zeros(nodes - 1).long(), torch.arange(1, nodes)]))


def dag(nodes: int, generator: torch.Generator) -> Tensor:
    """Random edges from lower to higher numbers, under a shuffled numbering."""
    low, high = torch.randint(nodes, (2, 2 * nodes), generator=generator).sort(0).values
    order = torch.randperm(nodes, generator=generator)
    return order[torch.stack([low, high])[:, low < high]]


def general(nodes: int, generator: torch.Generator) -> Tensor:
    """Random directed edges: cycles, self-loops, repeated edges, isolated nodes and components."""
    return torch.randint(nodes, (2, 2 * nodes), generator=generator)


def isolated(nodes: int, generator: torch.Generator) -> Tensor:
    """No edges."""
    return torch.empty(2, 0, dtype=torch.int64)


def superpixels(nodes: int, generator: torch.Generator) -> Tensor:
    """Nearest neighbours of random points in the plane, both ways."""
    points = torch.rand(nodes, 2, generator=generator)
    near = torch.cdist(points, points).fill_diagonal_(9).topk(4, largest=False).indices
    return both_ways(torch.stack([torch.arange(nodes).repeat_interleave(4), near.flatten()]))


def grid(nodes: int, generator: torch.Generator, columns: int, root: str) -> Tensor:
    """Edges between neighbours of a grid, away from one of its corners."""
    places = torch.arange(nodes).view(1, -1, columns).flip(CORNERS[root])[0]
    right = torch.stack([places[:, :-1].flatten(), places[:, 1:].flatten()])
    down = torch.stack([places[:-1].flatten(), places[1:].flatten()])
    return torch.cat([right, down], dim=1)


def both_ways(edge_index: Tensor) -> Tensor:
    """Every edge and its reverse."""
    return torch.cat([edge_index, edge_index.flip(0)], dim=1)


def normalised(edge_index: Tensor, raw: Tensor, nodes: int, margin: float) -> Tensor:
    """Weights [E, H] that keep their signs; those leaving a node sum to 1 − margin at most."""
    leaving = torch.zeros(nodes, raw.shape[1], dtype=raw.dtype)
    leaving = leaving.index_add(0, edge_index[0], raw.abs())
    return raw / (leaving.clamp(min=1) / (1 - margin))[edge_index[0]]


def make(
    graphs: Sequence[tuple[Callable, int]],
    dtype: torch.dtype,
    seed: int,
    heads: int = 2,
    state: int = 4,
    head_dim: int = 3,
    margin: float = 0.05,
    signed: bool = False,
    scale: float = 1.0,
) -> Inputs:
    """A batch of graphs with random tensors.

    Args:
        graphs: kind and number of nodes of each.
        margin: how far the weights that leave a node stay below a sum of 1.
        signed: weights of both signs.
        scale: of the weights before they are normalised.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [nodes for _, nodes in graphs]
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    parts = [kind(n, generator) + first for (kind, n), first in zip(graphs, ptr, strict=False)]
    edge_index = torch.cat(parts, dim=1)
    nodes = sum(sizes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    raw = torch.rand(edge_index.shape[1], heads, generator=generator, dtype=torch.float64)
    raw = raw * (2 * torch.randint(2, raw.shape, generator=generator) - 1 if signed else 1) * scale
    tensors = {
        "edge_weight": normalised(edge_index, raw, nodes, margin),
        "B": normal(nodes, state),
        "C": normal(nodes, state),
        "V": normal(nodes, heads, head_dim),
    }
    return {"edge_index": edge_index, "ptr": ptr} | {k: t.to(dtype) for k, t in tensors.items()}


def chains(sizes: Sequence[int], dtype: torch.dtype, seed: int, **options) -> Inputs:
    """A batch of directed chains with a plan of their own."""
    inputs = make([(path, nodes) for nodes in sizes], dtype, seed, **options)
    return inputs | {"plan": ChainPlan.of(inputs["ptr"])}


def grids(
    images: int, rows: int, columns: int, root: str, dtype: torch.dtype, seed: int, **options
) -> Inputs:
    """A batch of DAGs of grids with a plan of their own."""
    kind = partial(grid, columns=columns, root=root)
    inputs = make([(kind, rows * columns)] * images, dtype, seed, **options)
    return inputs | {"plan": GridPlan(images, rows, columns, root)}


def one(kind: Callable, nodes: int, **options) -> Callable[[torch.dtype, int], Inputs]:
    """Case of a single graph."""
    return partial(make, [(kind, nodes)], **options)


def corner_dags(
    left: Tensor,
    top: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    skip: Tensor,
    roots: Sequence[str] = tuple(CORNERS),
    **options,
) -> Tensor:
    """`grid_dags` of tensors that are stacked by DAG, those of B and C by set of DAGs.

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
    return grid_dags(dags, V, skip, **options)


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


BATCH = [(peptide, 30), (isolated, 1), (general, 12), (path, 2), (hub, 9), (tree, 40), (cycle, 5)]

CASES = {
    **{f"peptide of {n}": one(peptide, n) for n in (1, 2, 15, 63, 64, 65, 444, 1000)},
    "tree": one(tree, 64),
    "path": one(path, 33),
    "cycle": one(cycle, 7),
    "self-loop": one(cycle, 1),
    "hub": one(hub, 20),
    "dag": one(dag, 40),
    "general": one(general, 40),
    "isolated nodes": one(isolated, 5),
    "superpixels": one(superpixels, 60),
    "batch": partial(make, BATCH),
    "sizes far apart": partial(make, [(peptide, 30), (peptide, 400), (general, 30), (tree, 5)]),
    "signed": partial(make, BATCH, signed=True),
    "slow decay": one(peptide, 40, margin=1e-3, scale=100.0),
    "fast decay": one(peptide, 40, scale=1e-20),
    "one head": one(peptide, 20, heads=1),
}


def reference(plan: object = None, **inputs) -> Tensor:
    """`resolvent_reference` on the inputs of a case."""
    return resolvent_reference(**inputs, terms=None)


def flop_of_rows(edge_index, B, V, ptr, **_) -> tuple[int, int]:
    """Of the row form: sparse solves, and every product of tiles once for each head."""
    (_, heads, P), S, sizes = V.shape, B.shape[1], ptr.diff()
    edges = torch.bincount(
        torch.bucketize(edge_index[0], ptr[1:], right=True), minlength=len(sizes)
    )
    solve, squares = int(2 * (edges * sizes).sum()), int((sizes**2).sum())
    return (
        heads * (solve + squares * 2 * (S + P)),
        heads * (solve + squares * 2 * (4 * S + 3 * P)),
    )


def flop_of_chains(B, V, **_) -> tuple[int, int]:
    """Of chunks of 64 nodes, with the states that pass between them."""
    (nodes, heads, P), S, Q = V.shape, B.shape[1], 64
    forward = 2 * Q * (S + P) + 4 * S * P
    backward = 2 * Q * (3 * S + 2 * P + Q) + 10 * S * P
    return nodes * heads * forward, nodes * heads * backward


def flop_of_grids(B, V, plan, **_) -> tuple[int, int]:
    """Of the state form: each row's chain matrix times its states."""
    (nodes, heads, P), S = V.shape, B.shape[1]
    forward = S * P * (2 * plan.columns + 6)
    backward = forward + S * P * (2 * plan.columns + 14)
    return nodes * heads * forward, nodes * heads * backward


def flop_of_corners(left, B, V, **_) -> tuple[int, int]:
    """Of the row form: one product of each pair of nodes for each head, L, and C Bᵀ."""
    G, R, K, heads, P = V.shape
    pairs, dags = G * (R * K) ** 2, heads * (2 * len(left) + 2 * len(B))
    forward = 2 * heads * P + dags + 2 * len(B) * B.shape[-1]
    backward = 4 * heads * P + 5 * dags + 6 * len(B) * B.shape[-1]
    return pairs * forward, pairs * backward


RESOLVENT = OpSpec(
    name="resolvent",
    function=resolvent,
    reference=reference,
    differentiable=("edge_weight", "B", "C", "V"),
    variants={"row": {"form": "row"}, "state": {"form": "state"}},
    gpu_variants={
        "row, triton": {"form": "row", "backend": "triton"},
        "state, triton": {"form": "state", "backend": "triton"},
    },
    cases=CASES,
    benchmarks={
        "peptides, 16 of 150": partial(make, [(peptide, 150)] * 16, heads=2, state=64, head_dim=32),
        "superpixels, 8 of 480": partial(
            make, [(superpixels, 480)] * 8, heads=4, state=64, head_dim=16
        ),
    },
    peers={
        "padded inverse, float64": peers.padded_inverse_float64,
        "torch.linalg.solve": peers.linalg_solve,
        "inverse of each graph": peers.inverse_each,
        "doubling, 64 terms": peers.doubling,
    },
    gpu_peers={},
    flop=flop_of_rows,
)

CHAIN = OpSpec(
    name="resolvent",
    function=resolvent,
    reference=reference,
    differentiable=RESOLVENT.differentiable,
    variants={"chain": {}},
    gpu_variants={"chain, triton": {"backend": "triton"}},
    cases={
        **{f"chain of {n}": partial(chains, [n]) for n in (1, 2, 63, 64, 65, 444)},
        "chains": partial(chains, [5, 1, 70, 33, 5], signed=True),
        "slow decay": partial(chains, [100], margin=1e-2, scale=1e3),
    },
    benchmarks={
        **{
            f"1 chain of {n:,}": partial(chains, [n], heads=8, state=64, head_dim=64)
            for n in (1024, 4096, 16384)
        },
        "8 chains of 4,096": partial(chains, [4096] * 8, heads=4, state=16, head_dim=32),
    },
    peers={
        f"ssd_minimal, blocks of {n}": partial(peers.ssd_minimal, block=n) for n in (32, 64, 128)
    },
    gpu_peers={
        **{
            f"mamba-ssm, chunks of {n}": partial(peers.mamba_chunk_scan, chunk=n)
            for n in (64, 128, 256)
        },
        "flash-linear-attention": peers.simple_gla,
    },
    flop=flop_of_chains,
)

GRID = OpSpec(
    name="resolvent",
    function=resolvent,
    reference=reference,
    differentiable=RESOLVENT.differentiable,
    variants={"grid": {}},
    gpu_variants={"grid, triton": {"backend": "triton"}},
    cases={
        "one node": partial(grids, 1, 1, 1, "top left"),
        "one column": partial(grids, 2, 9, 1, "top left"),
        "one row": partial(grids, 2, 1, 9, "bottom right"),
        "images": partial(grids, 3, 14, 14, "top left", signed=True),
        **{f"from the {root}": partial(grids, 2, 4, 6, root) for root in CORNERS},
    },
    benchmarks={
        "64 images of 14 x 14": partial(
            grids, 64, 14, 14, "top left", heads=2, state=64, head_dim=32
        )
    },
    peers={"doubling, 32 terms": partial(resolvent, mode="neumann", terms=32)},
    gpu_peers={},
    flop=flop_of_grids,
)

GRID_DAGS = OpSpec(
    name="resolvent",
    function=corner_dags,
    reference=partial(corner_dags, form="state", backend="torch"),
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
