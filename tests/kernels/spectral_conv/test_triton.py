"""The spectral convolution's Triton kernels against the float64 reference."""

from pathlib import Path

import pytest
import torch

from kernels.spectral_conv import spectral_conv, triton_backend
from kernels.spectral_conv.spec import ALONE, DEPTHWISE, SPECTRAL_CONV, make
from kernels.spectral_conv.triton_backend import transforms
from tests.kernels.comparing import (
    DEVICE,
    assert_a_cuda_graph_replays_a_step,
    assert_close_by_rows,
    assert_no_step_waits_for_the_gpu,
    in_float64,
    leaves,
    on_device,
    outside,
    with_gradients,
)

SPECS = {"": SPECTRAL_CONV, "depthwise ": DEPTHWISE}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
BY_TRITON = {"backend": "triton"}
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")


def of_cases(*names: str):
    """These cases of every weight's kind, or all."""
    cases = {f"{kind}{name}": c for kind, op in SPECS.items() for name, c in op.cases.items()}
    chosen = {name: cases[name] for name in names or cases}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


in_few = of_cases("line", "plane", "depthwise plane")


def assert_equals_the_reference(inputs: dict, tolerance: float) -> None:
    """In the dtypes of the inputs, by channels of fields and by channels of every mode."""
    got = with_gradients(spectral_conv, on_device(inputs), **BY_TRITON)
    want = with_gradients(SPECTRAL_CONV.reference, in_float64(inputs))
    for name, value in got.items():
        assert value.dtype == inputs["x" if name == "Y" else name].dtype
        got_rows, want_rows = by_rows(name, value), by_rows(name, want[name])
        assert_close_by_rows(got_rows, want_rows, tolerance)


def by_rows(name: str, value: torch.Tensor) -> torch.Tensor:
    if name == "bias":
        return value[None]
    return value.flatten(0, {"Y": 1, "x": 1, "weight": -2}.get(name, 0))


@of_cases()
def test_values_and_gradients_equal_the_reference(case):
    assert_equals_the_reference(case(torch.float32, 0), TOLERANCE[torch.float32])


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_few
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=needs_gpu)], ids=str
)
def test_low_precision(case, dtype):
    assert_equals_the_reference(case(dtype, 0), TOLERANCE[dtype])


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_few
def test_tf32(case):
    torch.set_float32_matmul_precision("high")
    try:
        assert_equals_the_reference(case(torch.float32, 0), 2e-2)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
def test_a_field_in_bfloat16_with_weights_in_float32():
    inputs = SPECTRAL_CONV.cases["plane"](torch.float32, 0)
    inputs["x"] = inputs["x"].bfloat16()
    assert_equals_the_reference(inputs, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("programs", [1, 4])
@of_cases("line of several tiles", "plane of several tiles")
def test_points_shared_out_among_programs(case, programs, monkeypatch):
    """In one part and in two, the second shorter, instead of one a tile."""
    monkeypatch.setattr(transforms, "PROGRAMS", programs)
    assert_equals_the_reference(case(torch.float32, 0), TOLERANCE[torch.float32])


@of_cases("line", "plane", "plane, bias", "box, alone", "depthwise line")
def test_repeats_are_equal_bit_by_bit_and_nothing_stays_unwritten(case):
    inputs = on_device(case(torch.float32, 0))
    first = with_gradients(spectral_conv, inputs, **BY_TRITON)
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        second = with_gradients(spectral_conv, inputs, **BY_TRITON)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_nan_stays_in_its_sample():
    inputs = on_device(make((3, 2, 2), (5, 6), (1, 2), torch.float32, 0))
    want = with_gradients(spectral_conv, inputs, **BY_TRITON)
    inputs["x"][1] = float("nan")
    got = with_gradients(spectral_conv, inputs, **BY_TRITON)
    for name in ("Y", "x"):
        assert torch.equal(got[name][::2], want[name][::2])
    assert got["Y"][1].isnan().all()


def test_tensors_that_lie_in_memory_in_another_order():
    inputs = on_device(SPECTRAL_CONV.cases["plane"](torch.float32, 0))
    want = with_gradients(spectral_conv, inputs, **BY_TRITON)
    turned = {
        "x": inputs["x"].contiguous(memory_format=torch.channels_last),
        "weight": inputs["weight"].transpose(0, -1).contiguous().transpose(0, -1),
        "skip": inputs["skip"].T.contiguous().T,
        "bias": inputs["bias"].repeat_interleave(2)[::2],
    }
    for name, value in with_gradients(spectral_conv, inputs | turned, **BY_TRITON).items():
        assert torch.equal(value, want[name])


@of_cases("line", "plane", "plane, GELU")
def test_nothing_is_read_beside_the_tensors(case):
    """They lie among NaN, and begin anywhere in memory."""
    inputs = on_device(case(torch.float32, 0))
    want = with_gradients(spectral_conv, inputs, **BY_TRITON)
    among_nan = {}
    for name, x in leaves(inputs).items():
        memory = torch.full((x.numel() + 99,), float("nan"), device=DEVICE)
        among_nan[name] = memory[33:-66].view(x.shape).copy_(x.detach())
    for name, value in with_gradients(spectral_conv, inputs | among_nan, **BY_TRITON).items():
        assert torch.equal(value, want[name])


def test_a_gradient_that_is_one_number_seen_everywhere():
    """As `sum().backward()` gives it, without any memory of its own."""
    inputs = on_device(SPECTRAL_CONV.cases["plane"](torch.float32, 0))
    tensors = leaves(inputs)
    spectral_conv(**(inputs | tensors), **BY_TRITON).sum().backward()
    by_torch = leaves(inputs)
    spectral_conv(**(inputs | by_torch), backend="torch").sum().backward()
    for name, x in tensors.items():
        torch.testing.assert_close(x.grad, by_torch[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [(), ("gelu",), ("skip",), ("skip", "gelu")], ids=str)
def test_only_what_the_gradients_need_is_kept(parts):
    """Fields besides the output: x for a skip's gradient, what enters a GELU for its slope."""
    inputs = on_device(make((2, 3, 4), (8, 9), (1, 2), torch.float32, 0, parts=parts))
    fields = []

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] == (8, 9):
            fields.append(x.shape[1])
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        spectral_conv(**(inputs | leaves(inputs)), **BY_TRITON)
    assert fields == [3] * ("skip" in parts) + [4] * ("gelu" in parts)


@pytest.mark.usefixtures("_no_shape_checks")
@of_cases("plane", "plane, GELU", "depthwise line")
def test_compiled_equals_eager_in_one_graph(case):
    inputs = on_device(case(torch.float32, 0))
    torch.compiler.reset()
    compiled = torch.compile(spectral_conv, fullgraph=True, backend="aot_eager")
    want = with_gradients(spectral_conv, inputs, **BY_TRITON)
    for name, value in with_gradients(compiled, inputs, **BY_TRITON).items():
        assert torch.equal(value, want[name])
    with torch.no_grad():
        assert torch.equal(compiled(**inputs, **BY_TRITON), want["Y"])


def test_differentiating_twice_is_refused():
    inputs = on_device(make((1, 1, 1), (4,), (1,), torch.float32, 0, **ALONE))
    tensors = leaves(inputs)
    y = spectral_conv(**tensors, **BY_TRITON)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), tensors["x"], create_graph=True)


def test_what_the_kernels_cannot_do_is_refused():
    inputs = make((1, 1, 1), (4, 4), (1, 1), torch.float32, 0, **ALONE)
    for change in (
        {"form": "fft"},
        {"x": inputs["x"].double()},
        {"weight": [inputs["weight"][0], inputs["weight"][0]]},
    ):
        with pytest.raises(ValueError, match="backend='triton' knows dense and depthwise weights"):
            spectral_conv(**(inputs | change), **BY_TRITON)


@pytest.mark.skipif(DEVICE == "cuda", reason="minutes of compiling that need no GPU")
def test_kernels_compile_without_spilling():
    """Those of one layer, for sm_80 and sm_90; `make compile-kernels` compiles all."""
    done = outside("-m", "kernels.aot", "spectral_conv, layer, 4 x 64 x 64², 12 modes, float32")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in ("planes", "product", "fields"):
        assert f"{name}_kernel" in done.stdout


def test_no_kernel_uses_atomics():
    for path in Path(triton_backend.__file__).parent.glob("*.py"):
        assert "tl.atomic" not in path.read_text()


@needs_gpu
@in_few
def test_no_step_waits_for_the_gpu(case):
    inputs = on_device(case(torch.float32, 0))
    assert_no_step_waits_for_the_gpu(spectral_conv, inputs, BY_TRITON)


@needs_gpu
@in_few
def test_a_cuda_graph_replays_a_step(case):
    inputs = on_device(case(torch.float32, 0))
    assert_a_cuda_graph_replays_a_step(spectral_conv, inputs, BY_TRITON, changed="x")
