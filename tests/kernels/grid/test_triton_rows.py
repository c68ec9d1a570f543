"""DAGs of small grids merged by Triton's kernels, against the float64 reference."""

from functools import partial

import pytest
import torch

from kernels.grid import MOST_IN_ROWS
from kernels.grid.spec import GRID_DAGS, corners
from kernels.grid.triton_backend import rows
from tests.kernels.comparing import (
    DEVICE,
    assert_a_cuda_graph_replays_a_step,
    assert_close_by_rows,
    assert_no_step_waits_for_the_gpu,
    in_float64,
    on_device,
    with_gradients,
)

mix = GRID_DAGS.function
BY_ROWS = GRID_DAGS.gpu_variants["rows, triton"]
# The interpreter would take minutes.
REAL = {
    "14 x 14": partial(corners, (4, 14, 14), heads=12, state=64, head_dim=128),
    "20 x 20": partial(corners, (2, 20, 20), heads=4, state=16, head_dim=48),
    "12 x 32": partial(corners, (2, 12, 32), heads=3, state=24, head_dim=32),
}
CASES = GRID_DAGS.cases | (REAL if DEVICE == "cuda" else {})
in_every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
FEW = {"images": CASES["images"]} | (REAL if DEVICE == "cuda" else {})
in_few_cases = pytest.mark.parametrize("case", FEW.values(), ids=FEW)
# Of a node's largest value; M, L and dM are rounded to bfloat16.
LOW = 3e-2
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")


def assert_close(got: dict, want: dict, tolerance: float) -> None:
    """By node of values, else by row of an image."""
    for name, value in got.items():
        assert value.shape == want[name].shape
        assert_close_by_rows(value.flatten(0, -3), want[name].flatten(0, -3), tolerance)


def assert_equals_the_reference(case, dtype: torch.dtype, tolerance: float) -> None:
    inputs = on_device(case(dtype, 0))
    got = with_gradients(mix, inputs, **BY_ROWS)
    assert {value.dtype for value in got.values()} == {dtype}
    assert_close(got, with_gradients(GRID_DAGS.reference, in_float64(inputs)), tolerance)


@in_every_case
def test_values_and_gradients_equal_the_reference(case):
    assert_equals_the_reference(case, torch.float32, 2e-5)


@in_few_cases
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, LOW), (torch.float16, 2e-3)], ids=str
)
def test_low_precision(case, dtype, tolerance):
    assert_equals_the_reference(case, dtype, tolerance)


@in_few_cases
def test_tf32(case):
    torch.set_float32_matmul_precision("high")
    try:
        assert_equals_the_reference(case, torch.float32, 2e-2)
    finally:
        torch.set_float32_matmul_precision("highest")


def in_mixed_precision(case) -> dict:
    """Weights in float32, the rest as autocast leaves it."""
    inputs = on_device(case(torch.float32, 0))
    return inputs | {name: inputs[name].bfloat16() for name in "BCV"}


@in_few_cases
def test_autocast_changes_nothing(case):
    inputs = in_mixed_precision(case)
    want = with_gradients(mix, inputs, **BY_ROWS)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = with_gradients(mix, inputs, **BY_ROWS)
    for name, value in got.items():
        assert torch.equal(value, want[name])
        assert value.dtype == inputs.get(name, inputs["V"]).dtype
    assert_close(got, with_gradients(GRID_DAGS.reference, in_float64(inputs)), LOW)


@pytest.mark.parametrize("memory", [1, 4000], ids=["one image", "some images"])
def test_images_in_groups(memory, monkeypatch):
    monkeypatch.setattr(rows, "MEMORY", memory)
    assert_equals_the_reference(partial(corners, (3, 2, 2)), torch.float32, 2e-5)


@in_few_cases
def test_repeats_are_equal_bit_by_bit_and_nothing_stays_unwritten(case, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch insists
    inputs = on_device(case(torch.float32, 0))
    first = with_gradients(mix, inputs, **BY_ROWS)
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        second = with_gradients(mix, inputs, **BY_ROWS)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_nan_stays_in_its_image():
    inputs = on_device(corners((3, 2, 2), torch.float32, 0))
    spoilt = {name: inputs[name].clone() for name in GRID_DAGS.differentiable}
    for name, x in spoilt.items():
        x.movedim(0 if name in ("V", "skip") else 1, 0)[1] = torch.nan
    want = with_gradients(mix, inputs, **BY_ROWS)
    got = with_gradients(mix, inputs | spoilt, **BY_ROWS)
    for name, value in got.items():
        images = value.movedim(0 if name in ("Y", "V", "skip") else 1, 0)
        assert images[1].isnan().any()
        clean = want[name].movedim(0 if name in ("Y", "V", "skip") else 1, 0)
        assert torch.equal(images[::2], clean[::2])


@in_few_cases
def test_what_would_enter_a_grid_is_not_read(case):
    inputs = on_device(case(torch.float32, 0))
    want = with_gradients(mix, inputs, **BY_ROWS)
    spoilt = {name: inputs[name].clone() for name in ("left", "top")}
    first = [
        (spoilt["left"][d][:, :, -1 if "right" in root else 0], d, root)
        for d, root in enumerate(inputs["roots"])
    ]
    first += [
        (spoilt["top"][d][:, -1 if "bottom" in root else 0], d, root)
        for d, root in enumerate(inputs["roots"])
    ]
    for entering, _, _ in first:
        entering.fill_(torch.nan)
    got = with_gradients(mix, inputs | spoilt, **BY_ROWS)
    for name, value in got.items():
        assert torch.equal(value, want[name])
    for d, root in enumerate(inputs["roots"]):
        assert not got["left"][d][:, :, -1 if "right" in root else 0].any()
        assert not got["top"][d][:, -1 if "bottom" in root else 0].any()


def test_inputs_need_not_be_contiguous():
    inputs = on_device(corners((2, 2, 2), torch.float32, 0))
    apart = {
        name: torch.stack([inputs[name]] * 2, dim=-1)[..., 0] for name in GRID_DAGS.differentiable
    }
    want = with_gradients(mix, inputs, **BY_ROWS)
    for name, value in with_gradients(mix, inputs | apart, **BY_ROWS).items():
        assert torch.equal(value, want[name])


@pytest.mark.usefixtures("_no_shape_checks")
@in_few_cases
def test_compiled_equals_eager_in_one_graph(case):
    inputs = in_mixed_precision(case)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    want = with_gradients(mix, inputs, **BY_ROWS)
    for name, value in with_gradients(compiled, inputs, **BY_ROWS).items():
        assert torch.equal(value, want[name])


def test_differentiating_twice_is_refused():
    inputs = on_device(corners((1, 2, 2), torch.float32, 0))
    V = inputs["V"].requires_grad_()
    y = mix(**inputs, **BY_ROWS)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), V, create_graph=True)


def test_grids_that_rows_do_not_fit_go_by_states():
    """Too wide, or more than one DAG from a corner."""
    wide = partial(corners, (1, 1, MOST_IN_ROWS[1] + 1))
    twice = partial(corners, (1, 2, 3), roots=["top left", "top left"])
    for case in (wide, twice):
        inputs = on_device(case(torch.float32, 0))
        with pytest.raises(ValueError, match="backend='triton' knows grids of up to 64 columns"):
            mix(**inputs, **BY_ROWS)
        got = with_gradients(mix, inputs, backend="triton")
        assert_close(got, with_gradients(GRID_DAGS.reference, in_float64(inputs)), 2e-5)


@needs_gpu
@in_few_cases
def test_no_step_waits_for_the_gpu(case):
    assert_no_step_waits_for_the_gpu(mix, in_mixed_precision(case), BY_ROWS)


@needs_gpu
@in_few_cases
def test_a_cuda_graph_replays_a_step(case):
    assert_a_cuda_graph_replays_a_step(mix, in_mixed_precision(case), BY_ROWS, changed="V")
