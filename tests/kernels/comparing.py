"""How the kernels' tests compare an op with its reference, on whatever device there is."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.spec import OpSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# The interpreter takes about a quarter of a millisecond for every access of every program.
MOST_NODES = None if DEVICE == "cuda" else 130
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
in_low_precision = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=needs_gpu)], ids=str
)


def everywhere(
    op: OpSpec, variants: str, most_nodes: int | None = None, only: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Cases of an op with each of its `variants` or `gpu_variants`: all up to a size, or some."""
    return pytest.mark.parametrize(
        ("case", "options"),
        [
            pytest.param(case, options, id=f"{name}-{variant}")
            for name, case in op.cases.items()
            if not only or name in only
            if most_nodes is None or nodes_of(case(torch.float32, 0)) <= most_nodes
            for variant, options in getattr(op, variants).items()
        ],
    )


def nodes_of(inputs: dict) -> int:
    """Of all graphs of a case."""
    return inputs["V"].shape[:-2].numel()


def leaves(inputs: dict) -> dict[str, torch.Tensor]:
    """The tensors of numbers among the inputs, to be differentiated by."""
    return {k: v.detach().requires_grad_() for k, v in inputs.items() if is_numbers(v)}


def is_numbers(value: object) -> bool:
    """Whether this is a tensor that can have a gradient."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def with_gradients(function: Callable, inputs: dict, **options) -> dict[str, torch.Tensor]:
    """The output and the gradient of every tensor of numbers, for a fixed random cotangent."""
    tensors = leaves(inputs)
    y = function(**(inputs | tensors), **options)
    # bfloat16 first, so that the cotangent is the same in every dtype.
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = torch.autograd.grad(y, list(tensors.values()), cotangent.to(y))
    return {"Y": y.detach()} | dict(zip(tensors, gradients, strict=True))


def in_float64(inputs: dict) -> dict:
    """The same case, its tensors of numbers in float64."""
    return {k: v.double() if is_numbers(v) else v for k, v in inputs.items()}


def on_device(inputs: dict, device: str = DEVICE) -> dict:
    """The same case with its tensors on a device."""
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def assert_close_by_rows(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Within `tolerance` of each row's largest value, so that a wrong small row shows."""
    if not want.numel():
        return
    want = want.to(got.device)
    scale = want.reshape(len(want), -1).abs().amax(1)
    error = (got.double() - want).reshape(len(want), -1).abs().amax(1)
    assert (error <= tolerance * scale.clamp(min=1e-2 * scale.amax())).all()


def assert_equals_the_reference(
    op: OpSpec, case: Callable[..., dict], dtype: torch.dtype, tolerance: float, **options
) -> None:
    """Values and gradients of a case in a dtype, each by its rows: of nodes, or of edges."""
    inputs = case(dtype, 0)
    got = with_gradients(op.function, on_device(inputs), **options)
    want = with_gradients(op.reference, in_float64(inputs))
    last = inputs["V"].ndim - 3  # of the dimensions that count nodes
    for name, value in got.items():
        assert value.dtype == dtype
        assert_close_by_rows(value.flatten(0, last), want[name].flatten(0, last), tolerance)


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Of float32 tensors."""
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def assert_repeats_are_equal_bit_by_bit(function: Callable, inputs: dict, options: dict) -> None:
    """And nothing stays unwritten."""
    first = with_gradients(function, inputs, **options)
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        second = with_gradients(function, inputs, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name])


def assert_compiled_equals_eager(function: Callable, inputs: dict, options: dict) -> None:
    """In one graph."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want = with_gradients(function, inputs, **options)
    for name, value in with_gradients(compiled, inputs, **options).items():
        assert torch.equal(value, want[name])


def assert_same_by_torch(
    function: Callable, inputs: list[torch.Tensor], unread: list[torch.Tensor]
) -> None:
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


def assert_no_atomics(package: ModuleType) -> None:
    """In any file of a backend."""
    for folder in package.__path__:
        for path in Path(folder).glob("*.py"):
            assert "tl.atomic" not in path.read_text()


def outside(*words: str) -> subprocess.CompletedProcess:
    """Run Python without the interpreter of kernels."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *words]
    return subprocess.run(
        command, env=kept, capture_output=True, text=True, check=False, timeout=280
    )


def run_both_passes(function: Callable, inputs: dict, options: dict) -> list[torch.Tensor]:
    """Output and gradients for a cotangent of ones, without any other work."""
    tensors = leaves(inputs)
    y = function(**(inputs | tensors), **options)
    return [y, *torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))]


def assert_no_step_waits_for_the_gpu(function: Callable, inputs: dict, options: dict) -> None:
    """Once tables are where they are needed."""
    run_both_passes(function, inputs, options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_both_passes(function, inputs, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_a_cuda_graph_replays_a_step(
    function: Callable, inputs: dict, options: dict, changed: str
) -> None:
    """With another value of one of its inputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_both_passes(function, inputs, options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_both_passes(function, inputs, options)
    inputs[changed].data.mul_(2)
    graph.replay()
    for value, want in zip(captured, run_both_passes(function, inputs, options), strict=True):
        assert torch.equal(value, want)
