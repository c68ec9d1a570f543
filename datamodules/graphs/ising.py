"""Ising models on trees with exact means: what message passing should learn to compute.

Rohatgi et al., "Towards characterizing the value of edge embeddings in Graph Neural Networks",
arXiv:2410.09867. Shapes: G trees of n nodes each. Trees are rooted at node 0 and number every
parent before its children: parent int64 [G, n] with parent[:, i] < i, and −1 for the root.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.graphs.graph_cache import GraphTable
from datamodules.graphs.module import GeneratedGraphDataModule

Topology = Literal["binary_tree", "path", "prufer"]
NODES = {"binary_tree": 31, "path": 30, "prufer": 30}
GENERATOR_VERSION = 1
"""Raise it with every change of what is generated."""


class IsingDataModule(GeneratedGraphDataModule):
    """E[x_i] of every node, y [n, 1], from random fields h_i ~ N(0, 1), x [n, 1].

    p(x) ∝ exp(J Σ_{ij} x_i x_j + Σ_i h_i x_i) for x ∈ {−1, 1}ⁿ, by belief propagation in float64.
    Graphs carry every edge in both directions.

    Args:
        topology: the complete `binary_tree` of 31 nodes, the `path` of 30, rooted at an end, or
            `prufer`, uniform labelled trees of 30 nodes, another for every graph, rooted anywhere.
        coupling: J.
        data: see GeneratedGraphDataModule.

    Raises:
        DataError: another topology, and as GeneratedGraphDataModule says.

    Source: arXiv:2410.09867, trees, sizes and J = 1; amounts of data are ours.
    """

    def __init__(self, topology: Topology = "binary_tree", coupling: float = 1.0, **data: Any):
        super().__init__(**data)
        if topology not in NODES:
            raise DataError(
                f"There are no trees {topology!r}: set data.topology to one of "
                f"{', '.join(get_args(Topology))}."
            )
        self.topology, self.coupling = topology, coupling
        self.task = f"ising-{topology}"

    @property
    def key(self) -> dict[str, Any]:
        return {"topology": self.topology, "coupling": self.coupling, "version": GENERATOR_VERSION}

    def generate(self, graphs: int, generator: torch.Generator) -> GraphTable:
        nodes = NODES[self.topology]
        if self.topology == "prufer":
            parent = random_trees(graphs, nodes, generator)
        else:
            child = torch.arange(nodes)
            parent = ((child - 1) // 2 if self.topology == "binary_tree" else child - 1).expand(
                graphs, -1
            )
        field = torch.randn(graphs, nodes, generator=generator, dtype=torch.float64)
        child = torch.arange(1, nodes).expand(graphs, -1)
        there = torch.stack([parent[:, 1:], child], dim=-1)
        edges = torch.cat([there, there.flip(-1)], dim=1)
        size = torch.full((graphs,), nodes)
        return GraphTable.of(
            {
                "x": field.reshape(-1, 1).float(),
                "edge_index": edges.reshape(-1, 2).T.contiguous(),
                "y": means(parent, field, self.coupling).reshape(-1, 1).float(),
            },
            {"x": size, "edge_index": 2 * (size - 1), "y": size},
            dtypes={"edge_index": "int64"},
        )


def means(parent: Tensor, field: Tensor, coupling: float) -> Tensor:
    """E[x_i] [G, n] by belief propagation: one sweep to the root, one back.

    A message is the field that its sender exerts on the receiver, u = artanh(tanh J tanh(a)),
    where a is the sender's own field plus all messages but the receiver's.

    Args:
        parent: int64 [G, n], see above.
        field: float [G, n] h.
        coupling: J.

    Source: Mézard and Montanari, "Information, Physics, and Computation", 2009, eq. 14.11 f.
    """

    def message(cavity: Tensor) -> Tensor:
        return torch.atanh(torch.tanh(cavity.new_tensor(coupling)) * torch.tanh(cavity))

    total, up = field.clone(), torch.zeros_like(field)
    nodes = field.shape[1]
    for i in range(nodes - 1, 0, -1):
        up[:, i] = message(total[:, i])
        total.scatter_add_(1, parent[:, i : i + 1], up[:, i : i + 1])
    for i in range(1, nodes):
        above = total.gather(1, parent[:, i : i + 1]).squeeze(1)
        total[:, i] += message(above - up[:, i])
    return total.tanh()


def random_trees(graphs: int, nodes: int, generator: torch.Generator) -> Tensor:
    """Parents [G, n] of uniform random labelled trees, decoded from Prüfer sequences.

    They are rooted at a node that is as random as the labels, then numbered breadth first.
    """
    sequence = torch.randint(nodes, (graphs, nodes - 2), generator=generator)
    tree, every = torch.arange(graphs), torch.arange(nodes)
    degree = torch.ones(graphs, nodes, dtype=torch.int64)
    degree.scatter_add_(1, sequence, torch.ones_like(sequence))
    adjacent = torch.zeros(graphs, nodes, nodes, dtype=torch.bool)
    for partner in sequence.T:
        leaf = (degree == 1).int().argmax(dim=1)  # the first one
        adjacent[tree, leaf, partner] = True
        degree[tree, leaf] -= 1
        degree[tree, partner] -= 1
    first, last = (degree == 1).nonzero()[:, 1].view(graphs, 2).T
    adjacent[tree, first, last] = True
    adjacent = adjacent | adjacent.mT
    depth = torch.where(every == 0, 0, nodes).expand(graphs, -1)
    for _ in range(nodes - 1):
        reached = torch.where(adjacent, depth.unsqueeze(1) + 1, nodes).amin(dim=2)
        depth = torch.minimum(depth, reached)
    order = depth.argsort(dim=1, stable=True)
    rows = order.unsqueeze(2).expand(-1, -1, nodes)
    adjacent = adjacent.gather(1, rows).gather(2, rows.mT)
    earlier = adjacent & (every < every.unsqueeze(1))
    return torch.where(earlier.any(dim=2), earlier.int().argmax(dim=2), -1)
