"""Message passing on nodes or on edges: the same formula on a graph and on its line graph.

Rohatgi et al., "Towards characterizing the value of edge embeddings in Graph Neural Networks",
arXiv:2410.09867. Shapes: N nodes, E directed entries of edge_index, M edge states, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_models.graphs.batch import Batch
from lit_models.graphs.gated_gcn import normalise
from lit_models.graphs.heads import GraphHead


@dataclass(frozen=True)
class Edges:
    """The edges that carry states, and which entry of edge_index belongs to which of them.

    Attributes:
        source, target: int64 [M] ends; without direction source ≤ target. Repeated entries are one
            edge, so there are no parallel edges.
        of_entry: int64 [E].
        reverse: int64 [M], the edge that runs the other way, a self-loop's own number, −1 for none;
            None without direction.
        nodes: N.
    """

    source: Int[Tensor, " M"]
    target: Int[Tensor, " M"]
    of_entry: Int[Tensor, " E"]
    reverse: Int[Tensor, " M"] | None
    nodes: int

    @cached_property
    def proper(self) -> Float[Tensor, "M 1"]:
        """0 for self-loops, else 1; not boolean, which every product would have to convert."""
        return (self.source != self.target).unsqueeze(1).float()

    def sum_at_nodes(self, h: Float[Tensor, "M C"]) -> Float[Tensor, "N C"]:
        """S(v): the sum of the edges at v, a self-loop once; with direction of those into v."""
        total = h.new_zeros(self.nodes, h.shape[1]).index_add(0, self.target, h)
        if self.reverse is not None:
            return total
        return total.index_add(0, self.source, h * self.proper.to(h.dtype))

    @property
    def relations(self) -> int:
        """Kinds of neighbours: one, or with direction two, see `sum_of_neighbours`."""
        return 1 if self.reverse is None else 2

    def sum_of_neighbours(self, h: Float[Tensor, "M C"]) -> Float[Tensor, "M relations_C"]:
        """Sum over an edge's neighbours in the line graph, for each relation, in O(M C).

        Without direction S(u) + S(v) − h_e for e = {u, v}, and S(v) for a self-loop: the edge
        itself is included. With direction the neighbours of u → v are all w → u but the reverse
        v → u, first those with w ≤ u, in a rooted tree the one that comes from u's parent, then
        those with w > u, from its children.
        """
        # index_select: its backward adds rows, several times faster on a CPU than that of x[i].
        if self.reverse is None:
            at_nodes = self.sum_at_nodes(h)
            at_source = at_nodes.index_select(0, self.source)
            at_target = at_nodes.index_select(0, self.target)
            return torch.addcmul(at_source, self.proper.to(h.dtype), at_target - h)
        # One index_add for both relations, those of the second below those of the first.
        row = self.target + self.nodes * (self.source > self.target)
        into = h.new_zeros(2 * self.nodes, h.shape[1]).index_add(0, row, h)
        backwards = h.index_select(0, self.reverse.clamp(min=0))
        answered = (self.reverse >= 0).unsqueeze(1)
        # The reverse comes from the node that the edge goes to.
        first = answered & (self.target <= self.source).unsqueeze(1)
        both = [
            into.index_select(0, self.source) - backwards * first.to(h.dtype),
            into.index_select(0, self.nodes + self.source)
            - backwards * (answered & ~first).to(h.dtype),
        ]
        return torch.cat(both, dim=1)

    def mean_at_nodes(self, h: Float[Tensor, "M C"]) -> Float[Tensor, "N C"]:
        """S(v) over the number of its edges; zero at a node without any."""
        return self.sum_at_nodes(h) / self.sum_at_nodes(h.new_ones(len(h), 1)).clamp(min=1)


def find_edges(edge_index: Int[Tensor, "2 E"], nodes: int, directed: bool) -> Edges:
    """The edges behind the entries of edge_index among N nodes, by sorting, in O(E log E)."""
    source, target = edge_index if directed else edge_index.sort(dim=0).values
    key, of_entry = torch.unique(source * nodes + target, return_inverse=True)
    source, target = key // max(nodes, 1), key % max(nodes, 1)
    if not directed or not key.numel():
        return Edges(source, target, of_entry, key if directed else None, nodes)
    reversed_key = target * nodes + source
    found = torch.searchsorted(key, reversed_key).clamp(max=len(key) - 1)
    reverse = torch.where(key[found] == reversed_key, found, -1)
    return Edges(source, target, of_entry, reverse, nodes)


class Block(nn.Module):
    """h ← h + dropout(σ(norm(Σ_r W_r m_r + b))), σ = ReLU, of [rows, width] h and means m_r.

    Args:
        width: channels.
        relations: number of kinds of neighbours, each with a matrix of its own.
        norm: batch norm, which deep networks on molecules need and the paper's formula lacks.
        dropout: probability.

    Source: arXiv:2410.09867, the network of the experiments; the bias is ours.
    """

    def __init__(self, width: int, relations: int, norm: bool, dropout: float):
        super().__init__()
        # no bias before a batch norm, which would subtract it
        self.linear = nn.Linear(relations * width, width, bias=not norm)
        self.norm = nn.BatchNorm1d(width) if norm else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, h: Float[Tensor, "rows width"], means: Float[Tensor, "rows relations_width"]
    ) -> Float[Tensor, "rows width"]:
        update = self.linear(means)
        if self.norm is not None:
            update = normalise(self.norm, update)
        return h + self.dropout(torch.relu(update))


class NodeEmbeddings(nn.Module):
    """The node version: a state per node, the mean over its neighbours, itself not included.

    Edge features, where there are any, enter a node's initial state as the mean over its incoming
    edges. With direction (ours) the neighbours are of two relations with separate weights: those
    numbered before the node, in a rooted tree its parent, and those after it, its children. An
    entry of edge_index counts as often as it occurs; an isolated node hears zeros.

    Args:
        encoder: makes the feature encoder of a width.
        head: makes the readout of a width, see `lit_models.graphs.heads`.
        width: hidden size.
        layers: number of rounds.
        directed: edges have a direction.
        norm: batch norm in every round.
        dropout: probability, in every round.
    """

    def __init__(
        self,
        encoder: Callable[[int], nn.Module],
        head: Callable[[int], nn.Module],
        *,
        width: int = 32,
        layers: int = 10,
        directed: bool = False,
        norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        readout, features = head(width), encoder(width)
        self.encoder, self.head, self.directed = features, readout, directed
        relations = 2 if directed else 1
        self.blocks = nn.ModuleList(Block(width, relations, norm, dropout) for _ in range(layers))

    def forward(self, batch: Batch) -> Tensor:
        h, edge_attr = self.encoder(batch)
        source, target = batch.edge_index
        if edge_attr is not None:
            h = h + mean_by(edge_attr, target, len(h))
        down = source <= target
        relations = [down, ~down] if self.directed else [slice(None)]
        ends = [(source[r], target[r]) for r in relations]
        for block in self.blocks:
            means = [mean_by(h.index_select(0, s), t, len(h)) for s, t in ends]
            h = block(h, torch.cat(means, dim=1))
        return self.head(h, batch)


class EdgeEmbeddings(nn.Module):
    """The edge version: a state per edge, the mean over its neighbours in the line graph.

    Neighbours are summed through the ends that they share, in O(E): the line graph, in which a hub
    of degree d has d² edges, is never built; see `Edges`. The initial state is a linear map of both
    ends' features, plus the mean of the features of the edge's own entries where there are any; it
    is the only place where node features enter. A node's vector is the mean of its edges, zero
    where it has none; a graph's that of all edges, or what its head's pooling says.

    Without direction and not `oriented`, the map is applied to the sum of the two ends, as an edge
    has no first end. `oriented` concatenates them, the node with the smaller number first: the
    paper's letter, which depends on how nodes are numbered, such as hub or parent first.

    With direction (ours) there is a state for u → v and one for v → u, from the concatenated ends;
    u → v hears all w → u but v → u, as in belief propagation, with separate weights for w ≤ u and
    w > u as in NodeEmbeddings; a node is read from the edges into it. No state hears all edges into
    a node, so that whatever combines them is left to the head.

    Args:
        encoder, head, width, layers, directed, norm, dropout: see `NodeEmbeddings`.
        oriented: concatenate the ends; edges with direction do so in any case.
    """

    def __init__(
        self,
        encoder: Callable[[int], nn.Module],
        head: Callable[[int], nn.Module],
        *,
        width: int = 32,
        layers: int = 10,
        directed: bool = False,
        oriented: bool = False,
        norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        readout, features = head(width), encoder(width)
        self.encoder, self.head, self.directed = features, readout, directed
        self.concatenate = directed or oriented
        self.initial = nn.Linear((2 if self.concatenate else 1) * width, width)
        relations = 2 if directed else 1
        self.blocks = nn.ModuleList(Block(width, relations, norm, dropout) for _ in range(layers))

    def forward(self, batch: Batch) -> Tensor:
        x, edge_attr = self.encoder(batch)
        edges = find_edges(batch.edge_index, len(x), self.directed)
        first, second = x.index_select(0, edges.source), x.index_select(0, edges.target)
        ends = torch.cat([first, second], dim=1) if self.concatenate else first + second
        h = self.initial(ends)
        if edge_attr is not None:
            h = h + mean_by(edge_attr, edges.of_entry, len(h))
        neighbours = edges.sum_of_neighbours(h.new_ones(len(h), 1)).clamp(min=1)
        share = neighbours.reciprocal().unsqueeze(2)
        for block in self.blocks:
            sums = edges.sum_of_neighbours(h).unflatten(1, (edges.relations, -1))
            h = block(h, (sums * share).flatten(1))
        if isinstance(self.head, GraphHead):
            of_graph = batch.batch[edges.source]
            return self.head.mlp(self.head.pool(h, of_graph, batch.num_graphs))
        return self.head(edges.mean_at_nodes(h), batch)


class NodeEncoder(nn.Module):
    """An affine map of real-valued node features, for graphs whose edges have none."""

    def __init__(self, width: int, node_size: int):
        super().__init__()
        self.nodes = nn.Linear(node_size, width)

    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        """Node features [N, node_size] to [N, width], and None for those of edges."""
        return self.nodes(batch.x), None


def mean_by(
    x: Float[Tensor, "rows C"], group: Int[Tensor, " rows"], groups: int
) -> Float[Tensor, "groups C"]:
    """The mean of the rows of every group, zero where it has none."""
    count = torch.bincount(group, minlength=groups).clamp(min=1).to(x.dtype)
    return x.new_zeros(groups, x.shape[1]).index_add(0, group, x) / count.unsqueeze(1)
