"""kernels.resolvent against hand computation, its float64 reference, and itself."""

import logging
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.data import Batch, Data

from kernels.resolvent import (
    AddElimination,
    eliminate,
    make_plan,
    plan_of,
    ragged,
    resolvent,
    resolvent_matrix,
    spec,
    torch_backend,
)
from kernels.resolvent.spec import RESOLVENT
from tests.graphs import edge_index
from tests.kernels.comparing import (
    assert_close_by_rows,
    everywhere,
    in_float64,
    on_device,
    with_gradients,
)

variants = pytest.mark.parametrize("options", RESOLVENT.variants.values(), ids=RESOLVENT.variants)


@everywhere(RESOLVENT, "variants")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_equal_the_reference(case, dtype, options):
    slow_decay = case is RESOLVENT.cases["slow decay"]
    if slow_decay and dtype == torch.bfloat16:
        pytest.skip("bfloat16 rounds weights whose sum is almost 1 to a sum above 1")
    inputs = case(dtype, 0)
    exact = in_float64(inputs)
    got = with_gradients(resolvent, on_device(inputs), **(options | {"backend": "torch"}))
    want = with_gradients(RESOLVENT.reference, exact)
    # bfloat16 is computed in float32; its results are rounded, its inputs are not.
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    if slow_decay:  # its condition number is about 2,000
        tolerance *= 50
    for name, value in got.items():
        assert value.dtype == dtype
        assert_close_by_rows(value, want[name], tolerance)


@variants
@pytest.mark.parametrize("case", ["general", "batch", "signed", "dag"])
def test_gradcheck(case, options):
    inputs = RESOLVENT.cases[case](torch.float64, 0)
    tensors = [inputs.pop(name).requires_grad_() for name in RESOLVENT.differentiable]

    def function(*tensors):
        named = dict(zip(RESOLVENT.differentiable, tensors, strict=True))
        return resolvent(**inputs, **named, **options)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@variants
def test_differentiating_twice_is_refused(options):
    inputs = RESOLVENT.cases["tree"](torch.float64, 0)
    weight = inputs["edge_weight"].requires_grad_()
    y = resolvent(**inputs, **options)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), weight, create_graph=True)


def test_a_source_influences_its_targets_and_not_the_reverse():
    """0 → 1 → 2 with weights a, b: by hand, L = [[1,0,0],[a,1,0],[ab,b,1]]."""
    a, b = 0.5, 0.25
    weight = torch.tensor([[a], [b]])
    L = resolvent_matrix(edge_index("path"), weight, 3)[0]
    torch.testing.assert_close(
        L, torch.tensor([[1, 0, 0], [a, 1, 0], [a * b, b, 1]], dtype=torch.float64)
    )
    v = torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    B, C = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [1.0], [2.0]])
    by_hand = torch.tensor([1 * 1, a * 1 + 2 * 10, 2 * (a * b * 1 + b * 2 * 10 + 3 * 100)])
    for form in ("row", "state"):
        y = resolvent(edge_index("path"), weight, B, C, v, form=form)
        torch.testing.assert_close(y.flatten(), by_hand)


@variants
def test_a_batch_equals_each_graph_alone(options):
    inputs = RESOLVENT.cases["batch"](torch.float64, 0)
    together = with_gradients(resolvent, inputs, **options)
    cotangent = torch.randn(inputs["V"].shape, generator=torch.Generator().manual_seed(1))
    cotangent = cotangent.bfloat16().double()
    ptr = inputs["ptr"].tolist()
    for first, last in pairwise(ptr):
        edges = (inputs["edge_index"][0] >= first) & (inputs["edge_index"][0] < last)
        alone = {name: inputs[name][first:last].requires_grad_() for name in ("B", "C", "V")}
        alone["edge_weight"] = inputs["edge_weight"][edges].requires_grad_()
        y = resolvent(inputs["edge_index"][:, edges] - first, **alone, **options)
        torch.testing.assert_close(y, together["Y"][first:last], rtol=1e-12, atol=1e-12)
        y.backward(cotangent[first:last])
        for name, tensor in alone.items():
            part = edges if name == "edge_weight" else slice(first, last)
            torch.testing.assert_close(tensor.grad, together[name][part], rtol=1e-12, atol=1e-12)


@variants
@pytest.mark.parametrize("poisoned", ["V", "B", "edge_weight"])
def test_a_nan_stays_in_its_graph(options, poisoned):
    inputs = RESOLVENT.cases["batch"](torch.float32, 0)
    clean = with_gradients(resolvent, inputs, **options)
    inputs[poisoned][0] = torch.nan
    dirty = with_gradients(resolvent, inputs, **options)
    nodes, edges = inputs["ptr"][1], int((inputs["edge_index"][0] < inputs["ptr"][1]).sum())
    for name, value in dirty.items():
        rest = slice(edges if name == "edge_weight" else nodes, None)
        assert torch.equal(value[rest], clean[name][rest])
    assert dirty["Y"][:nodes].isnan().any()


@variants
def test_permuting_the_nodes_permutes_the_result(options):
    inputs = RESOLVENT.cases["general"](torch.float64, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = {name: inputs[name][order] for name in ("B", "C", "V")}
    moved |= {"edge_index": order.argsort()[inputs["edge_index"]], "ptr": inputs["ptr"]}
    y = resolvent(**moved, edge_weight=inputs["edge_weight"], **options)
    torch.testing.assert_close(y, resolvent(**inputs, **options)[order])


@variants
def test_inputs_need_not_be_contiguous(options):
    inputs = RESOLVENT.cases["tree"](torch.float64, 0)
    strided = {k: torch.stack([v, v], -1)[..., 0] for k, v in inputs.items()}
    assert not strided["V"].is_contiguous()
    assert torch.equal(resolvent(**strided, **options), resolvent(**inputs, **options))


@variants
def test_an_empty_batch_gives_an_empty_result(options):
    none = torch.zeros(2, 0, dtype=torch.int64)
    empty = torch.zeros(0, 2), torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 2, 3)
    assert resolvent(none, *empty, **options).shape == (0, 2, 3)


def test_repeated_edges_add_up():
    weight, B, C, V = torch.rand(5, 2) / 5, *torch.randn(2, 3, 4), torch.randn(3, 2, 3)
    merged = torch.stack([weight[:2].sum(0), weight[2:].sum(0)])
    torch.testing.assert_close(
        resolvent(edge_index("repeated edges"), weight, B, C, V),
        resolvent(edge_index("path"), merged, B, C, V),
    )


def test_a_dag_is_solved_in_one_sweep():
    inputs = RESOLVENT.cases["dag"](torch.float64, 0)
    inputs["edge_weight"] = inputs["edge_weight"] * 30  # far from dominant
    plan = make_plan(inputs["edge_index"], 40, order="topological")
    assert plan.triangular
    assert plan.num_entries == torch.unique(inputs["edge_index"], dim=1).shape[1]
    want = RESOLVENT.reference(**inputs)
    for given in (None, plan):
        torch.testing.assert_close(resolvent(**inputs, mode="dag", plan=given), want)
    with pytest.raises(ValueError, match="The graph has a cycle"):
        resolvent(**RESOLVENT.cases["cycle"](torch.float32, 0), mode="dag")


def test_neumann_sums_the_stated_terms_and_comes_close_with_many():
    inputs = RESOLVENT.cases["general"](torch.float64, 0)
    matrix = (inputs["edge_index"], inputs["edge_weight"], 40)
    exact = resolvent_matrix(*matrix)
    errors = []
    for terms in (1, 2, 4, 8, 64):
        y = resolvent(**inputs, mode="neumann", terms=terms)
        textbook = resolvent(**inputs, mode="neumann", terms=terms, backend="reference")
        torch.testing.assert_close(y, textbook, rtol=1e-12, atol=1e-12)
        missing = exact - resolvent_matrix(*matrix, terms=terms)
        error = missing.abs().sum(1).amax(1) / exact.abs().sum(1).amax(1)
        errors.append(float(error.max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 < errors[0]


@pytest.mark.parametrize("case", ["peptide of 444", "batch", "superpixels"])
def test_the_plan_of_a_batch_is_stitched_from_its_graphs(case):
    inputs = RESOLVENT.cases[case](torch.float64, 0)
    ptr = inputs["ptr"]
    graph = torch.bucketize(inputs["edge_index"][0], ptr[1:], right=True)
    graphs = [
        AddElimination()(
            Data(edge_index=inputs["edge_index"][:, graph == g] - first, num_nodes=int(size))
        )
        for g, (first, size) in enumerate(zip(ptr.tolist(), ptr.diff(), strict=False))
    ]
    stitched = plan_of(Batch.from_data_list(graphs))
    whole = make_plan(inputs["edge_index"], int(ptr[-1]), ptr)
    assert torch.equal(stitched.row, whole.row)
    assert torch.equal(stitched.round, whole.round)
    assert torch.equal(resolvent(**inputs, plan=stitched), resolvent(**inputs, plan=whole))


def test_sparse_graphs_have_few_levels_and_little_fill_in():
    generator = torch.Generator().manual_seed(0)
    for kind, most_rounds, most_fill in ((spec.peptide, 12, 1.0), (spec.tree, 18, 0.7)):
        edges = kind(1000, generator)
        rounds, fill = eliminate(edges, 1000)
        assert int(rounds.max()) < most_rounds
        assert fill.shape[1] < most_fill * edges.shape[1]
        neighbours = rounds[edges[0]] == rounds[edges[1]]
        assert not (neighbours & (edges[0] != edges[1])).any()


def test_large_graphs_need_64_bit_keys():
    """N² exceeds 2³¹: a chain of 100,000 nodes against its recurrence."""
    nodes = 100_000
    weight = torch.rand(nodes - 1, 1, dtype=torch.float64)
    ones = torch.ones(nodes, 1, dtype=torch.float64)
    V = torch.randn(nodes, 1, 1, dtype=torch.float64)
    edges = spec.path(nodes, torch.Generator())
    y = resolvent(edges, weight * 0.9, ones, ones, V, form="state").flatten()
    want = V.flatten().clone()
    for i, w in enumerate((0.9 * weight).flatten().tolist(), start=1):
        want[i] += w * want[i - 1]
    torch.testing.assert_close(y, want)


def test_the_state_form_in_parts_equals_the_whole(monkeypatch):
    inputs = RESOLVENT.cases["tree"](torch.float64, 0)
    whole = with_gradients(resolvent, inputs, form="state")
    monkeypatch.setattr(torch_backend, "STATE_NUMBERS", 3 * 64 * 3)
    for name, value in with_gradients(resolvent, inputs, form="state").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"form": "row"}, {"mode": "neumann", "terms": 4}], ids=str)
def test_graphs_of_one_stack_or_of_many(options, monkeypatch):
    inputs = RESOLVENT.cases["batch"](torch.float64, 0)
    whole = with_gradients(resolvent, inputs, **options)
    monkeypatch.setattr(ragged, "MOST_PADDING", 200)
    plan = make_plan(inputs["edge_index"], inputs["V"].shape[0], inputs["ptr"])
    assert [stack.graphs for stack in plan.stacks] == [1, 1, 3, 2]
    for name, value in with_gradients(resolvent, inputs, **options).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


class Sizes(TorchDispatchMode):
    """Notes the number of elements of every piece of memory that a tensor is given."""

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, (tuple, list)) else (out,)
        for t in tensors:
            if isinstance(t, torch.Tensor) and t.layout == torch.strided:
                memory = t.untyped_storage()
                self.made.add((memory.data_ptr(), memory.nbytes() // t.element_size()))
        return out


@pytest.mark.parametrize(("form", "most"), [("row", 1), ("state", 0)])
def test_tensors_of_heads_by_nodes_squared(form, most):
    """The resolvent itself and no second one in the row form; nothing near it in the other."""
    nodes, heads = 1000, 2
    inputs = spec.make([(spec.peptide, nodes)], torch.float32, 0, heads=heads)
    plan = make_plan(inputs["edge_index"], nodes)
    with Sizes() as sizes:
        with_gradients(resolvent, inputs, form=form, plan=plan)
    limit = heads * nodes**2 if form == "row" else nodes**2 / 10
    assert sum(size >= limit for _, size in sizes.made) == most


def test_refinement_solves_what_is_not_dominant_and_reports_its_residual(caplog):
    inputs = RESOLVENT.cases["general"](torch.float32, 0)
    inputs["edge_weight"] = inputs["edge_weight"] * -3
    with pytest.raises(ValueError, match="graph 0, head 0 is singular or not diagonally dominant"):
        resolvent(**inputs)
    with caplog.at_level(logging.INFO, "kernels"):
        got = with_gradients(resolvent, inputs, refine=2)
    assert "residual" in caplog.text
    exact = in_float64(inputs)
    for name, want in with_gradients(RESOLVENT.reference, exact).items():
        torch.testing.assert_close(got[name].double(), want, rtol=1e-4, atol=1e-4)


def normalised_star(leaves: int, norm: float) -> dict[str, torch.Tensor]:
    """Weights norm / √(d_i d_j); those at the hub sum to norm · √leaves."""
    leaf = torch.arange(1, leaves + 1)
    there = torch.stack([torch.zeros_like(leaf), leaf])
    edges = torch.cat([there, there.flip(0)], dim=1)
    weight = torch.full((edges.shape[1], 1), norm / leaves**0.5)
    B, C, V = torch.randn(leaves + 1, 3), torch.randn(leaves + 1, 3), torch.randn(leaves + 1, 1, 2)
    ptr = torch.tensor([0, leaves + 1])
    return {"edge_index": edges, "edge_weight": weight, "B": B, "C": C, "V": V, "ptr": ptr}


def test_symmetric_normalisation_is_dominant_after_a_scaling():
    inputs = normalised_star(100, 0.9)
    got = with_gradients(resolvent, inputs)
    for name, want in with_gradients(RESOLVENT.reference, in_float64(inputs)).items():
        torch.testing.assert_close(got[name].double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_no_scaling_makes_dominant_is_refused(sign):
    """Its spectral radius is 1.05."""
    with pytest.raises(ValueError, match="not diagonally dominant, not even after a scaling"):
        resolvent(**normalised_star(100, sign * 1.05))


def test_singular_systems_are_named():
    loop, ones = torch.tensor([[0], [0]]), torch.ones(1, 1)
    for options in ({}, {"backend": "reference"}):
        with pytest.raises(ValueError, match="graph 0, head 0 is singular"):
            resolvent(loop, ones, ones, ones, ones.reshape(1, 1, 1), **options)
    with pytest.raises(ValueError, match="The residual is"):
        resolvent(loop, ones, ones, ones, ones.reshape(1, 1, 1), refine=1)


def test_autocast_does_not_reach_inside():
    inputs = RESOLVENT.cases["hub"](torch.float32, 0)
    with torch.autocast("cpu", torch.bfloat16):
        y = resolvent(**inputs)
    assert torch.equal(y, resolvent(**inputs))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "neumann"}, "needs terms, a power of two"),
        ({"mode": "neumann", "terms": 6}, "needs terms, a power of two"),
        ({"terms": 4}, "terms belongs to mode='neumann'"),
        ({"ptr": torch.tensor([0, 2])}, "ptr must rise from 0 to the 15 nodes"),
        ({"ptr": torch.tensor([0, 1, 15])}, "An edge joins two graphs"),
        ({"edge_index": torch.full((2, 28), 15)}, "edge_index must name nodes 0 … 14"),
        ({"plan": make_plan(edge_index("path"), 3)}, "The plan is for 3 nodes and 2 edges"),
        ({"mode": "dag", "plan": "own"}, "needs a plan in topological order"),
    ],
)
def test_errors_say_what_to_do(change, sentence):
    inputs = RESOLVENT.cases["peptide of 15"](torch.float32, 0)
    if change.get("plan") == "own":
        change["plan"] = make_plan(inputs["edge_index"], 15)
    with pytest.raises(ValueError, match=sentence):
        resolvent(**(inputs | change))


def test_an_elimination_of_other_graphs_is_refused():
    generator = torch.Generator().manual_seed(0)
    other = eliminate(spec.path(20, generator), 20)
    with pytest.raises(ValueError, match="does not belong to these graphs"):
        make_plan(spec.cycle(20, generator).roll(7, 1) * 3 % 20, 20, elimination=other)


def test_import_without_triton():
    code = "import sys; sys.modules['triton'] = None; import lit_models.graphs.chimera"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
