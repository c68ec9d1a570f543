"""The resolvent as an op: its references, forms, test inputs and peers."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kernels.resolvent import peers, resolvent, resolvent_reference
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


def one(kind: Callable, nodes: int, **options) -> Callable[[torch.dtype, int], Inputs]:
    """Case of a single graph."""
    return partial(make, [(kind, nodes)], **options)


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


reference = partial(resolvent_reference, terms=None)


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
