"""Which form of the spectral convolution is faster: units of work, their seconds fitted per device.

`fit_cost.py` fits them.
"""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kernels.cost import Amounts, seconds

PATH = Path(__file__).with_name("cost.json")
FORMS: tuple[Literal["dft", "fft"], ...] = ("dft", "fft")


def faster_form(
    shape: Sequence[int], modes: Sequence[int], joint: bool, device: str
) -> Literal["dft", "fft"]:
    """The form that is expected to take less time, forward and backward.

    Args:
        shape: [B, C, *points] of the field.
        modes: kept on every axis, as the weight counts them.
        joint: one transform along all axes, not one along each by itself.
        device: `cpu` or `cuda`; a GPU that nobody has fitted takes the units of a CPU.
    """
    return _faster_form(tuple(shape), tuple(modes), joint, device)


@functools.lru_cache(maxsize=1024)
def _faster_form(
    shape: tuple[int, ...], modes: tuple[int, ...], joint: bool, device: str
) -> Literal["dft", "fft"]:
    unit = _fitted().get(device, _fitted()["cpu"])["seconds"]
    batch, points = math.prod(shape[:2]), shape[2:]
    if joint:
        fields = [(batch, points, modes)]
    else:
        every = batch * math.prod(points)
        fields = [(every // N, (N,), (K,)) for N, K in zip(points, modes, strict=True)]

    def expected(form: str) -> float:
        return sum(seconds(amounts(*field, form), unit) for field in fields)

    return min(FORMS, key=expected)


@functools.cache
def _fitted() -> dict:
    return json.loads(PATH.read_text())


def amounts(fields: int, points: Sequence[int], modes: Sequence[int], form: str) -> Amounts:
    """What the transforms of some fields to their modes and back take, forward and backward.

    The last axis, whose lines are real, is transformed first, the others with fewer lines each.
    """
    last, N, K = len(points) - 1, points[-1], modes[-1]
    lines = fields * math.prod(points[:-1])
    # A real line takes two products with real waves, a complex one four, in smaller matrices.
    flop, steps = {"last": 4 * lines * N * K}, {"last": lines * N * _passes(N)}
    flop["rest"] = steps["rest"] = complex_numbers = 0
    for axis in reversed(range(last)):
        lines = lines // points[axis] * modes[axis + 1]
        flop["rest"] += 8 * lines * points[axis] * modes[axis]
        steps["rest"] += 2 * lines * points[axis] * _passes(points[axis])
        complex_numbers += 2 * lines * (points[axis] + modes[axis])
    numbers = fields * math.prod(points)
    work = {
        "dft": {
            "launches": last + 1,
            "flop_last": 4 * flop["last"],
            "flop_rest": 4 * flop["rest"],
            "numbers": numbers,
            "complex_numbers": complex_numbers,
        },
        "fft": {
            "launches": last + 1,
            "steps_last": int(4 * steps["last"]),
            "steps_rest": int(4 * steps["rest"]),
            "numbers": numbers,
        },
    }
    return {
        f"{kind}_{term}": amount if kind == form else 0
        for kind, terms in work.items()
        for term, amount in terms.items()
    }


def _passes(points: int) -> float:
    """Of a fast transform over its line: log₂ of its size, twice with a large prime factor."""
    largest, left, factor = 1, points, 2
    while factor * factor <= left:
        while left % factor == 0:
            largest, left = factor, left // factor
        factor += 1
    return math.log2(max(2, points)) * (1 if max(largest, left) <= 7 else 2)
