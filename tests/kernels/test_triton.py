"""The Triton kernels against the float64 reference: on a GPU, else interpreted, and compiled."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch, Data

from kernels import resolvent
from kernels.resolvent import (
    AddPlan,
    ChainPlan,
    GridDag,
    bidirectional_chain,
    grid_dags,
    make_plan,
    plan_of,
    spec,
    triton_backend,
)
from kernels.resolvent.chain import chain_resolvent
from kernels.resolvent.grid import grid_resolvent
from kernels.resolvent.schedule import make_schedule, schedule_of
from kernels.resolvent.spec import CHAIN, GRID, RESOLVENT
from tests.kernels.comparing import (
    DEVICE,
    assert_a_cuda_graph_replays_a_step,
    assert_close_by_rows,
    assert_no_step_waits_for_the_gpu,
    everywhere,
    in_float64,
    on_device,
    outside,
    with_gradients,
)

# The interpreter takes about a quarter of a millisecond for every access of every program.
MOST_NODES = None if DEVICE == "cuda" else 130
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
forms = pytest.mark.parametrize(
    "form", [triton_backend.row_form, triton_backend.state_form], ids=["row", "state"]
)


def assert_equals_the_reference(case, dtype: torch.dtype, tolerance: float, **options) -> None:
    inputs = case(dtype, 0)
    got = with_gradients(resolvent, on_device(inputs), **options)
    want = with_gradients(RESOLVENT.reference, in_float64(inputs))
    for name, value in got.items():
        assert value.dtype == dtype
        assert_close_by_rows(value, want[name], tolerance)


@everywhere("gpu_variants", MOST_NODES)
def test_values_and_gradients_equal_the_reference(case, options):
    ill_conditioned = 50 if case is RESOLVENT.cases["slow decay"] else 1
    tolerance = TOLERANCE[torch.float32] * ill_conditioned
    assert_equals_the_reference(case, torch.float32, tolerance, **options)


FEW = ((RESOLVENT, "batch"), (CHAIN, "chains"), (GRID, "from the top left"))
in_every_variant = pytest.mark.parametrize(
    ("case", "options"),
    [
        pytest.param(op.cases[case], options, id=f"{case}-{variant}")
        for op, case in FEW
        for variant, options in op.gpu_variants.items()
    ],
)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=needs_gpu)], ids=str
)
def test_low_precision(case, options, dtype):
    assert_equals_the_reference(case, dtype, TOLERANCE[dtype], **options)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
def test_tf32(case, options):
    torch.set_float32_matmul_precision("high")
    try:
        assert_equals_the_reference(case, torch.float32, 2e-2, **options)
    finally:
        torch.set_float32_matmul_precision("highest")


def planned(case: str, front: int | None = None, **options) -> dict:
    """Inputs of a case with the schedule of its plan instead of ptr."""
    inputs = RESOLVENT.cases[case](torch.float32, 0)
    plan = make_plan(inputs["edge_index"], len(inputs["V"]), inputs.pop("ptr"), **options)
    schedule = schedule_of(plan) if front is None else make_schedule(plan, front)
    return on_device(inputs) | {"schedule": schedule.to(DEVICE)}


@forms
@pytest.mark.parametrize("front", [0, 16, 1000])
def test_fronts_of_any_size_give_the_same(form, front):
    got = with_gradients(form, planned("superpixels", front))
    exact = in_float64(RESOLVENT.cases["superpixels"](torch.float32, 0))
    want = with_gradients(RESOLVENT.reference, exact)
    for name, value in got.items():
        assert_close_by_rows(value, want[name], TOLERANCE[torch.float32])


def test_a_front_of_several_large_tiles():
    """Its tiles have 32 rows, and their products meet in both directions."""
    case = spec.one(spec.superpixels, 90)
    inputs = case(torch.float32, 0)
    plan = make_plan(inputs["edge_index"], 90)
    plan.schedule = make_schedule(plan, 128).to(DEVICE)
    assert (plan.schedule.tile, plan.schedule.tiles, plan.schedule.levels) == (32, 3, 0)
    assert_equals_the_reference(
        case, torch.float32, TOLERANCE[torch.float32], plan=plan, form="row", backend="triton"
    )


@forms
def test_a_scan_of_a_dag_takes_one_sweep(form):
    inputs = planned("dag", order="topological")
    assert inputs["schedule"].tiles == 0
    got = with_gradients(form, inputs)
    want = with_gradients(RESOLVENT.reference, in_float64(RESOLVENT.cases["dag"](torch.float32, 0)))
    for name, value in got.items():
        assert_close_by_rows(value, want[name], TOLERANCE[torch.float32])


@in_every_variant
def test_repeats_are_equal_bit_by_bit_and_nothing_stays_unwritten(case, options):
    inputs = on_device(case(torch.float32, 0))
    first = with_gradients(resolvent, inputs, **options)
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        second = with_gradients(resolvent, inputs, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name])


@pytest.mark.parametrize("options", RESOLVENT.gpu_variants.values(), ids=RESOLVENT.gpu_variants)
def test_nan_stays_in_its_graph(options):
    graphs = [(spec.peptide, 20), (spec.general, 12), (spec.peptide, 20)]
    inputs = on_device(spec.make(graphs, torch.float32, 0))
    spoilt = {k: inputs[k].clone() for k in RESOLVENT.differentiable}
    spoilt["V"][20:32] = spoilt["B"][20:32] = spoilt["C"][20:32] = float("nan")
    inside = (inputs["edge_index"][0] >= 20) & (inputs["edge_index"][0] < 32)
    spoilt["edge_weight"][inside] = float("nan")
    want = with_gradients(resolvent, inputs, **options)
    got = with_gradients(resolvent, inputs | spoilt, **options)
    for name, value in got.items():
        others = ~inside if name == "edge_weight" else torch.ones(len(value), dtype=torch.bool)
        if name != "edge_weight":
            others[20:32] = False
        assert torch.equal(value[others], want[name][others])


def assert_same_by_torch(function, inputs: list[torch.Tensor], unread: list[torch.Tensor]) -> None:
    """Triton's values and gradients are the torch backend's; `unread` masks may hold anything.

    Args:
        function: of the inputs and a backend.
        inputs: in float64; the first of them are weights.
        unread: bool, where a weight enters nothing, for each of the weights.
    """
    spoilt = [x.float() for x in inputs]
    exact = [x.double() for x in spoilt]
    for weight, mask in zip(spoilt, unread):
        weight[mask] = float("nan")
    results = {}
    for backend, given in (("torch", exact), ("triton", spoilt)):
        leaves = [x.to(DEVICE).requires_grad_() for x in given]
        y = function(*leaves, backend=backend)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        results[backend] = [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]
    for got, want in zip(results["triton"], results["torch"], strict=True):
        assert_close_by_rows(got, want, TOLERANCE[torch.float32])
    for got, mask in zip(results["triton"][1:], unread):
        assert not got.cpu()[mask].any()


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_enters_a_chain(reverse):
    plan = ChainPlan((5, 0, 70, 1), reverse)
    weight, V = 2 * torch.rand(76, 2).double() - 1, torch.randn(76, 2, 20).double()
    unread = torch.zeros(76, 2, dtype=torch.bool)
    unread[[4, 74, 75] if reverse else [0, 5, 75]] = True
    inputs = [weight, *torch.randn(2, 76, 5).double(), V]
    assert_same_by_torch(partial(chain_resolvent, plan=plan), inputs, [unread])


def test_nothing_enters_an_image():
    left, top = 2 * torch.rand(2, 2, 3, 17, 2).double() - 1
    unread = torch.zeros(2, 2, 3, 17, 2, dtype=torch.bool)
    unread[0, :, :, 0] = unread[1, :, 0] = True
    inputs = [
        left,
        top,
        *torch.randn(2, 2, 3, 17, 5).double(),
        torch.randn(2, 3, 17, 2, 20).double(),
    ]
    assert_same_by_torch(grid_resolvent, inputs, [*unread])


def test_sums_of_directions():
    weights = torch.rand(2, 40, 2).double()
    nodes = [*torch.randn(2, 40, 4).double(), torch.randn(40, 2, 3).double()]
    assert_same_by_torch(bidirectional_chain, [*weights, *nodes], [])
    weights = torch.rand(6, 1, 3, 4, 2).double() / 2
    nodes = [*torch.randn(4, 1, 3, 4, 4).double(), torch.randn(1, 3, 4, 2, 3).double()]
    assert_same_by_torch(two_corners, [*weights, *nodes], [])


def two_corners(*inputs: torch.Tensor, backend: str) -> torch.Tensor:
    """DAGs from the top right and the bottom left, whose tensors alternate before V."""
    dags = [GridDag(*inputs[i:-1:2], root) for i, root in enumerate(("top right", "bottom left"))]
    return grid_dags(dags, inputs[-1], backend=backend)


def test_a_gradient_that_is_one_number_seen_everywhere():
    """As `sum().backward()` gives it, without any memory of its own."""
    inputs = on_device(RESOLVENT.cases["hub"](torch.float32, 0))
    for options in RESOLVENT.gpu_variants.values():
        for name in RESOLVENT.differentiable:
            inputs[name] = inputs[name].detach().requires_grad_()
        resolvent(**inputs, **options).sum().backward()
        by_torch = torch.autograd.grad(resolvent(**inputs, backend="torch").sum(), inputs["V"])
        torch.testing.assert_close(inputs["V"].grad, *by_torch)


def with_plan(case) -> dict:
    """Inputs of a case with a plan that is ready for the kernels, its own or one of its graphs."""
    inputs = on_device(case(torch.float32, 0))
    if "plan" not in inputs:
        inputs["plan"] = make_plan(inputs["edge_index"], len(inputs["V"]), inputs["ptr"])
        schedule_of(inputs["plan"])
    return inputs


@pytest.mark.usefixtures("_no_shape_checks")
@in_every_variant
@pytest.mark.parametrize("chosen", [False, True], ids=["", "form chosen"])
def test_compiled_equals_eager_in_one_graph(case, options, chosen):
    options = {k: v for k, v in options.items() if not chosen or k != "form"}
    inputs = with_plan(case)
    compiled = torch.compile(resolvent, fullgraph=True, backend="aot_eager")
    want = with_gradients(resolvent, inputs, **options)
    for name, value in with_gradients(compiled, inputs, **options).items():
        assert torch.equal(value, want[name])


@forms
def test_differentiating_twice_is_refused(form):
    inputs = planned("hub")
    weight = inputs["edge_weight"].requires_grad_()
    y = form(**inputs)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), weight, create_graph=True)


def test_what_the_kernels_cannot_do_is_refused():
    inputs = RESOLVENT.cases["hub"](torch.float64, 0)
    for change in ({}, {"refine": 1}, {"mode": "neumann", "terms": 4}):
        with pytest.raises(ValueError, match="backend='triton' knows"):
            resolvent(**inputs, backend="triton", **change)


def test_a_plan_moves_with_its_batch():
    """Made where the batch is loaded; what it has there stays there."""
    inputs = RESOLVENT.cases["tree"](torch.float32, 0)
    graph = Data(edge_index=inputs["edge_index"], num_nodes=64)
    load = AddPlan()
    load.for_triton = True  # as on a machine with a GPU
    batch = load(Batch.from_data_list([graph, graph]))
    moved = batch.clone().to("meta", non_blocking=True)
    assert plan_of(moved) is moved.plan
    assert moved.plan.schedule.table.device.type == "meta"
    assert batch.plan.schedule.table.device.type == "cpu"
    assert moved.plan.schedule[1:] == batch.plan.schedule[1:]


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_kernels_on_a_cpu_say_what_to_do():
    code = "import torch, kernels; w = torch.zeros(0, 1); x = torch.ones(1, 1);"
    code += " e = torch.zeros(2, 0, dtype=torch.int64);"
    code += " kernels.resolvent(e, w, x, x, x[None], backend='triton')"
    assert "set TRITON_INTERPRET=1 before Python starts" in outside("-c", code).stderr


@pytest.mark.skipif(DEVICE == "cuda", reason="minutes of compiling that need no GPU")
def test_every_kernel_compiles_without_spilling():
    """For sm_80 and sm_90, as launched on the benchmarks' inputs."""
    done = outside("-m", "kernels.aot", "resolvent")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in (
        "factorise",
        "solve",
        "mix",
        "contract",
        "outputs",
        "grid_adjoint",
        "grid_rows_merge",
    ):
        assert f"{name}_kernel" in done.stdout


def test_no_kernel_uses_atomics():
    for path in Path(triton_backend.__file__).parent.glob("*.py"):
        assert "tl.atomic" not in path.read_text()


@needs_gpu
@in_every_variant
def test_no_step_waits_for_the_gpu(case, options):
    assert_no_step_waits_for_the_gpu(resolvent, with_plan(case), options)


@needs_gpu
@in_every_variant
def test_a_cuda_graph_replays_a_step(case, options):
    assert_a_cuda_graph_replays_a_step(resolvent, with_plan(case), options, changed="V")
