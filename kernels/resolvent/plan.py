"""Where every number of a sparse LU of I − A goes, for one graph or a batch of graphs.

Shapes: N nodes, E edges, H heads, Z off-diagonal entries of the factors (edges and fill-in). The
values of an LU are kept as one tensor [Z + N, H]: lower entries by the round of their pivot (their
column), upper entries by the round of their pivot (their row), then the diagonal by node.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from kernels.resolvent.elimination import Elimination, Order, eliminate, join
from kernels.resolvent.ragged import Ragged


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
    index: Tensor  # row of each term
    offset: Tensor  # first term of each sum, and their number
    rows: Tensor  # where the sums go


class Sweep(NamedTuple):
    """A solve with one triangle: `take` picks the weights of all levels from [values…, one]."""

    take: Tensor
    levels: list[Level]


class Pairs(NamedTuple):
    """Edges by the row of their target, as a sparse matrix in CSR form has them."""

    crow: Tensor  # [rows + 1] first edge of each row
    col: Tensor  # [E] row of the source
    edge: Tensor  # [E] place of each edge in this order


class Plan(Ragged):
    """How `kernels.resolvent` solves with I − A of these graphs; made by `make_plan`.

    Args:
        ptr: [G + 1] first node of each graph, and N.
        edge_value: [E] where an edge's weight goes among the values.
        row, col: [Z] target and source of each off-diagonal entry.
        round: [N] round in which a node is eliminated.
        lowers: number of entries below the diagonal, which come first.
        rounds: what to do in each round that changes anything.
    """

    def __init__(
        self,
        ptr: Tensor,
        edge_value: Tensor,
        row: Tensor,
        col: Tensor,
        round: Tensor,
        lowers: int,
        rounds: list[Round],
    ):
        super().__init__(ptr, len(round))
        self.edge_value, self.row, self.col, self.round = edge_value, row, col, round
        self.lowers, self.rounds = lowers, rounds
        self._sweeps: dict[tuple, Sweep | Pairs] = {}

    @property
    def num_entries(self) -> int:
        """Z, of the batch."""
        return len(self.row)

    @property
    def triangular(self) -> bool:
        """Whether one sweep solves the system: every edge leads to a later round."""
        return self.lowers == self.num_entries

    @property
    def levels(self) -> int:
        """Sequential steps of the two sweeps of a solve."""
        return sum(len(self.sweep(half, False, False).levels) for half in ("lower", "upper"))

    def sweep(self, half: str, transposed: bool, padded: bool) -> Sweep:
        """The solve with one unit triangle of the factors, or with its transpose.

        The half that is solved with last, `upper` or the transpose of `lower`, takes every row
        times D⁻¹ instead of once.

        Args:
            half: `lower` or `upper`.
            transposed: solve with the triangle's transpose.
            padded: rows are slots of padded graphs instead of nodes.
        """
        key = (half, transposed, padded)
        if key not in self._sweeps:
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
            self._sweeps[key] = self._make_sweep(nodes, own, level[nodes], entry, out, into, padded)
        return self._sweeps[key]

    def product(self, transposed: bool, padded: bool) -> Sweep:
        """(I − A) X, by values that are not factorised yet: a sweep of a single level."""
        key = ("product", transposed, padded)
        if key not in self._sweeps:
            out, into = (self.col, self.row) if transposed else (self.row, self.col)
            nodes = torch.arange(self.num_nodes, device=out.device)
            entry = torch.arange(self.num_entries, device=out.device)
            self._sweeps[key] = self._make_sweep(
                nodes,
                entry.new_tensor(self.num_entries) + nodes,
                0 * nodes,
                entry,
                out,
                into,
                padded,
            )
        return self._sweeps[key]

    def _make_sweep(
        self,
        nodes: Tensor,
        own: Tensor,
        level: Tensor,
        entry: Tensor,
        out: Tensor,
        into: Tensor,
        padded: bool,
    ) -> Sweep:
        """Lay out the terms by level and output row.

        Args:
            nodes, own, level: output rows, the value that each takes itself by, and its level.
            entry, out, into: the other terms: value, output row, input row.
        """
        order = level.argsort(stable=True)
        nodes, own, level = nodes[order], own[order], level[order]
        rank = torch.empty(self.num_nodes, dtype=torch.int64, device=nodes.device)
        rank[nodes] = torch.arange(len(nodes), device=nodes.device)
        group, order = rank[out].sort(stable=True)
        entry, into = entry[order], into[order]
        terms = 1 + torch.bincount(group, minlength=len(nodes))
        offset = torch.cat([terms.new_zeros(1), terms.cumsum(0)])
        # Every row's own term comes first, so entries stand one later for each row up to theirs.
        spot = torch.arange(len(entry), device=nodes.device) + group + 1
        place = self.slot if padded else torch.arange(self.num_nodes, device=nodes.device)
        index = torch.empty(len(entry) + len(nodes), dtype=torch.int64, device=nodes.device)
        take = torch.empty_like(index)
        rows = place[nodes]
        index[offset[:-1]], index[spot] = rows, place[into]
        take[offset[:-1]], take[spot] = own, entry

        ends = torch.bincount(level).cumsum(0).tolist()
        bounds = [0, *(e for e, before in zip(ends, [0, *ends], strict=False) if e > before)]
        cuts = offset[bounds].tolist()
        levels = []
        for nth in range(len(bounds) - 1):
            some = slice(cuts[nth], cuts[nth + 1])
            groups = slice(bounds[nth], bounds[nth + 1])
            starts = offset[groups.start : groups.stop + 1] - cuts[nth]
            levels.append(Level(some, index[some], starts, rows[groups]))
        return Sweep(take, levels)

    def pairs(self, edge_index: Tensor, padded: bool) -> Pairs:
        """The edges of the graphs as a sparse matrix."""
        key = ("pairs", padded)
        if key not in self._sweeps:
            place = self.slot if padded else torch.arange(self.num_nodes, device=self.ptr.device)
            source, target = place[edge_index]
            target, order = target.sort(stable=True)
            size = self.slots if padded else self.num_nodes
            count = torch.bincount(target, minlength=size)
            crow = torch.cat([count.new_zeros(1), count.cumsum(0)])
            self._sweeps[key] = Pairs(crow, source[order], order.argsort())
        return self._sweeps[key]


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
        ValueError: the elimination belongs to other graphs, or see `eliminate`.
    """
    if ptr is None:
        ptr = torch.tensor([0, num_nodes], device=edge_index.device)
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
    lower_bounds, product_bounds = [0, *lower_cuts, lowers], [0, *product_cuts, len(left)]
    steps = []
    for nth in range(last):
        below = slice(*lower_bounds[nth : nth + 2])
        some = slice(*product_bounds[nth : nth + 2])
        if below.start < below.stop:
            steps.append(Round(below, entries + col[below], left[some], right[some], goal[some]))
    return Plan(ptr, edge_value, row, col, rounds, lowers, steps)
