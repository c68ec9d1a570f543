"""How the kernels' tests compare an op with its reference, on whatever device there is."""

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


def with_gradients(function: Callable, inputs: dict, **options) -> dict[str, torch.Tensor]:
    """The output and the gradient of every differentiable input, for a fixed random cotangent."""
    names = RESOLVENT.differentiable
    tensors = {name: inputs[name].detach().requires_grad_() for name in names}
    y = function(**(inputs | tensors), **options)
    # bfloat16 first, so that the cotangent is the same in every dtype.
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = torch.autograd.grad(y, list(tensors.values()), cotangent.to(y))
    return {"Y": y.detach()} | dict(zip(names, gradients, strict=True))


def in_float64(inputs: dict) -> dict:
    """The same case, its tensors of numbers in float64."""
    return {k: v.double() if k in RESOLVENT.differentiable else v for k, v in inputs.items()}


def on_device(inputs: dict, device: str = DEVICE) -> dict:
    """The same case with its tensors on a device."""
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def assert_close_by_rows(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Within `tolerance` of each row's largest value, so that a wrong small row shows."""
    want = want.to(got.device)
    scale = want.flatten(1).abs().amax(1) if want.numel() else want.new_zeros(len(want))
    floor = 1e-2 * scale.amax() if len(scale) else 0
    error = (got.double() - want).flatten(1).abs().amax(1) if want.numel() else scale
    assert (error <= tolerance * scale.clamp(min=floor)).all()
