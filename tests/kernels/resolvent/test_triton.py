"""The resolvent's Triton kernels against its reference: on a GPU, else interpreted; compiled."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch_geometric.data import Batch, Data

from kernels.resolvent import AddPlan, make_plan, plan_of, resolvent, spec, triton_backend
from kernels.resolvent.scheduling import make_schedule, scheduled
from kernels.resolvent.spec import RESOLVENT
from tests.kernels.comparing import (
    DEVICE,
    MOST_NODES,
    TOLERANCE,
    assert_a_cuda_graph_replays_a_step,
    assert_close_by_rows,
    assert_compiled_equals_eager,
    assert_equals_the_reference,
    assert_no_atomics,
    assert_no_step_waits_for_the_gpu,
    assert_repeats_are_equal_bit_by_bit,
    everywhere,
    in_float64,
    in_low_precision,
    needs_gpu,
    on_device,
    outside,
    products_in_tf32,
    with_gradients,
)

in_every_variant = everywhere(RESOLVENT, "gpu_variants", only=("batch",))
forms = pytest.mark.parametrize(
    "form", [triton_backend.row_form, triton_backend.state_form], ids=["row", "state"]
)


@everywhere(RESOLVENT, "gpu_variants", MOST_NODES)
def test_values_and_gradients_equal_the_reference(case, options):
    ill_conditioned = 50 if case is RESOLVENT.cases["slow decay"] else 1
    tolerance = TOLERANCE[torch.float32] * ill_conditioned
    assert_equals_the_reference(RESOLVENT, case, torch.float32, tolerance, **options)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
@in_low_precision
def test_low_precision(case, options, dtype):
    assert_equals_the_reference(RESOLVENT, case, dtype, TOLERANCE[dtype], **options)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
def test_tf32(case, options):
    with products_in_tf32():
        assert_equals_the_reference(RESOLVENT, case, torch.float32, 2e-2, **options)


def planned(case: str, front: int | None = None, **options) -> dict:
    """Inputs of a case with the schedule of its plan instead of ptr."""
    inputs = RESOLVENT.cases[case](torch.float32, 0)
    plan = make_plan(inputs["edge_index"], len(inputs["V"]), inputs.pop("ptr"), **options)
    schedule = scheduled(plan).schedule if front is None else make_schedule(plan, front)
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
    plan = replace(plan, schedule=make_schedule(plan, 128).to(DEVICE))
    assert (plan.schedule.tile, plan.schedule.tiles, plan.schedule.levels) == (32, 3, 0)
    options = {"plan": plan, "form": "row", "backend": "triton"}
    assert_equals_the_reference(RESOLVENT, case, torch.float32, TOLERANCE[torch.float32], **options)


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
    assert_repeats_are_equal_bit_by_bit(resolvent, on_device(case(torch.float32, 0)), options)


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
    """Inputs of a case with a plan that is ready for the kernels."""
    inputs = on_device(case(torch.float32, 0))
    plan = make_plan(inputs["edge_index"], len(inputs["V"]), inputs["ptr"])
    return inputs | {"plan": scheduled(plan)}


@pytest.mark.usefixtures("_no_shape_checks")
@in_every_variant
@pytest.mark.parametrize("chosen", [False, True], ids=["", "form chosen"])
def test_compiled_equals_eager_in_one_graph(case, options, chosen):
    options = {k: v for k, v in options.items() if not chosen or k != "form"}
    assert_compiled_equals_eager(resolvent, with_plan(case), options)


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


def test_a_plan_is_laid_out_once_and_stays_as_it_was_made():
    inputs = RESOLVENT.cases["tree"](torch.float32, 0)
    plan = make_plan(inputs["edge_index"], 64)
    laid_out = scheduled(plan, torch.device("meta"))
    assert scheduled(plan, torch.device("meta")) is laid_out
    assert scheduled(laid_out, torch.device("meta")) is laid_out
    assert plan.schedule is None
    with pytest.raises(FrozenInstanceError):
        plan.schedule = laid_out.schedule


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
    code = "import torch; from kernels.resolvent import resolvent;"
    code += " w = torch.zeros(0, 1); x = torch.ones(1, 1);"
    code += " e = torch.zeros(2, 0, dtype=torch.int64);"
    code += " resolvent(e, w, x, x, x[None], backend='triton')"
    assert "set TRITON_INTERPRET=1 before Python starts" in outside("-c", code).stderr


@pytest.mark.skipif(DEVICE == "cuda", reason="minutes of compiling that need no GPU")
def test_every_kernel_compiles_without_spilling():
    """For sm_80 and sm_90, as launched on the benchmarks' inputs."""
    done = outside("-m", "kernels.aot", "resolvent")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in ("factorise", "solve", "mix", "contract"):
        assert f"{name}_kernel" in done.stdout


def test_no_kernel_uses_atomics():
    assert_no_atomics(triton_backend)


@needs_gpu
@in_every_variant
def test_no_step_waits_for_the_gpu(case, options):
    assert_no_step_waits_for_the_gpu(resolvent, with_plan(case), options)


@needs_gpu
@in_every_variant
def test_a_cuda_graph_replays_a_step(case, options):
    assert_a_cuda_graph_replays_a_step(resolvent, with_plan(case), options, changed="V")
