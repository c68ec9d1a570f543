"""One DAG of a grid by Triton's kernels against its reference: on a GPU, else interpreted."""

import pytest
import torch

from kernels.grid import GridDag, grid_dags, grid_resolvent, triton_backend
from kernels.grid.spec import GRID
from tests.kernels.comparing import (
    DEVICE,
    MOST_NODES,
    TOLERANCE,
    assert_a_cuda_graph_replays_a_step,
    assert_compiled_equals_eager,
    assert_equals_the_reference,
    assert_no_atomics,
    assert_no_step_waits_for_the_gpu,
    assert_repeats_are_equal_bit_by_bit,
    assert_same_by_torch,
    everywhere,
    in_low_precision,
    needs_gpu,
    on_device,
    outside,
    products_in_tf32,
)

in_every_variant = everywhere(GRID, "gpu_variants", only=("small images",))


@everywhere(GRID, "gpu_variants", MOST_NODES)
def test_values_and_gradients_equal_the_reference(case, options):
    assert_equals_the_reference(GRID, case, torch.float32, TOLERANCE[torch.float32], **options)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
@in_low_precision
def test_low_precision(case, options, dtype):
    assert_equals_the_reference(GRID, case, dtype, TOLERANCE[dtype], **options)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
def test_tf32(case, options):
    with products_in_tf32():
        assert_equals_the_reference(GRID, case, torch.float32, 2e-2, **options)


@in_every_variant
def test_repeats_are_equal_bit_by_bit_and_nothing_stays_unwritten(case, options):
    inputs = on_device(case(torch.float32, 0))
    assert_repeats_are_equal_bit_by_bit(grid_resolvent, inputs, options)


@pytest.mark.usefixtures("_no_shape_checks")
@in_every_variant
def test_compiled_equals_eager_in_one_graph(case, options):
    assert_compiled_equals_eager(grid_resolvent, on_device(case(torch.float32, 0)), options)


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


def test_a_sum_of_two_corners():
    weights = torch.rand(6, 1, 3, 4, 2).double() / 2
    nodes = [*torch.randn(4, 1, 3, 4, 4).double(), torch.randn(1, 3, 4, 2, 3).double()]
    assert_same_by_torch(two_corners, [*weights, *nodes], [])


def two_corners(*inputs: torch.Tensor, backend: str) -> torch.Tensor:
    """DAGs from the top right and the bottom left, whose tensors alternate before V."""
    dags = [GridDag(*inputs[i:-1:2], root) for i, root in enumerate(("top right", "bottom left"))]
    return grid_dags(dags, inputs[-1], backend=backend)


@pytest.mark.skipif(DEVICE == "cuda", reason="compiling needs no GPU")
def test_every_kernel_compiles_without_spilling():
    """For sm_80 and sm_90, as launched on the benchmarks' inputs."""
    done = outside("-m", "kernels.aot", "grid, ")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in ("grid_adjoint", "grid_rows_merge"):
        assert f"{name}_kernel" in done.stdout


def test_no_kernel_uses_atomics():
    assert_no_atomics(triton_backend)


@needs_gpu
@in_every_variant
def test_no_step_waits_for_the_gpu(case, options):
    assert_no_step_waits_for_the_gpu(grid_resolvent, on_device(case(torch.float32, 0)), options)


@needs_gpu
@in_every_variant
def test_a_cuda_graph_replays_a_step(case, options):
    inputs = on_device(case(torch.float32, 0))
    assert_a_cuda_graph_replays_a_step(grid_resolvent, inputs, options, changed="V")
