"""Which form of the resolvent is faster: a model of launches, bytes and FLOP, fitted per device.

python -m kernels.resolvent.cost      fits it on this machine and rewrites cost.json
"""

import functools
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from kernels.resolvent.plan import Plan

PATH = Path(__file__).with_name("cost.json")
TERMS = ("launches", "sweep_bytes", "dense_bytes", "flop")


def faster_form(plan: Plan, state: int, heads: int, head_dim: int, device: str) -> str:
    """`row` or `state`, whichever the model expects to take less time, forward and backward.

    Args:
        plan: of the graphs.
        state, heads, head_dim: S, H, P.
        device: type of the device; one that was not fitted uses the CPU's numbers.
    """
    fitted = _fitted()
    seconds = fitted.get(device, fitted["cpu"])["seconds"]
    return min(
        ("row", "state"),
        key=lambda form: sum(
            seconds[term] * amount
            for term, amount in amounts(plan, state, heads, head_dim, form).items()
        ),
    )


def amounts(plan: Plan, state: int, heads: int, head_dim: int, form: str) -> dict[str, int]:
    """What a forward and a backward pass take: launches, bytes moved, FLOP of matrix products."""
    by_row = form == "row"
    solves = 2 if by_row else 3
    numbers = plan.numbers if by_row else plan.num_nodes * state * head_dim
    # A level reads every term of its sums and writes every sum twice; edges meet two rows each.
    touched = solves * (2 * plan.num_entries + 3 * plan.num_nodes) + 2 * len(plan.edge_value)
    return {
        "launches": heads * (2 * solves * plan.levels(padded=by_row) + 40),
        "sweep_bytes": heads * 4 * numbers * touched // max(1, plan.num_nodes),
        "dense_bytes": heads * 4 * (8 if by_row else 6) * numbers,
        "flop": 6 * numbers * (state + heads * head_dim) if by_row else 0,
    }


@functools.cache
def _fitted() -> dict:
    return json.loads(PATH.read_text())


def measure(
    device: str, seconds_a_form: float = 0.5
) -> Iterator[tuple[dict[str, int], float, str]]:
    """Amounts, measured median seconds, and the shape, for both forms on a range of shapes."""
    from kernels.resolvent import spec  # it imports this module by way of the op

    shapes = [
        ([(spec.peptide, 150)] * 16, 2, 64, 32),
        ([(spec.peptide, 150)] * 16, 2, 16, 32),
        ([(spec.peptide, 40)] * 64, 2, 16, 16),
        ([(spec.peptide, 20)] * 16, 2, 8, 8),
        ([(spec.peptide, 444)] * 4, 4, 16, 16),
        ([(spec.peptide, 1500)], 2, 16, 16),
        ([(spec.peptide, 1500)], 2, 4, 8),
        ([(spec.peptide, 4000)], 1, 16, 16),
        ([(spec.tree, 1000)], 2, 8, 16),
        ([(spec.superpixels, 480)] * 4, 4, 16, 16),
        ([(spec.superpixels, 480)] * 2, 4, 64, 16),
    ]
    for graphs, heads, state, head_dim in shapes:
        inputs = spec.make(graphs, torch.float32, 0, heads=heads, state=state, head_dim=head_dim)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        plan = _plan(inputs)
        for form in ("row", "state"):
            median = _median(inputs, plan, form, seconds_a_form)
            label = f"{len(graphs)} x {graphs[0][0].__name__} of {graphs[0][1]}, {form}"
            yield amounts(plan, state, heads, head_dim, form), median, label


def _plan(inputs: dict) -> Plan:
    from kernels.resolvent.plan import make_plan

    return make_plan(inputs["edge_index"], inputs["V"].shape[0], inputs["ptr"])


def _median(inputs: dict, plan: Plan, form: str, budget: float) -> float:
    """Median seconds of a forward and a backward pass, within about `budget` seconds in all."""
    from kernels.resolvent import resolvent

    names = ("edge_weight", "B", "C", "V")
    tensors = {name: inputs[name].requires_grad_() for name in names}
    times = []
    while len(times) < 4 or sum(times) < budget:
        begin = time.perf_counter()
        y = resolvent(**(inputs | tensors), plan=plan, form=form)
        torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))
        if y.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[len(times[1:]) // 2]


def fit() -> None:
    """Fit seconds per unit, non-negative, to relative errors, and write them."""
    import numpy as np
    from scipy.optimize import nnls

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, times = [], []
    for amount, seconds, label in measure(device):
        print(f"{1e3 * seconds:9.2f} ms  {label}", flush=True)
        rows.append([amount[term] for term in TERMS])
        times.append(seconds)
    weighted = np.array(rows) / np.array(times)[:, None]
    unit, _ = nnls(weighted, np.ones(len(times)))
    errors = np.abs(weighted @ unit - 1)
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    known[device] = {
        "seconds": {term: float(f"{u:.3g}") for term, u in zip(TERMS, unit, strict=True)},
        "median_relative_error": round(float(np.median(errors)), 3),
        "machine": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    PATH.write_text(json.dumps(known, indent=2) + "\n")
    print(json.dumps(known[device], indent=2))


if __name__ == "__main__":
    fit()
