"""The resolvent against its peers, in whole models, and how its time grows; on a GPU if any."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch_geometric.data import Batch

from datamodules.batching import SizeBudgetSampler
from kernels.chain.spec import CHAIN
from kernels.grid.spec import GRID
from kernels.resolvent import AddPlan, make_plan, peers, plan_of, resolvent, spec
from kernels.resolvent.cost import faster_form, faster_form_on_gpu
from kernels.resolvent.scheduling import scheduled
from kernels.resolvent.spec import RESOLVENT
from tests.benchmarks.timing import ceilings, compare, roofline
from tests.kernels.comparing import DEVICE, in_float64, on_device
from train import CONFIGS

pytestmark = pytest.mark.timeout(1800)

# Largest relative error by precision of the inputs, or of their products.
ERRORS = {"float32": 1e-5}
if DEVICE == "cuda":
    ERRORS |= {"tf32": 5e-3, "bfloat16": 2e-2}
BATCHES = 4
FORMS = ("row", "state")
SIZES = {"like sizes": 0.1, "any sizes": 10.0}  # and the jitter that makes such batches
GREEN = ("kernels/resolvent/test_resolvent.py",)
GREEN_CHAINS_AND_GRIDS = ("kernels/chain/test_chain.py", "kernels/grid/test_grid.py")
if DEVICE == "cuda":
    GREEN += ("kernels/resolvent/test_triton.py",)
    GREEN_CHAINS_AND_GRIDS += (
        "kernels/chain/test_triton.py",
        "kernels/grid/test_triton_states.py",
    )


@pytest.fixture(scope="session")
def peptides():
    """Batches of 16 Peptides-func graphs: of like sizes, and of any, as training forms them."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["experiment=chimera_lrgb", "scale=paper"])
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup()
    dataset = datamodule.train_dataset
    batches = {}
    for name, jitter in SIZES.items():
        sampler = SizeBudgetSampler(dataset.num_nodes, 16, True, size_jitter=jitter)
        chosen = sampler.batches(0)[:BATCHES]
        graphs = [Batch.from_data_list([dataset[i] for i in indices]) for indices in chosen]
        batches[name] = [AddPlan()(batch).to(DEVICE) for batch in graphs]
    return datamodule.source_used, batches


def inputs_of(batch, heads: int, state: int, head_dim: int) -> dict:
    """Random tensors on a batch's graphs, weights as Chimera's normaliser leaves them."""
    generator = torch.Generator().manual_seed(0)
    nodes, edges = batch.num_nodes, batch.edge_index.cpu()
    raw = 0.75 + 0.2 * torch.rand(edges.shape[1], heads, generator=generator)
    inputs = {
        "edge_index": edges,
        "ptr": batch.ptr,
        "edge_weight": spec.normalised(edges, raw, nodes, 0.05),
        "B": torch.randn(nodes, state, generator=generator),
        "C": torch.randn(nodes, state, generator=generator),
        "V": torch.randn(nodes, heads, head_dim, generator=generator),
    }
    return on_device(inputs)


def forward(function, cases, **options):
    """Calls without gradients."""

    def run():
        with torch.no_grad():
            for inputs, plan in cases:
                function(**inputs, **({"plan": plan} if plan else {}), **options)

    return run


def forward_backward(function, cases, **options):
    """Calls with the gradients of all tensors."""

    def run():
        for inputs, plan in cases:
            tensors = {k: x.detach().requires_grad_() for k, x in inputs.items() if is_numbers(x)}
            given = {"plan": plan} if plan else {}
            y = function(**(inputs | tensors), **given, **options)
            torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))

    return run


def replayed(call):
    """The same call captured once in a CUDA graph: kernels without the time to launch them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def error_of(function, inputs: dict, exact: torch.Tensor, **options) -> float:
    """Relative error of a forward pass."""
    return float((function(**inputs, **options).double() - exact).norm() / exact.norm())


def nearness(op, passes, cases, times: dict, limits: dict) -> dict:
    """See `roofline`: of the first function, for the given cases together."""
    both = passes is forward_backward
    tensors = flop = 0
    for inputs, _ in cases:
        numbers = sum(x.nbytes for x in inputs.values() if is_numbers(x))
        tensors += (numbers + inputs["V"].nbytes) * (2 if both else 1)
        flop += sum(op.flop(**inputs)[: 2 if both else 1])
    return roofline(times[next(iter(times))]["ms"][1], tensors, flop, limits)


@pytest.fixture(params=ERRORS)
def precision(request):
    """Of inputs and of float32 products, while a benchmark runs."""
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision("highest")


def dtype_of(precision: str) -> torch.dtype:
    """Of inputs."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def in_precision(inputs: dict, precision: str) -> dict:
    """Inputs in the dtype of a precision."""
    dtype = dtype_of(precision)
    return {k: v.to(dtype) if is_numbers(v) else v for k, v in inputs.items()}


@pytest.fixture(scope="session")
def known_limits():
    """Of the precisions that have come up."""
    return {}


@pytest.fixture
def limits(known_limits, precision):
    """What this machine can do at most in a precision, measured in this run."""
    if precision not in known_limits:
        known_limits[precision] = ceilings(DEVICE, dtype_of(precision))
    return known_limits[precision]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("passes", [forward, forward_backward], ids=lambda f: f.__name__)
def test_against_its_peers(peptides, green, record, limits, precision, sizes, passes):
    green(*GREEN)
    source, batches = peptides
    size = {"heads": 2, "state": 64, "head_dim": 32}
    cases = [(in_precision(inputs_of(b, **size), precision), plan_of(b)) for b in batches[sizes]]
    bare = [(inputs, None) for inputs, _ in cases]
    functions = {
        "resolvent": passes(resolvent, cases),
        "resolvent, row form": passes(resolvent, cases, form="row"),
        "resolvent, state form": passes(resolvent, cases, form="state"),
        "planning a batch": lambda: [planned_anew(b) for b in batches[sizes]],
    }
    if DEVICE == "cuda":
        functions["resolvent, torch backend"] = passes(resolvent, cases, backend="torch")
        functions["resolvent, replayed"] = replayed(functions["resolvent"])
    if precision != "bfloat16":  # LAPACK has none
        functions |= {name: passes(peer, bare) for name, peer in RESOLVENT.peers.items()}
    inputs, plan = cases[0]
    exact = RESOLVENT.reference(**in_float64(inputs))
    error = error_of(resolvent, inputs, exact, plan=plan)
    assert error < ERRORS[precision]
    times = compare(functions, rounds=7)
    result = {"data": source, "relative_error": error, "times": times}
    result["roofline"] = nearness(RESOLVENT, passes, cases, times, limits)
    shape = f"{BATCHES} batches of 16 peptides of {sizes}"
    record(f"resolvent, {passes.__name__}, {shape}{suffix(precision)}", result)


def suffix(precision: str) -> str:
    """Of a result's name; float32 goes without saying."""
    return "" if precision == "float32" else f", {precision}"


def planned_anew(batch):
    """The plan of a batch with all that a step will ask of it, as a loading process makes it."""
    bare = batch.clone().cpu()
    del bare.plan
    return AddPlan()(bare).plan


def test_low_precision_against_plain_torch(peptides, green, record):
    """In bfloat16, the error of the same mathematics done step by step in bfloat16 by torch."""
    green(*GREEN)
    source, batches = peptides
    errors = {}
    for name in ("float32", "bfloat16"):
        batch = batches["like sizes"][0]
        inputs = in_precision(inputs_of(batch, heads=2, state=64, head_dim=32), name)
        exact = RESOLVENT.reference(**in_float64(inputs))
        errors[f"resolvent, {name}"] = error_of(resolvent, inputs, exact, plan=plan_of(batch))
        errors[f"plain torch, {name}"] = error_of(peers.doubling, inputs, exact, terms=1024)
    record("errors of the resolvent", {"data": source, "relative_errors": errors})
    assert errors["resolvent, bfloat16"] <= 2 * errors["plain torch, bfloat16"]


@pytest.mark.parametrize("sizes", SIZES)
def test_a_training_step_against_rival_models(peptides, green, record, sizes):
    """Forward and backward pass of whole models with about 500,000 parameters, batch 16."""
    green(*GREEN, "lit_models/graphs/test_graph_models.py")
    source, batches = peptides
    functions, parameters = {}, {}
    for experiment in ("chimera_lrgb", "gps_lrgb", "gated_gcn_lrgb"):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", [f"experiment={experiment}", "scale=paper"])
        model = instantiate(config.model, _convert_="all").to(DEVICE)
        parameters[experiment] = sum(p.numel() for p in model.parameters())

        def steps(model=model):
            for batch in batches[sizes]:
                model.zero_grad()
                model.task.loss(model(batch), batch).backward()

        functions[experiment] = steps
    functions["stitching plans, all tables"] = lambda: [stitched(b) for b in batches[sizes]]
    name = f"training step, {BATCHES} batches of 16 peptides of {sizes}"
    times = compare(functions, rounds=5)
    record(name, {"data": source, "parameters": parameters, "times": times})


def stitched(batch) -> None:
    """A batch's plan and every table that a training step of the row form asks of it."""
    plan = planned_anew(batch)
    for half in ("lower", "upper"):
        plan.sweep(half, transposed=False, padded=True, heads=2)
        plan.sweep(half, transposed=True, padded=True)
    plan.pairs(batch.edge_index.cpu(), padded=True)


@pytest.mark.parametrize("op", [CHAIN, GRID], ids=["chain", "grid"])
@pytest.mark.parametrize("passes", [forward, forward_backward], ids=lambda f: f.__name__)
def test_special_topologies_against_their_peers(green, record, limits, precision, op, passes):
    green(*GREEN, *GREEN_CHAINS_AND_GRIDS)
    if op is CHAIN and find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed: make benchmark installs it where pip has it")
    for name, make in op.benchmarks.items():
        inputs = in_precision(on_device(make(torch.float32, 0)), precision)
        functions = {op.name: op.function} | dict(op.peers)
        if DEVICE == "cuda":
            functions |= op.gpu_peers
        exact = op.function(**in_float64(inputs))
        errors = {peer: error_of(f, inputs, exact) for peer, f in functions.items()}
        assert errors[op.name] < ERRORS[precision]
        cases = [(inputs, None)]
        calls = {k: passes(f, cases) for k, f in functions.items()}
        if DEVICE == "cuda":
            calls["the same, replayed"] = replayed(calls[op.name])
        result = {"relative_errors": errors, "times": compare(calls, rounds=7)}
        result["roofline"] = nearness(op, passes, cases, result["times"], limits)
        record(f"resolvent, {passes.__name__}, {name}{suffix(precision)}", result)


def is_numbers(value) -> bool:
    """Whether this is a tensor that can have a gradient."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.parametrize("kind", [spec.peptide, spec.tree], ids=lambda f: f.__name__)
def test_time_grows_linearly_with_the_graph(green, record, kind):
    green(*GREEN)
    rows = []
    for nodes in (1_000, 3_000, 10_000, 30_000, 100_000):
        inputs = spec.make([(kind, nodes)], torch.float32, 0, heads=2, state=16, head_dim=16)
        make = partial(make_plan, inputs["edge_index"], nodes)
        planning = compare({"plan": make}, rounds=3)["plan"]
        cases = [(on_device(inputs), make())]
        run = compare({"run": forward_backward(resolvent, cases, form="state")}, rounds=3)["run"]
        rows.append({"nodes": nodes, "plan_ms": planning["ms"], **run})
    size = np.log([row["nodes"] for row in rows])
    ms = np.log([row["ms"][1] for row in rows])
    slope = float(np.polyfit(size, ms, 1)[0])
    record(
        f"growth with nodes, {kind.__name__}",
        {"heads": 2, "state": 16, "head_dim": 16, "log_log_slope": slope, "rows": rows},
    )
    assert slope <= 1.1


SHAPES = {
    "peptides": ([(spec.peptide, 120)] * 8, 2, 64, 32),
    "small molecules": ([(spec.peptide, 25)] * 64, 2, 16, 16),
    "one protein": ([(spec.peptide, 2500)], 2, 16, 16),
    "a tree, small state": ([(spec.tree, 800)], 2, 4, 8),
    "superpixels": ([(spec.superpixels, 400)] * 4, 4, 32, 16),
    "many heads": ([(spec.peptide, 300)] * 4, 8, 16, 8),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_form_that_is_chosen_is_the_faster_one(green, record, shape):
    green(*GREEN)
    graphs, heads, state, head_dim = SHAPES[shape]
    inputs = spec.make(graphs, torch.float32, 0, heads=heads, state=state, head_dim=head_dim)
    plan = make_plan(inputs["edge_index"], inputs["V"].shape[0], inputs["ptr"])
    inputs = on_device(inputs)
    plan = scheduled(plan, inputs["V"].device) if DEVICE == "cuda" else plan
    choose = faster_form_on_gpu if DEVICE == "cuda" else faster_form
    chosen = choose(plan, state, heads, head_dim)
    functions = {form: forward_backward(resolvent, [(inputs, plan)], form=form) for form in FORMS}
    times = compare(functions)
    record(f"choice of form, {shape}", {"chosen": chosen, "times": times})
    fastest = min(times[form]["ms"][1] for form in FORMS)
    assert times[chosen]["ms"][1] <= 1.2 * fastest
