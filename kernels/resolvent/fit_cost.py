"""Fits the cost model of the resolvent's forms on this machine and rewrites cost.json.

python -m kernels.resolvent.fit_cost      (or: make fit-costs)
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from kernels.cost import Amounts
from kernels.fitting import fit, median_seconds
from kernels.resolvent import Form, Plan, make_plan, resolvent
from kernels.resolvent.cost import FORMS, FRONTS, PATH, amounts, amounts_on_gpu
from kernels.resolvent.scheduling import make_schedule
from kernels.resolvent.spec import make, peptide, superpixels, tree


def measure(device: str, seconds_a_form: float = 0.5) -> Iterator[tuple[Amounts, float, str]]:
    """Amounts, measured median seconds, and what was measured, on a range of shapes."""
    shapes = [
        ([(peptide, 150)] * 16, 2, 64, 32),
        ([(peptide, 150)] * 16, 2, 16, 32),
        ([(peptide, 40)] * 64, 2, 16, 16),
        ([(peptide, 20)] * 16, 2, 8, 8),
        ([(peptide, 444)] * 4, 4, 16, 16),
        ([(peptide, 1500)], 2, 16, 16),
        ([(peptide, 1500)], 2, 4, 8),
        ([(peptide, 4000)], 1, 16, 16),
        ([(tree, 1000)], 2, 8, 16),
        ([(superpixels, 480)] * 4, 4, 16, 16),
        ([(superpixels, 480)] * 2, 4, 64, 16),
    ]
    for graphs, heads, state, head_dim in shapes:
        inputs = make(graphs, torch.float32, 0, heads=heads, state=state, head_dim=head_dim)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        size = (state, heads, head_dim)
        for form in FORMS:
            for amount, plan, variant in _variants(inputs, form, size, device):
                label = f"{len(graphs)} x {graphs[0][0].__name__} of {graphs[0][1]}, {form}"
                took = median_seconds(passes(inputs, plan, form), seconds_a_form)
                yield amount, took, label + variant


def _variants(
    inputs: dict, form: str, size: tuple[int, int, int], device: str
) -> Iterator[tuple[Amounts, Plan, str]]:
    """Amounts and plans: on a GPU with several sizes of the front."""
    plan = make_plan(inputs["edge_index"], inputs["V"].shape[0], inputs["ptr"])
    if device == "cpu":
        yield amounts(plan, *size, form), plan, ""
        return
    for front in FRONTS[::2]:
        laid_out = replace(plan, schedule=make_schedule(plan, front).to(device))
        yield amounts_on_gpu(laid_out, *size, form), laid_out, f", front {front}"


def passes(inputs: dict, plan: Plan, form: Form) -> Callable[[], object]:
    """A forward and a backward pass."""
    names = ("edge_weight", "B", "C", "V")
    tensors = {name: inputs[name].requires_grad_() for name in names}

    def call() -> object:
        y = resolvent(**(inputs | tensors), plan=plan, form=form)
        return torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))

    return call


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fit(measure(device), device, PATH)
