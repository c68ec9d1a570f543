"""Which form of the resolvent is faster: a model of launches, bytes and FLOP, fitted per device.

On a GPU the model also counts what a program does one after the other: levels of a sparse LU, tiles
of a dense front and their products. So it also says how large a front should be, for
`scheduling.py`. `fit_cost.py` fits it.
"""

import json
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from kernels.cost import Amounts, seconds
from kernels.resolvent.plan import Plan

PATH = Path(__file__).with_name("cost.json")
FRONTS = (0, 16, 32, 64, 128, 256, 512)
# Seconds a unit on a GPU that nobody has fitted: orders of magnitude of data sheets, not measured.
UNFITTED = {
    "launches": 4e-6,
    "levels": 1e-6,
    "tiles": 1e-6,
    "tile_products": 2e-7,
    "bytes": 3e-13,
    "flop": 5e-14,
}
FORMS: tuple[Literal["row", "state"], ...] = ("row", "state")
MOST_NUMBERS = 2**30  # of (I − A)⁻¹ on a GPU, which a backward pass holds twice
FITTED = json.loads(PATH.read_text())
GPU_UNIT = FITTED["cuda"]["seconds"] if "cuda" in FITTED else UNFITTED


def faster_form(plan: Plan, state: int, heads: int, head_dim: int) -> Literal["row", "state"]:
    """The torch backend's form that is expected to take less time, forward and backward.

    Args:
        plan: of the graphs.
        state, heads, head_dim: S, H, P.
    """
    unit = FITTED["cpu"]["seconds"]
    size = (state, heads, head_dim)
    return min(FORMS, key=lambda form: seconds(amounts(plan, *size, form), unit))


def faster_form_on_gpu(
    plan: Plan, state: int, heads: int, head_dim: int
) -> Literal["row", "state"]:
    """The same of the Triton kernels, within memory; reads no tensor of a plan with a schedule."""
    assert plan.schedule is not None  # as the kernels need one
    if heads * plan.schedule.numbers > MOST_NUMBERS:
        return "state"
    size = (state, heads, head_dim)
    row, by_state = (seconds(amounts_on_gpu(plan, *size, form), GPU_UNIT) for form in FORMS)
    return "row" if row <= by_state else "state"


def best_front(plan: Plan) -> int:
    """The most nodes of a graph's dense front with which the kernels are expected to be fastest."""
    if plan.triangular:
        return 0  # one sweep solves the system
    left = plan.nodes_left()
    return min(FRONTS, key=lambda front: seconds(_in_turn(*depth(left, front), 2), GPU_UNIT))


def depth(left: Int[Tensor, "G rounds"], front: int) -> tuple[int, int, int]:
    """Most levels of a graph outside of its front, most tiles of a front, and rows of a tile.

    Args:
        left: see `Plan.nodes_left`.
        front: most nodes of a front.
    """
    if not left.numel():
        return 0, 0, 16
    most = int(torch.where(left <= front, left, 0).max())
    tile = 16 if most <= 64 else 32
    return int((left > front).sum(1).max()), -(-most // tile), tile


def amounts(plan: Plan, state: int, heads: int, head_dim: int, form: str) -> Amounts:
    """What a forward and a backward pass take: launches, bytes moved, FLOP of matrix products."""
    by_row = form == "row"
    solves = 2 if by_row else 3
    numbers = plan.numbers if by_row else plan.num_nodes * state * head_dim
    return {
        "launches": heads * (2 * solves * plan.levels(padded=by_row) + 40),
        "sweep_bytes": heads * 4 * numbers * _touched(plan, solves) // max(1, plan.num_nodes),
        "dense_bytes": heads * 4 * (8 if by_row else 6) * numbers,
        "flop": 6 * numbers * (state + heads * head_dim) if by_row else 0,
    }


def amounts_on_gpu(plan: Plan, state: int, heads: int, head_dim: int, form: str) -> Amounts:
    """The same of the Triton kernels, and what their programs do one after the other."""
    schedule = plan.schedule
    assert schedule is not None  # as the kernels need one
    by_row = form == "row"
    solves = 2 if by_row else 3
    numbers = schedule.numbers if by_row else plan.num_nodes * state * head_dim
    sweeps = numbers * _touched(plan, solves) // max(1, plan.num_nodes)
    return {
        "launches": 10 if by_row else 12,
        **_in_turn(schedule.levels, schedule.tiles, schedule.tile, solves),
        "bytes": heads * 4 * (sweeps + (8 if by_row else 6) * numbers),
        "flop": heads * 10 * numbers * (state + head_dim) if by_row else 0,
    }


def _touched(plan: Plan, solves: int) -> int:
    """Rows that solves and edges read and write."""
    # A level reads every term of its sums and writes every sum twice; edges meet two rows each.
    return solves * (2 * plan.num_entries + 3 * plan.num_nodes) + 2 * len(plan.edge_value)


def _in_turn(levels: int, tiles: int, tile: int, solves: int) -> Amounts:
    """Steps of a factorisation and some solves."""
    return {
        "levels": (1 + 2 * solves) * levels,
        # An inversion of a tile takes its rows in turn, each for a part of the time of a step.
        "tiles": (tile // 4 + 2 * solves) * tiles,
        "tile_products": tiles**3 // 3 + solves * tiles**2,
    }
