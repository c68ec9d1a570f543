"""How the kernels' tests compare an op with its reference, on whatever device there is."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from kernels.resolvent.spec import CHAIN, GRID, RESOLVENT

SPECS = {"": RESOLVENT, "chain plan, ": CHAIN, "grid plan, ": GRID}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def everywhere(variants: str, most_nodes: int | None = None):
    """Every case of every op with each of its `variants` or `gpu_variants`, up to a size."""
    return pytest.mark.parametrize(
        ("case", "options"),
        [
            pytest.param(case, options, id=f"{name}{case_name}-{variant}")
            for name, op in SPECS.items()
            for case_name, case in op.cases.items()
            if most_nodes is None or len(case(torch.float32, 0)["V"]) <= most_nodes
            for variant, options in getattr(op, variants).items()
        ],
    )


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
