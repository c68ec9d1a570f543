"""Where every number of a sparse LU of I − A goes, for one graph or a batch of graphs.

Shapes: N nodes, E edges, H heads, Z off-diagonal entries of the factors (edges and fill-in). The
values of an LU are kept as one tensor [Z + N, H]: lower entries by the round of their pivot (their
column), upper entries by the round of their pivot (their row), then the diagonal by node.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from kernels.backends import can_be_checked
from kernels.resolvent.elimination import Elimination, Order, eliminate, join, starts_of_groups
from kernels.resolvent.ragged import Ragged
from kernels.resolvent.schedule import Schedule


class Round(NamedTuple):
    """Independent pivots that are eliminated together, and what their elimination changes."""

    lower: slice  # entries below the pivots, to be divided by them
    pivot: Tensor  # diagonal value of each of these entries
    left: Tensor  # one entry per product that is subtracted: below a pivot,
    right: Tensor  # its partner beside the same pivot,
    target: Tensor  # and where the product goes


class Level(NamedTuple):
    """Rows that become weighted sums of rows, themselves among them, at once."""

    terms: slice  # of the sweep's weights
    read: Tensor  # row of each term
    offset: Tensor  # first term of each sum, and their number
    rows: Tensor  # where the sums go


class Sweep(NamedTuple):
    """A solve with one triangle: `take` picks all terms' weights from [heads, values and a 1]."""

    take: Tensor
    levels: list[list[Level]]  # of every stack


class Pairs(NamedTuple):
    """Edges by the row of their target, as a sparse matrix in CSR form has them."""

    crow: Tensor  # [rows + 1] first edge of each row
    col: Tensor  # row of the source
    edge: Tensor  # number of the edge


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(Ragged):
    """How `kernels.resolvent` solves with I − A of these graphs; made by `make_plan`.

    Attributes:
        ptr: [G + 1] first node of each graph, and N.
        num_nodes: N.
        edge_value: [E] where an edge's weight goes among the values.
        row, col: [Z] target and source of each off-diagonal entry.
        round: [N] round in which a node is eliminated.
        lowers: number of entries below the diagonal, which come first.
        left, right, target: of each product that is subtracted, by round, see `Round`.
        lower_bounds, product_bounds: where the lower entries and the products of each round begin,
            and where those of the last one end.
        schedule: for Triton kernels, see `scheduled`; None where none is needed yet.
    """

    edge_value: Tensor
    row: Tensor
    col: Tensor
    round: Tensor
    lowers: int
    left: Tensor
    right: Tensor
    target: Tensor
    lower_bounds: list[int]
    product_bounds: list[int]
    schedule: Schedule | None = None

    @cached_property
    def tables(self) -> dict[tuple, Any]:
        """What has been derived so far, by its kind, which also tells its type, and options."""
        return {}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Plan":
        """A plan for inputs on another device, as torch-geometric moves whatever a batch holds.

        Only the schedule is moved, if there is one; `on` moves the rest where that is needed.
        """
        if self.schedule is None:
            return self
        return replace(self, schedule=self.schedule.to(device, non_blocking))

    def pin_memory(self) -> "Plan":
        """The plan with its schedule in page-locked memory."""
        return self if self.schedule is None else replace(self, schedule=self.schedule.pin_memory())

    def on(self, device: torch.device) -> "Plan":
        """The plan with all its tensors on a device, for the torch backend; moved once."""
        if self.ptr.device == device:
            return self
        key = ("on", device)
        if key not in self.tables:
            names = ("ptr", "edge_value", "row", "col", "round", "left", "right", "target")
            moved = {name: getattr(self, name).to(device) for name in names}
            self.tables[key] = replace(self, **moved, schedule=None)
        return self.tables[key]

    @cached_property
    def rounds(self) -> list[Round]:
        """What to do in each round that changes anything."""
        bounds = zip(pairwise(self.lower_bounds), pairwise(self.product_bounds), strict=True)
        slices = [(slice(*lower), slice(*product)) for lower, product in bounds]
        return [
            Round(
                below,
                self.num_entries + self.col[below],
                self.left[some],
                self.right[some],
                self.target[some],
            )
            for below, some in slices
            if below.start < below.stop
        ]

    @property
    def num_entries(self) -> int:
        """Z, of the batch."""
        return len(self.row)

    @property
    def triangular(self) -> bool:
        """Whether one sweep solves the system: every edge leads to a later round."""
        return self.lowers == self.num_entries

    def nodes_left(self) -> Int[Tensor, "G rounds"]:
        """Nodes of each graph that are not eliminated before each round."""
        graphs, rounds = len(self.ptr) - 1, int(self.round.max()) + 1 if self.num_nodes else 1
        count = torch.bincount(self.graph * rounds + self.round, minlength=graphs * rounds)
        return count.view(graphs, rounds).flip(1).cumsum(1).flip(1)

    def levels(self, padded: bool) -> int:
        """Sequential steps of the two sweeps of a solve, of all stacks or of the graphs at once."""
        halves = [self.sweep(half, True, padded) for half in ("lower", "upper")]
        return sum(len(levels) for half in halves for levels in half.levels)

    def sweep(self, half: str, transposed: bool, padded: bool, heads: int = 1) -> Sweep:
        """The solve with one unit triangle of the factors, or with its transpose.

        The half that is solved with last, `upper` or the transpose of `lower`, takes every row
        times D⁻¹ instead of once.

        Args:
            half: `lower` or `upper`.
            transposed: solve with the triangle's transpose.
            padded: rows are those of the stacks of padded graphs; else nodes, as in one stack.
            heads: solved with at once, each with rows of its own, one head after the other.
        """
        key = (half, transposed, padded, heads)
        if key not in self.tables:
            some = slice(self.lowers) if half == "lower" else slice(self.lowers, None)
            ends = (self.col, self.row) if transposed else (self.row, self.col)
            out, into = (end[some] for end in ends)
            entry = torch.arange(self.num_entries, device=out.device)[some]
            last = (half == "lower") == transposed
            # Rows depend on the rows of the levels before theirs.
            level = self.round.amax() - self.round if last and self.num_nodes else self.round
            nodes = torch.arange(self.num_nodes, device=out.device)
            own = self.num_entries + nodes
            if not last:
                nodes = nodes[torch.bincount(out, minlength=self.num_nodes) > 0]
                own = torch.full_like(nodes, self.num_entries + self.num_nodes)
            terms = (nodes, own, level[nodes], entry, out, into)
            self.tables[key] = self._make_sweep(*terms, padded, heads)
        return self.tables[key]

    def product(self, transposed: bool, padded: bool, heads: int = 1) -> Sweep:
        """(I − A) X, by values that are not factorised yet: a sweep of a single level."""
        key = ("product", transposed, padded, heads)
        if key not in self.tables:
            out, into = (self.col, self.row) if transposed else (self.row, self.col)
            nodes = torch.arange(self.num_nodes, device=out.device)
            entry = torch.arange(self.num_entries, device=out.device)
            terms = (nodes, self.num_entries + nodes, 0 * nodes, entry, out, into)
            self.tables[key] = self._make_sweep(*terms, padded, heads)
        return self.tables[key]

    def _make_sweep(
        self,
        nodes: Tensor,
        own: Tensor,
        level: Tensor,
        entry: Tensor,
        out: Tensor,
        into: Tensor,
        padded: bool,
        heads: int,
    ) -> Sweep:
        """Lay out the terms by stack, level and output row.

        Args:
            nodes, own, level: output rows, the value that each takes itself by, and its level.
            entry, out, into: the other terms: value, output row, input row.
            padded, heads: see `sweep`.
        """
        stack, row = self._stack_and_row(padded)
        deep = 1 + self.num_nodes  # more than there are levels
        level = stack[nodes] * deep + level
        if heads > 1:  # as if each were a batch of its own
            copy = torch.arange(heads, device=nodes.device)[:, None]
            lengths = [s.graphs * s.nodes for s in self.stacks] if padded else [self.num_nodes]
            row = (row + copy * row.new_tensor(lengths)[stack]).flatten()
            nodes, out, into = ((x + copy * self.num_nodes).flatten() for x in (nodes, out, into))
            values = self.num_entries + self.num_nodes + 1
            own, entry = ((x + copy * values).flatten() for x in (own, entry))
            level = level.repeat(heads)
        order = level.argsort(stable=True)
        nodes, own, level = nodes[order], own[order], level[order]
        rank = torch.empty(heads * self.num_nodes, dtype=torch.int64, device=nodes.device)
        rank[nodes] = torch.arange(len(nodes), device=nodes.device)
        group, order = rank[out].sort(stable=True)
        entry, into = entry[order], into[order]
        terms = 1 + torch.bincount(group, minlength=len(nodes))
        offset = torch.cat([terms.new_zeros(1), terms.cumsum(0)])
        # Every row's own term comes first, so entries stand one later for each row up to theirs.
        spot = torch.arange(len(entry), device=nodes.device) + group + 1
        index = torch.empty(len(entry) + len(nodes), dtype=torch.int64, device=nodes.device)
        take = torch.empty_like(index)
        rows = row[nodes]
        index[offset[:-1]], index[spot] = rows, row[into]
        take[offset[:-1]], take[spot] = own, entry

        starts = starts_of_groups(level)
        bounds = [*starts.tolist(), len(nodes)]
        cuts = offset[bounds].tolist()
        levels: list[list[Level]] = [[] for _ in range(len(self.stacks) if padded else 1)]
        for nth, number in enumerate((level[starts] // deep).tolist()):
            some = slice(cuts[nth], cuts[nth + 1])
            groups = slice(bounds[nth], bounds[nth + 1])
            offsets = offset[groups.start : groups.stop + 1] - cuts[nth]
            levels[number].append(Level(some, index[some], offsets, rows[groups]))
        return Sweep(take, levels)

    def pairs(self, edge_index: Tensor, padded: bool) -> list[Pairs]:
        """The edges of the graphs as a sparse matrix per stack, or as one."""
        key = ("pairs", padded)
        if key not in self.tables:
            _, row = self._stack_and_row(padded)
            source, target = edge_index
            target, edge = (self.slot if padded else row)[target].sort(stable=True)
            col = row[source[edge]]
            slots = [s.slots for s in self.stacks] if padded else [slice(0, self.num_nodes)]
            count = torch.bincount(target, minlength=slots[-1].stop if slots else 0)
            crow = torch.cat([count.new_zeros(1), count.cumsum(0)])
            parts = [crow[some.start : some.stop + 1] for some in slots]
            ends = [slice(*part[[0, -1]].tolist()) for part in parts]
            self.tables[key] = [
                Pairs(part - some.start, col[some], edge[some])
                for part, some in zip(parts, ends, strict=True)
            ]
        return self.tables[key]

    def _stack_and_row(self, padded: bool) -> tuple[Tensor, Tensor]:
        """Stack of each node, and its row there."""
        if padded:
            return self.stack, self.row_in_stack
        nodes = torch.arange(self.num_nodes, device=self.ptr.device)
        return 0 * nodes, nodes


def make_plan(
    edge_index: Int[Tensor, "2 E"],
    num_nodes: int,
    ptr: Int[Tensor, " G1"] | None = None,
    elimination: Elimination | None = None,
    order: Order = "min_degree",
) -> Plan:
    """A plan for one graph or a batch of graphs, for `kernels.resolvent`.

    Args:
        edge_index: [2, E] source and target of each edge, as they will be given with the weights.
        num_nodes: N.
        ptr: [G + 1] first node of each graph of a batch, and N; None for one graph.
        elimination: of the same graphs, made once by `eliminate`; a batch's is its graphs' own
            joined, indices raised by each graph's first node. None makes it here.
        order: of the elimination that is made here, see `eliminate`.

    Raises:
        ValueError: the elimination belongs to other graphs, or see `check_edges` and `eliminate`.
    """
    if ptr is None:
        ptr = torch.tensor([0, num_nodes], device=edge_index.device)
    check_edges(edge_index, ptr)
    if elimination is None:
        elimination = eliminate(edge_index, num_nodes, ptr, order)
    rounds, fill_index = elimination
    source, target = edge_index
    key = torch.cat([target * num_nodes + source, fill_index[1] * num_nodes + fill_index[0]])
    loops = source == target
    real = torch.cat([~loops, loops.new_ones(fill_index.shape[1])])
    key, of_pair = torch.unique(key[real], return_inverse=True)
    row, col = key // max(1, num_nodes), key % max(1, num_nodes)
    lower = rounds[row] > rounds[col]
    pivot = torch.where(lower, col, row)
    # Lower entries first; either half by round, then by pivot, so that partners lie together.
    order_key = (~lower * (num_nodes + 1) + rounds[pivot]) * num_nodes + pivot
    by_pivot = order_key.argsort(stable=True)
    rank = torch.empty_like(by_pivot)
    rank[by_pivot] = torch.arange(len(by_pivot), device=rank.device)
    row, col, pivot = row[by_pivot], col[by_pivot], pivot[by_pivot]
    entries, lowers = len(row), int(lower.sum())

    left, right = join(pivot[:lowers], pivot[lowers:], num_nodes)
    right = right + lowers
    i, j = row[left], col[right]
    product = i * num_nodes + j
    at = torch.searchsorted(key, product).clamp(max=max(0, entries - 1))
    if (rounds[row] == rounds[col]).any() or ((key[at] != product) & (i != j)).any():
        raise ValueError(
            "The elimination does not belong to these graphs: make it from the same edges, or "
            "leave it out."
        )
    goal = torch.where(i == j, entries + i, rank[at])
    edge_value = entries + target
    edge_value[~loops] = rank[of_pair[: len(source) - int(loops.sum())]]

    last = int(rounds.max()) + 1 if num_nodes else 1
    cuts = torch.arange(1, last, device=rounds.device)
    lower_round = rounds[col[:lowers]]
    lower_cuts = torch.searchsorted(lower_round, cuts).tolist()
    product_cuts = torch.searchsorted(lower_round[left], cuts).tolist()
    return Plan(
        ptr=ptr,
        num_nodes=num_nodes,
        edge_value=edge_value,
        row=row,
        col=col,
        round=rounds,
        lowers=lowers,
        left=left,
        right=right,
        target=goal,
        lower_bounds=[0, *lower_cuts, lowers],
        product_bounds=[0, *product_cuts, len(left)],
    )


def check_edges(edge_index: Int[Tensor, "2 E"], ptr: Int[Tensor, " G1"]) -> None:
    """On a CPU, where looking costs no synchronisation, refuse edges that no graph can have.

    Raises:
        ValueError: an edge names no node of the batch, or joins two of its graphs.
    """
    if not can_be_checked(edge_index) or not edge_index.numel():
        return
    nodes = int(ptr[-1])
    if edge_index.min() < 0 or edge_index.max() >= nodes:
        raise ValueError(
            f"edge_index must name nodes 0 … {nodes - 1}, "
            f"got {int(edge_index.min())} … {int(edge_index.max())}."
        )
    graph = torch.bucketize(edge_index.contiguous(), ptr[1:], right=True)
    if (graph[0] != graph[1]).any():
        raise ValueError(
            "An edge joins two graphs of the batch: ptr and edge_index do not belong together."
        )
