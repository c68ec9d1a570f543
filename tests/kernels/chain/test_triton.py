"""The chains' Triton kernels against their reference: on a GPU, else interpreted; compiled."""

from functools import partial
from pathlib import Path

import pytest
import torch

from kernels.chain import ChainPlan, chain_resolvent, triton_backend
from kernels.chain.spec import CHAIN
from tests.kernels.comparing import (
    DEVICE,
    MOST_NODES,
    TOLERANCE,
    assert_a_cuda_graph_replays_a_step,
    assert_compiled_equals_eager,
    assert_equals_the_reference,
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

in_every_variant = everywhere(CHAIN, "gpu_variants", only=("chains",))


@everywhere(CHAIN, "gpu_variants", MOST_NODES)
def test_values_and_gradients_equal_the_reference(case, options):
    assert_equals_the_reference(CHAIN, case, torch.float32, TOLERANCE[torch.float32], **options)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
@in_low_precision
def test_low_precision(case, options, dtype):
    assert_equals_the_reference(CHAIN, case, dtype, TOLERANCE[dtype], **options)


@pytest.mark.usefixtures("_tf32_as_on_a_gpu")
@in_every_variant
def test_tf32(case, options):
    with products_in_tf32():
        assert_equals_the_reference(CHAIN, case, torch.float32, 2e-2, **options)


@in_every_variant
def test_repeats_are_equal_bit_by_bit_and_nothing_stays_unwritten(case, options):
    inputs = on_device(case(torch.float32, 0))
    assert_repeats_are_equal_bit_by_bit(chain_resolvent, inputs, options)


@pytest.mark.usefixtures("_no_shape_checks")
@in_every_variant
def test_compiled_equals_eager_in_one_graph(case, options):
    assert_compiled_equals_eager(chain_resolvent, on_device(case(torch.float32, 0)), options)


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_enters_a_chain(reverse):
    plan = ChainPlan((5, 0, 70, 1), reverse)
    weight, V = 2 * torch.rand(76, 2).double() - 1, torch.randn(76, 2, 20).double()
    unread = torch.zeros(76, 2, dtype=torch.bool)
    unread[[4, 74, 75] if reverse else [0, 5, 75]] = True
    inputs = [weight, *torch.randn(2, 76, 5).double(), V]
    assert_same_by_torch(partial(chain_resolvent, plan=plan), inputs, [unread])


@pytest.mark.skipif(DEVICE == "cuda", reason="compiling needs no GPU")
def test_every_kernel_compiles_without_spilling():
    """For sm_80 and sm_90, as launched on the benchmarks' inputs."""
    done = outside("-m", "kernels.aot", "chain, ")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in ("outputs", "pass_on", "value_gradients", "key_gradients"):
        assert f"{name}_kernel" in done.stdout


def test_no_kernel_uses_atomics():
    assert "tl.atomic" not in Path(triton_backend.__file__).read_text()


@needs_gpu
@in_every_variant
def test_no_step_waits_for_the_gpu(case, options):
    assert_no_step_waits_for_the_gpu(chain_resolvent, on_device(case(torch.float32, 0)), options)


@needs_gpu
@in_every_variant
def test_a_cuda_graph_replays_a_step(case, options):
    inputs = on_device(case(torch.float32, 0))
    assert_a_cuda_graph_replays_a_step(chain_resolvent, inputs, options, changed="V")
