"""How the time of the edge layer grows with a hub, against the line graph written out."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from lit_models.graphs.edge_embeddings import Edges, find_edges
from tests.benchmarks.timing import compare
from tests.kernels.comparing import DEVICE

pytestmark = pytest.mark.timeout(1800)

LEAVES = (1_000, 3_000, 10_000, 30_000, 100_000)
FITS = 3_000  # leaves up to which the line graph's d² edges are written out
WIDTH = 16  # wider, malloc would take the largest tensors from the system, page by page
NAMES = {False: "undirected", True: "directed"}


def star(leaves: int) -> torch.Tensor:
    """edge_index [2, 2·leaves] of a hub, node 0, in both directions."""
    leaf = torch.arange(1, leaves + 1)
    there = torch.stack([torch.zeros_like(leaf), leaf])
    return torch.cat([there, there.flip(0)], dim=1).to(DEVICE)


def explicit(
    edges: Edges, directed: bool, h: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same sums along a written-out edge list of a star's line graph."""
    index = torch.arange(len(h), device=DEVICE)
    if not directed:
        heard, hears = torch.cartesian_prod(index, index).T.contiguous()
        return lambda x: torch.zeros_like(x).index_add(0, hears, x.index_select(0, heard))
    # w → hub is heard by hub → v, of the second relation; a leaf has no edge but the reverse.
    pairs = torch.cartesian_prod(index[edges.target == 0], index[edges.source == 0]).T
    heard, hears = pairs[:, edges.reverse[pairs[0]] != pairs[1]].contiguous()

    def sums(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x).index_add(0, hears, x.index_select(0, heard))
        return torch.cat([torch.zeros_like(x), y], dim=1)

    return sums


def with_gradient(function: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor):
    """A call of the forward and the backward pass that returns both results."""

    def run():
        x = h.clone().requires_grad_()
        y = function(x)
        return y, *torch.autograd.grad(y, x, torch.ones_like(y))

    return run


@pytest.mark.parametrize("directed", NAMES, ids=NAMES.get)
def test_the_edge_layer_grows_linearly_with_a_hub(green, record, directed):
    """Sums over the neighbours of all edges, forward and backward."""
    green("lit_models/graphs/test_edge_embeddings.py")
    rows = []
    for leaves in LEAVES:
        edge_index = star(leaves)
        edges = find_edges(edge_index, leaves + 1, directed)
        h = torch.randn(len(edges.source), WIDTH, device=DEVICE)

        functions = {
            "through the ends": with_gradient(edges.sum_of_neighbours, h),
            "finding the edges": partial(find_edges, edge_index, leaves + 1, directed),
        }
        if leaves <= FITS:
            written_out = with_gradient(explicit(edges, directed, h), h)
            results = functions["through the ends"](), written_out()
            for got, want in zip(*results, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-2)
            functions["explicit line graph"] = written_out
        times = compare(functions, rounds=5)
        rows.append({"leaves": leaves, "times": times})
    size = np.log([row["leaves"] for row in rows])
    ms = np.log([row["times"]["through the ends"]["ms"][1] for row in rows])
    slope = float(np.polyfit(size, ms, 1)[0])
    record(
        f"edge layer on stars, {NAMES[directed]}",
        {"width": WIDTH, "log_log_slope": slope, "rows": rows},
    )
    assert slope <= 1.15
