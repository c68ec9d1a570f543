"""Times of several functions on the same inputs, in one process, in turns."""

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from studies.training_memory import MIB, peak_bytes

WARM_UP = 2
ROUNDS = 11


def compare(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, dict]:
    """Milliseconds of each function, and how much slower than the first one it is.

    Every round calls each function once, in an order that changes, so that whatever slows the
    machine slows all of them; a ratio is the median of the rounds' own ratios.

    Returns:
        Per function: `ms` and `ratio`, each [lower quartile, median, upper quartile], and
        `peak_mib`, the most memory its tensors took at once beyond what was there before.
    """
    seconds = {name: [] for name in functions}
    names = list(functions)
    for turn in range(WARM_UP + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            synchronise()
            begin = time.perf_counter()
            functions[name]()
            synchronise()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    first = np.array(seconds[names[0]])
    return {
        name: {
            "ms": quartiles(1e3 * np.array(seconds[name])),
            "ratio": quartiles(np.array(seconds[name]) / first),
            "peak_mib": peak_mib(function),
        }
        for name, function in functions.items()
    }


def ceilings(device: str, dtype: torch.dtype) -> dict[str, float]:
    """What this machine can do at most: bytes copied a second, FLOP of matrix products a second.

    float32 products are in TF32 where torch has been told that this will do.
    """
    numbers = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    side = 8192 if device == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(dtype)
    copy, out = torch.empty_like(numbers), torch.empty_like(matrix)
    calls = {
        "copy": lambda: copy.copy_(numbers),
        "product": lambda: torch.mm(matrix, matrix, out=out),
    }
    seconds = {name: times["ms"][0] / 1e3 for name, times in compare(calls, rounds=7).items()}
    return {
        "bytes_per_second": 2 * numbers.nbytes / seconds["copy"],
        "flop_per_second": 2 * side**3 / seconds["product"],
    }


def roofline(ms: float, tensors: int, flop: int, limits: dict[str, float]) -> dict[str, float]:
    """How near a call comes to the least time it could take.

    Args:
        ms: it took.
        tensors: bytes of its inputs and results, each moved once.
        flop: of its products.
        limits: see `ceilings`.
    """
    least = max(tensors / limits["bytes_per_second"], flop / limits["flop_per_second"])
    return {"bytes": tensors, "flop": flop, "fraction": float(f"{1e3 * least / ms:.3g}")} | limits


def quartiles(values: np.ndarray) -> list[float]:
    """Lower quartile, median and upper quartile, to four digits."""
    return [float(f"{q:.4g}") for q in np.quantile(values, [0.25, 0.5, 0.75])]


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(function: Callable[[], object]) -> float:
    """The most memory that tensors made by `function` took at once, in MiB."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return round(peak_bytes(function, device) / MIB, 1)


def device_name() -> str:
    """A name for a results file: the GPU's, or the processor's."""
    if torch.cuda.is_available():
        return re.sub(r"\W+", "-", torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    models = cpuinfo.read_text().split("model name") if cpuinfo.exists() else []
    name = models[1].split(":")[1].split("\n")[0] if len(models) > 1 else platform.machine()
    return re.sub(r"\W+", "-", f"{name.strip()} {torch.get_num_threads()} threads")
