"""What Triton kernels follow: a plan as one table of integers, moved to a GPU at once.

Shapes: N nodes, G graphs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

LANES = 32  # columns of (I − A)⁻¹ that one program solves for
HEADER = (
    "nodes",  # [G + 1] first node of each graph, and N
    "row_start",  # [N] first number of each node's row among those of all graphs' matrices
    "row_size",  # [N] and how many numbers it has
    "block_graph",  # graph of each block of LANES columns
    "block_lane",  # and its first column
    *("levels", "starts", "target", "kind", "edge_starts", "edges"),
    *("term_starts", "left", "right", "pivot"),
    *("front", "front_nodes", "front_slot"),
    *(
        f"{half}.{name}"
        for half in ("lower", "upper", "upper transposed", "lower transposed")
        for name in ("levels", "starts", "row", "own", "term_starts", "value", "col")
    ),
)
"""Parts of the table, whose first numbers say where each of them begins."""

RECIPROCAL, FRONT, FRONT_DIAGONAL = -1, -2, -3  # kinds of values; from 0 on the pivot's slot


class Schedule(NamedTuple):
    """What the kernels follow.

    Values of a head: the off-diagonal entries and the reciprocal pivots as in a `Plan`, then the
    graphs' fronts, m · m each.

    Attributes:
        table: int32, the parts of `HEADER`.
        graphs, blocks: G, and the number of blocks of columns.
        numbers: Σ n² over the graphs.
        slots: values of a head.
        tile: rows of a tile of the fronts.
        levels, tiles: most levels of a graph outside of its front, most tiles of a front.
    """

    table: Int[Tensor, " T"]
    graphs: int
    blocks: int
    numbers: int
    slots: int
    tile: int
    levels: int
    tiles: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Schedule":
        """The same on another device."""
        return self._replace(table=self.table.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Schedule":
        """The same in page-locked memory, from where it moves without waiting."""
        return self._replace(table=self.table.pin_memory())
