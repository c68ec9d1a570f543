"""Fits the units of a cost model to measured times."""

import json
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from kernels.cost import Amounts


def median_seconds(function: Callable[[], object], budget: float) -> float:
    """Median of the calls but the first, within about `budget` seconds in all."""
    times = []
    while len(times) < 4 or sum(times) < budget:
        begin = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[len(times[1:]) // 2]


def fit(measured: Iterable[tuple[Amounts, float, str]], device: str, path: Path) -> None:
    """Fit seconds per unit, non-negative, to relative errors, and write them beside others.

    Args:
        measured: amounts, seconds, and what was measured, for people.
        device: `cpu` or `cuda`, the entry of the file.
        path: of a JSON file.
    """
    rows, times = [], []
    for amounts, taken, label in measured:
        print(f"{1e3 * taken:9.2f} ms  {label}", flush=True)
        rows.append(amounts)
        times.append(taken)
    terms = list(rows[0])
    weighted = np.array([list(row.values()) for row in rows]) / np.array(times)[:, None]
    unit, _ = nnls(weighted, np.ones(len(times)))
    errors = np.abs(weighted @ unit - 1)
    fitted = {
        "seconds": {term: float(f"{u:.3g}") for term, u in zip(terms, unit, strict=True)},
        "median_relative_error": round(float(np.median(errors)), 3),
        "machine": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {device: fitted}, indent=2) + "\n")
    print(json.dumps(fitted, indent=2))
