"""kernels.resolvent against hand computation, its float64 reference, and itself."""

import subprocess
import sys

import pytest
import torch

from kernels import resolvent, resolvent_matrix
from kernels.resolvent import resolvent_reference
from tests.graphs import TOPOLOGIES, edge_index

H, S, P = 2, 4, 3


def random_inputs(name: str, dtype=torch.float64):
    nodes, edges = TOPOLOGIES[name]
    degree = max(1, len(edges))
    weight = torch.rand(len(edges), H, dtype=dtype) * min(0.9, 2.0 / degree)
    B, C = torch.randn(2, nodes, S, dtype=dtype)
    return edge_index(name), weight, B, C, torch.randn(nodes, H, P, dtype=dtype)


def all_graphs(dtype=torch.float64, names=TOPOLOGIES):
    """The inputs of the named topologies: alone, as one batch, and the boundaries."""
    parts = [random_inputs(name, dtype) for name in names]
    sizes = [part[4].shape[0] for part in parts]
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    edges = torch.cat([part[0] + first for part, first in zip(parts, ptr, strict=False)], dim=1)
    return parts, (edges, *(torch.cat([part[i] for part in parts]) for i in range(1, 5))), ptr


def test_a_source_influences_its_targets_and_not_the_reverse():
    """0 → 1 → 2 with weights a, b: by hand, L = [[1,0,0],[a,1,0],[ab,b,1]]."""
    a, b = 0.5, 0.25
    L = resolvent_matrix(edge_index("path"), torch.tensor([[a], [b]]), 3)[0]
    torch.testing.assert_close(
        L, torch.tensor([[1, 0, 0], [a, 1, 0], [a * b, b, 1]], dtype=torch.float64)
    )
    v = torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    B, C = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [1.0], [2.0]])
    y = resolvent(edge_index("path"), torch.tensor([[a], [b]]), B, C, v)
    by_hand = [1 * 1, a * 1 + 2 * 10, 2 * (a * b * 1 + b * 2 * 10 + 3 * 100)]
    torch.testing.assert_close(y.flatten(), torch.tensor(by_hand))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_equals_the_reference(name):
    inputs = random_inputs(name)
    torch.testing.assert_close(
        resolvent(*inputs), resolvent(*inputs, backend="reference"), rtol=1e-12, atol=1e-12
    )


def test_a_batch_equals_each_graph_alone():
    parts, batch, ptr = all_graphs()
    alone = torch.cat([resolvent(*part) for part in parts])
    torch.testing.assert_close(resolvent(*batch, ptr=ptr), alone, rtol=1e-12, atol=1e-12)


def test_a_nan_stays_in_its_graph():
    _, (edges, weight, B, C, V), ptr = all_graphs()
    V[0] = torch.nan
    y = resolvent(edges, weight, B, C, V, ptr=ptr)
    assert not y[ptr[1] :].isnan().any()


def test_an_empty_batch_gives_an_empty_result():
    none = torch.zeros(2, 0, dtype=torch.int64)
    y = resolvent(
        none, torch.zeros(0, H), torch.zeros(0, S), torch.zeros(0, S), torch.zeros(0, H, P)
    )
    assert y.shape == (0, H, P)


def test_repeated_edges_add_up():
    edges, weight, B, C, V = random_inputs("repeated edges")
    merged = torch.stack([weight[:2].sum(0), weight[2:].sum(0)])
    torch.testing.assert_close(
        resolvent(edges, weight, B, C, V), resolvent(edge_index("path"), merged, B, C, V)
    )


def test_permuting_the_nodes_permutes_the_result():
    edges, weight, B, C, V = random_inputs("hub")
    order = torch.randperm(8)
    place = order.argsort()
    y = resolvent(place[edges], weight, B[order], C[order], V[order])
    torch.testing.assert_close(y, resolvent(edges, weight, B, C, V)[order])


@pytest.mark.parametrize("options", [{}, {"mode": "neumann", "terms": 8}], ids=["exact", "neumann"])
def test_gradients(options):
    _, (edges, *tensors), ptr = all_graphs(names=("both ways", "self-loops", "isolated nodes"))
    tensors = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: resolvent(edges, *t, ptr=ptr, **options), tensors)


def test_neumann_sums_exactly_the_stated_terms_and_converges():
    inputs = random_inputs("cycle")
    exact = resolvent(*inputs)
    errors = []
    for terms in (1, 2, 4, 8, 64):
        y = resolvent(*inputs, mode="neumann", terms=terms)
        textbook = resolvent(*inputs, mode="neumann", terms=terms, backend="reference")
        torch.testing.assert_close(y, textbook, rtol=1e-12, atol=1e-12)
        errors.append(float((y - exact).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12 < errors[0]


def test_a_dag_needs_no_more_terms_than_its_longest_path():
    inputs = random_inputs("path")
    torch.testing.assert_close(resolvent(*inputs, mode="neumann", terms=4), resolvent(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_inputs_are_computed_in_float32(dtype):
    _, (edges, *tensors), ptr = all_graphs(torch.float64)
    low = [t.to(dtype) for t in tensors]
    y = resolvent(edges, *low, ptr=ptr)
    exact = resolvent_reference(edges, *(t.double() for t in low), ptr=ptr, terms=None)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_does_not_reach_inside():
    edges, *tensors = random_inputs("hub", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = resolvent(edges, *tensors)
    assert torch.equal(y, resolvent(edges, *tensors))


def test_large_graphs_after_set_num_threads():
    """torch's batched inverse hangs or corrupts here, see kernels/resolvent/torch_backend.py."""
    code = """
import torch
from kernels import resolvent
torch.manual_seed(0)
torch.set_num_threads(2)
n, graphs = 150, 3
edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
edges = torch.cat([torch.cat([edges, edges.flip(0)], 1) + n * g for g in range(graphs)], 1)
ptr = n * torch.arange(graphs + 1)
w = torch.rand(edges.shape[1], 2) * 0.45
B, C = torch.randn(2, n * graphs, 4)
V = torch.randn(n * graphs, 2, 3)
y = resolvent(edges, w, B, C, V, ptr=ptr)
exact = resolvent(edges, w, B, C, V, ptr=ptr, backend="reference")
torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_singular_systems_are_named():
    loop = torch.tensor([[0], [0]])
    ones = torch.ones(1, 1)
    for backend in ("torch", "reference"):
        with pytest.raises(ValueError, match="graph 0, head 0 is singular"):
            resolvent(loop, ones, ones, ones, ones.reshape(1, 1, 1), backend=backend)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "neumann"}, "needs terms, a power of two"),
        ({"mode": "neumann", "terms": 6}, "needs terms, a power of two"),
        ({"terms": 4}, "terms belongs to mode='neumann'"),
        ({"ptr": torch.tensor([0, 2])}, "ptr must rise from 0 to the 3 nodes"),
        ({"ptr": torch.tensor([0, 1, 3])}, "An edge joins two graphs"),
        ({"edge_index": torch.tensor([[0, 5], [1, 2]])}, "edge_index must name nodes 0 … 2"),
    ],
)
def test_errors_say_what_to_do(change, sentence):
    names = ("edge_index", "edge_weight", "B", "C", "V")
    arguments = dict(zip(names, random_inputs("path"), strict=True)) | change
    with pytest.raises(ValueError, match=sentence):
        resolvent(**arguments)


def test_import_without_triton():
    code = "import sys; sys.modules['triton'] = None; import kernels, lit_models.chimera_graph"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
