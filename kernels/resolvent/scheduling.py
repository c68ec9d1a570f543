"""Lays a plan out as one table of integers that Triton kernels can follow.

The nodes of a graph that are eliminated last form its *front*: what is left of I − A there once all
others are gone is nearly full, so it is factorised densely, tile by tile, instead of entry by entry
with one level after the other. No front is a sparse LU, a front of all nodes a dense one.

Shapes: N nodes, E edges, G graphs, Z off-diagonal entries of the factors, M values to compute, m
nodes of a graph's front, padded to tiles.
"""

from dataclasses import replace

import torch
from torch import Tensor

from kernels.resolvent.cost import best_front, depth
from kernels.resolvent.elimination import starts_of_groups
from kernels.resolvent.plan import Plan
from kernels.resolvent.schedule import (
    FRONT,
    FRONT_DIAGONAL,
    HEADER,
    LANES,
    RECIPROCAL,
    Schedule,
)


def scheduled(plan: Plan, device: torch.device | None = None) -> Plan:
    """The plan with a schedule on a device, by default the plan's own; laid out and moved once."""
    device = plan.ptr.device if device is None else device
    if plan.schedule is not None and plan.schedule.table.device == device:
        return plan
    key = ("scheduled", device)
    if key not in plan.tables:
        schedule = plan.schedule or make_schedule(plan, best_front(plan))
        plan.tables[key] = replace(plan, schedule=schedule.to(device))
    return plan.tables[key]


def make_schedule(plan: Plan, front: int) -> Schedule:
    """Lay a plan out for the kernels, on the CPU.

    Args:
        plan: of the graphs.
        front: most nodes of a graph, in whole rounds, that are eliminated densely at the end.
    """
    return _Builder(plan, front).schedule()


class _Builder:
    """The plan's numbers, and which of its nodes stand in fronts."""

    def __init__(self, plan: Plan, front: int):
        self.ptr, self.round, self.graph = (x.cpu() for x in (plan.ptr, plan.round, plan.graph))
        self.row, self.col, self.edge_value = plan.row.cpu(), plan.col.cpu(), plan.edge_value.cpu()
        self.lowers, self.entries, self.nodes = plan.lowers, plan.num_entries, plan.num_nodes
        self.left, self.right, self.goal = (x.cpu() for x in (plan.left, plan.right, plan.target))
        self.last = int(self.round.max()) + 1 if self.nodes else 1
        front = 0 if plan.triangular else front
        left = plan.nodes_left().cpu()
        self.in_front = left[self.graph, self.round] <= front
        sizes = torch.bincount(self.graph[self.in_front], minlength=len(self.ptr) - 1)
        self.levels, self.tiles, self.tile = depth(left, front)
        self.front_sizes = (sizes + self.tile - 1) // self.tile * self.tile
        self.is_lower = torch.arange(self.entries) < self.lowers
        self.pivot = torch.where(self.is_lower, self.col, self.row)  # of each entry

    def schedule(self) -> Schedule:
        sizes = self.ptr.diff()
        numbers = int((sizes**2).sum())
        # Matrices beyond 32 bits are refused by the row form; nobody asks for their rows.
        widths = sizes[self.graph] if numbers < 2**31 else 0 * self.graph
        front_start = _starts(self.front_sizes)
        slot_start = self.entries + self.nodes + _starts(self.front_sizes**2)
        blocks = (sizes + LANES - 1) // LANES
        block_graph = torch.repeat_interleave(blocks)
        nth = torch.arange(len(block_graph)) - _starts(blocks)[block_graph]
        parts = {
            "nodes": self.ptr,
            "row_start": _starts(widths)[:-1],
            "row_size": widths,
            "block_graph": block_graph,
            "block_lane": nth * LANES,
            "front": front_start,
            "front_nodes": self._front_nodes(front_start),
            "front_slot": slot_start[:-1],
            **self._values(front_start, slot_start),
        }
        for half, some, transposed in (
            ("lower", self.is_lower, False),
            ("upper", ~self.is_lower, False),
            ("upper transposed", ~self.is_lower, True),
            ("lower transposed", self.is_lower, True),
        ):
            own = half in ("upper", "lower transposed")
            found = self._half(some, transposed, takes_pivot=own)
            parts |= {f"{half}.{name}": part for name, part in found.items()}
        return Schedule(
            _flat([parts[name] for name in HEADER]),
            graphs=len(sizes),
            blocks=len(block_graph),
            numbers=numbers,
            slots=int(slot_start[-1]),
            tile=self.tile,
            levels=self.levels,
            tiles=self.tiles,
        )

    def _front_nodes(self, front_start: Tensor) -> Tensor:
        """Nodes of all fronts, −1 on padding."""
        nodes = torch.full((int(front_start[-1]),), -1)
        place = self._front_place()
        nodes[front_start[self.graph[self.in_front]] + place[self.in_front]] = (
            self.in_front.nonzero().squeeze(1)
        )
        return nodes

    def _front_place(self) -> Tensor:
        """[N] number of each node within its graph's front."""
        nth = self.in_front.cumsum(0) - 1
        before = torch.cat([nth.new_zeros(1), nth + 1])[self.ptr[:-1]]
        return nth - before[self.graph]

    def _values(self, front_start: Tensor, slot_start: Tensor) -> dict[str, Tensor]:
        """Every value of the factors in the order of its computation, and what it is made of."""
        nodes = torch.arange(self.nodes)
        row, col = torch.cat([self.row, nodes]), torch.cat([self.col, nodes])
        pivot = torch.cat([self.pivot, nodes])
        dense = self.in_front[row] & self.in_front[col]
        place, graph = self._front_place(), self.graph[row]
        in_tiles = slot_start[graph] + place[row] * self.front_sizes[graph] + place[col]
        slot = torch.where(dense, in_tiles, torch.arange(len(row)))
        diagonal = row == col
        kind = torch.where(diagonal, RECIPROCAL, self.entries + pivot)
        kind = torch.where(dense, torch.where(diagonal, FRONT_DIAGONAL, FRONT), kind)
        level = torch.where(dense, self.last, self.round[pivot])
        order, levels, starts = _by_level(graph, level, len(self.ptr) - 1)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))

        kept = ~self.in_front[self.col[self.left]]
        left, right, goal = self.left[kept], self.right[kept], self.goal[kept]
        group, by_goal = rank[goal].sort(stable=True)
        of_value, by_value = rank[self.edge_value].sort(stable=True)
        left, right = left[by_goal], right[by_goal]
        return {
            "levels": levels,
            "starts": starts,
            "target": slot[order],
            "kind": kind[order],
            "edge_starts": _starts(torch.bincount(of_value, minlength=len(order))),
            "edges": by_value,
            "term_starts": _starts(torch.bincount(group, minlength=len(order))),
            "left": left,
            "right": right,
            "pivot": self.entries + self.col[left],
        }

    def _half(self, some: Tensor, transposed: bool, takes_pivot: bool) -> dict[str, Tensor]:
        """The rows of a solve with one unit triangle by level, and each row's terms.

        The triangle that comes last takes the rows outside of fronts times their reciprocal pivot.
        """
        entry = (some & ~self.in_front[self.pivot]).nonzero().squeeze(1)
        out, into = self.row[entry], self.col[entry]
        if transposed:
            out, into = into, out
        if takes_pivot:
            rows = (~self.in_front).nonzero().squeeze(1)
            own, level = self.entries + rows, self.last - self.round[rows]
        else:
            rows = torch.unique(out)
            own = torch.full_like(rows, -1)
            level = torch.where(self.in_front[rows], self.last, self.round[rows])
        order, levels, starts = _by_level(self.graph[rows], level, len(self.ptr) - 1)
        rows, own = rows[order], own[order]
        rank = torch.empty(self.nodes, dtype=torch.int64)
        rank[rows] = torch.arange(len(rows))
        group, by_row = rank[out].sort(stable=True)
        return {
            "levels": levels,
            "starts": starts,
            "row": rows,
            "own": own,
            "term_starts": _starts(torch.bincount(group, minlength=len(rows))),
            "value": entry[by_row],
            "col": into[by_row],
        }


def _by_level(graph: Tensor, level: Tensor, graphs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order by graph and level; first level of each graph, and first item of each level."""
    deep = int(level.max()) + 1 if len(level) else 1
    key, order = (graph * deep + level).sort(stable=True)
    starts = starts_of_groups(key)
    levels = torch.bincount(key[starts] // deep, minlength=graphs)
    return order, _starts(levels), torch.cat([starts, starts.new_tensor([len(key)])])


def _starts(counts: Tensor) -> Tensor:
    """Where each of consecutive groups begins, and the sum of all counts."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _flat(parts: list[Tensor]) -> Tensor:
    """All parts end to end as int32, behind the places where they begin.

    Raises:
        ValueError: a number does not fit.
    """
    sizes = torch.tensor([len(part) for part in parts])
    table = torch.cat([len(parts) + _starts(sizes)[:-1], *parts])
    if len(table) and int(table.max()) >= 2**31:
        raise ValueError(
            "The graphs are too large for 32-bit tables: split the batch, or use backend='torch'."
        )
    return table.to(torch.int32)
