"""In which order to eliminate the nodes of a graph, once per graph: rounds and fill-in.

I − A needs no pivoting, so a sparse LU of it follows an order that the graph alone decides.
Independent nodes are eliminated together in one round; eliminating a node joins every in-neighbour
to every out-neighbour (fill-in), which is why nodes with few neighbours go first.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

Order = Literal["min_degree", "topological"]

PASSES = 2  # greedy passes that make a round's independent set nearly maximal
SLACK = 2.5  # a round takes nodes up to this multiple of their graph's smallest cost


class Elimination(NamedTuple):
    """An elimination order of one graph or of a block-diagonal batch.

    Attributes:
        round: [N] the round in which a node is eliminated, from 0.
        fill_index: [2, F] source and target of the edges that elimination adds.
    """

    round: Int[Tensor, " N"]
    fill_index: Int[Tensor, "2 F"]


def eliminate(
    edge_index: Int[Tensor, "2 E"],
    num_nodes: int,
    ptr: Int[Tensor, " G1"] | None = None,
    order: Order = "min_degree",
) -> Elimination:
    """Plan the elimination of one graph, or of every graph of a batch as if it were alone.

    Args:
        edge_index: [2, E] source and target of each edge; self-loops and repeats are allowed.
        num_nodes: N.
        ptr: [G + 1] first node of each graph of a batch, and N; None for one graph.
        order: `min_degree` takes rounds of independent nodes of low Markowitz cost (in-degree ×
            out-degree), few rounds and little fill-in on sparse graphs; `topological` takes the
            nodes of a DAG by their longest path from a source, without any fill-in, so that one
            sweep solves the system.

    Returns:
        round [N] (int64) and fill_index [2, F], ordered by target, then source.

    Raises:
        ValueError: `topological` is asked for and the graph has a cycle.

    Source: Markowitz, "The elimination form of the inverse and its application to linear
    programming", Management Science 3, 1957; independent sets by Luby, "A simple parallel algorithm
    for the maximal independent set problem", SIAM J. Comput. 15, 1986.
    """
    device = edge_index.device
    if ptr is None:
        ptr = torch.tensor([0, num_nodes], device=device)
    key = torch.unique(edge_index[1] * num_nodes + edge_index[0])
    target, source = key // max(1, num_nodes), key % max(1, num_nodes)
    target, source = (end[target != source] for end in (target, source))
    if order == "topological":
        rounds = _longest_paths(source, target, num_nodes)
        return Elimination(rounds, edge_index.new_empty(2, 0))
    graph = torch.bucketize(torch.arange(num_nodes, device=device), ptr[1:], right=True)
    # The same for a graph wherever it stands in a batch; odd, so all ranks of a graph differ.
    rank = (torch.arange(num_nodes, device=device) - ptr[graph]) * 2654435761 % 2**32
    rounds = torch.full((num_nodes,), -1, device=device)
    fill = []
    number = 0
    while (active := rounds < 0).any():
        chosen = _independent_cheap_nodes(source, target, active, graph, rank, len(ptr) - 1)
        rounds[chosen] = number
        number += 1
        new = _fill(source, target, chosen, num_nodes)
        fill.append(new)
        stays = ~(chosen[source] | chosen[target])
        key = torch.cat([target[stays] * num_nodes + source[stays], new]).sort().values
        target, source = key // num_nodes, key % num_nodes
    fill = torch.cat(fill).sort().values if fill else edge_index.new_empty(0)
    return Elimination(rounds, torch.stack([fill % max(1, num_nodes), fill // max(1, num_nodes)]))


def _independent_cheap_nodes(
    source: Tensor, target: Tensor, active: Tensor, graph: Tensor, rank: Tensor, graphs: int
) -> Tensor:
    """bool [N]: nodes to eliminate now, no two of them adjacent."""
    nodes = len(active)
    leaving, entering = (torch.bincount(end, minlength=nodes) for end in (source, target))
    cost = leaving * entering
    cheapest = cost.new_full((graphs,), torch.iinfo(cost.dtype).max)
    cheapest.scatter_reduce_(0, graph[active], cost[active], "amin")
    # 4: a chain's interior, seen from both sides, goes together with its ends.
    limit = (SLACK * cheapest).clamp(min=4)[graph]
    # One number that orders by cost, then by rank, and is unique within a graph.
    priority = cost.clamp(max=2**30) * 2**32 + rank
    candidate = active & (cost <= limit)
    chosen = torch.zeros_like(active)
    for _ in range(PASSES):
        both = candidate[source] & candidate[target]
        s, t = source[both], target[both]
        beaten = torch.zeros_like(active)
        beaten[torch.where(priority[s] > priority[t], s, t)] = True
        winner = candidate & ~beaten
        chosen |= winner
        candidate &= ~winner
        candidate[target[winner[source]]] = False
        candidate[source[winner[target]]] = False
    return chosen


def _fill(source: Tensor, target: Tensor, chosen: Tensor, nodes: int) -> Tensor:
    """Keys target · N + source of the edges that appear when the chosen nodes are eliminated.

    The edges are sorted by target, then source.
    """
    into, out = chosen[target], chosen[source]
    into_source, into_pivot = source[into], target[into]
    out_pivot, place = source[out].sort(stable=True)
    out_target = target[out][place]
    of_into, of_out = join(into_pivot, out_pivot, nodes)
    i, j = into_source[of_into], out_target[of_out]
    key = torch.unique((j * nodes + i)[i != j])
    known = target * nodes + source
    at = torch.searchsorted(known, key).clamp(max=max(0, len(known) - 1))
    return key[known[at] != key] if len(known) else key


def join(left: Int[Tensor, " L"], right: Int[Tensor, " R"], size: int) -> tuple[Tensor, Tensor]:
    """All pairs (l, r) with left[l] == right[r], ordered by l.

    Equal values of `right` stand together; all values are below `size`.
    """
    count = torch.bincount(right, minlength=size)
    starts = starts_of_groups(right)
    first = torch.zeros_like(count)
    first[right[starts]] = starts
    repeats = count[left]
    of_left = torch.repeat_interleave(repeats)
    nth = torch.arange(len(of_left), device=left.device) - (repeats.cumsum(0) - repeats)[of_left]
    return of_left, first[left[of_left]] + nth


def starts_of_groups(values: Int[Tensor, " L"]) -> Int[Tensor, " groups"]:
    """Where each run of equal neighbours begins."""
    begins = torch.ones_like(values, dtype=torch.bool)
    begins[1:] = values[1:] != values[:-1]
    return begins.nonzero().squeeze(1)


def _longest_paths(source: Tensor, target: Tensor, nodes: int) -> Tensor:
    """int64 [N]: edges on the longest path that ends in each node."""
    level = torch.zeros(nodes, dtype=torch.int64, device=source.device)
    waiting = torch.bincount(target, minlength=nodes)
    done = torch.zeros(nodes, dtype=torch.bool, device=source.device)
    number = 0
    while not done.all():
        ready = ~done & (waiting == 0)
        if not ready.any():
            raise ValueError(
                "The graph has a cycle, so it has no topological order: use mode='exact', or "
                "remove the edges that close cycles."
            )
        level[ready] = number
        done |= ready
        waiting = waiting - torch.bincount(target[ready[source]], minlength=nodes)
        number += 1
    return level
