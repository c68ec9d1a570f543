"""Peak memory of one training step through a fixed point, against the evaluations of its solver.

Source: Bai, Kolter, Koltun, "Deep Equilibrium Models", arXiv:1909.01377, section 3: the backward
pass needs the fixed point alone, not how it was found, so memory is constant in the depth; taken up
by Marwah et al., "Deep Equilibrium Based Neural Operators for Steady-State PDEs", arXiv:2312.00234.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def peak_bytes(step: Callable[[], Any], device: str = "cpu") -> int:
    """The most bytes that torch had allocated at once during `step`, beyond those before it.

    On the CPU every allocation and release that torch's profiler saw is summed up in its order, on
    CUDA the allocator tells. What libraries allocate past torch, such as an FFT's workspace on the
    CPU, is not in it.
    """
    gc.collect()  # garbage that is freed during the step would hide part of the peak
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None  # once it has run
    results = profiler.profiler.kineto_results
    assert results is not None
    events = results.events()
    memory = sorted(
        (event for event in events if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    # torch's stubs leave nbytes out.
    sizes = (event.nbytes() for event in memory)  # pyright: ignore[reportAttributeAccessIssue]
    return max(accumulate(sizes, initial=0))


def measure(
    net: Callable[[], Any],
    gradient: str,
    evaluations: Sequence[int],
    *,
    batch: int,
    points: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, dict]:
    """Peak memory of forward pass, loss and backward pass for every number of evaluations.

    The tolerance is 0, so that all evaluations are done; weights, input and target are random.

    Args:
        net: makes a network of one field in, one field out on a square, whose `fixed_point` is a
            FixedPoint and whose `solution` is the last that it found.
        gradient: through the fixed point, see `lit_models.layers.fixed_point.FixedPoint`.
        evaluations: of the map, at least two different numbers.
        batch, points: the input is [batch, 1, points, points].
        seed: of weights and data; the memory does not depend on it.
        device: `cpu` or `cuda`.

    Returns:
        {"test": …, "curves": …}: "test" has slope, the least-squares slope of log memory against
        log evaluations, and mib_<k>, MiB with k evaluations; "curves" are lists over evaluations.

    Raises:
        ValueError: there are fewer than two different numbers of evaluations.
        RuntimeError: a solver stopped before it had done all evaluations.
    """
    if len(set(evaluations)) < 2:
        raise ValueError(
            f"expected two different numbers of evaluations, got {list(evaluations)}: add some"
        )

    def peak(most: int) -> int:
        torch.manual_seed(seed)
        built = net().to(device)
        built.fixed_point = replace(built.fixed_point, gradient=gradient, most=most, tolerance=0.0)
        x, target = torch.randn(2, batch, 1, points, points, device=device)
        used = peak_bytes(lambda: F.mse_loss(built(x), target).backward(), device)
        if (built.solution.iterations != most).any():
            raise RuntimeError(
                f"expected {most} evaluations of every sample, got "
                f"{built.solution.iterations.tolist()}: a residual of exactly 0 ended them, try "
                "another seed or larger weights"
            )
        return used

    peak(min(evaluations))  # what is allocated once and stays, such as workspaces on a GPU
    mib = [peak(most) / MIB for most in evaluations]
    slope = np.polyfit(np.log(evaluations), np.log(mib), 1)[0]
    test = {"slope": float(slope)}
    test |= {f"mib_{most}": used for most, used in zip(evaluations, mib, strict=True)}
    return {"test": test, "curves": {"evaluations": list(evaluations), "peak MiB": mib}}
