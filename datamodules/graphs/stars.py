"""Star graphs whose targets come from a planted edge network.

Rohatgi et al., "Towards characterizing the value of edge embeddings in Graph Neural Networks",
arXiv:2410.09867. Shapes: G stars of n leaves, F features, C channels of the planted network.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.graphs.graph_cache import GraphTable
from datamodules.graphs.module import GeneratedGraphDataModule

FEATURES = 10
GENERATOR_VERSION = 1
"""Raise it with every change of what is generated."""
STARS_AT_ONCE = 1024
STANDARD_SAMPLE = 4096


class Planted(NamedTuple):
    """Weights of an edge network.

    Attributes:
        initial: [C, 2F], of the concatenated features of hub and leaf.
        rounds: [k, C, C].
        readout: [1, C].
    """

    initial: Tensor
    rounds: Tensor
    readout: Tensor


class StarsDataModule(GeneratedGraphDataModule):
    """Stars of a hub, node 0, and `leaves` leaves; x [n + 1, 10] standard Gaussian, y [n + 1, 1].

    Targets are those of a random edge network, see `planted_targets`, shifted and scaled so that
    over the nodes of stars in general their mean is 0 and their variance 1. Graphs carry every
    edge in both directions.

    Args:
        leaves: n.
        planted_depth: rounds k of the planted network.
        planted_width: its channels.
        planted_seed: of its weights.
        data: see GeneratedGraphDataModule; `seed` is of the features.

    Raises:
        DataError: a number that is not positive, and as GeneratedGraphDataModule says.

    Source: arXiv:2410.09867, the synthetic task on stars. The paper's text at hand says no more
    than "x ∈ R¹⁰ Gaussian; targets from a planted edge-GCN of depth k": weights, their scale, one
    target a node, its scale and the amounts of data are ours.
    """

    def __init__(
        self,
        leaves: int = 64,
        planted_depth: int = 3,
        planted_width: int = 32,
        planted_seed: int = 0,
        **data: Any,
    ):
        super().__init__(**data)
        for name, number in (
            ("leaves", leaves),
            ("planted_depth", planted_depth),
            ("planted_width", planted_width),
        ):
            if number < 1:
                raise DataError(f"Expected a positive number, but data.{name} is {number}.")
        self.leaves, self.planted_depth = leaves, planted_depth
        self.planted_width, self.planted_seed = planted_width, planted_seed
        self.task = f"stars-{leaves}-planted-{planted_depth}"

    @property
    def key(self) -> dict[str, Any]:
        return {
            "leaves": self.leaves,
            "planted": [self.planted_depth, self.planted_width, self.planted_seed],
            "version": GENERATOR_VERSION,
        }

    def generate(self, graphs: int, generator: torch.Generator) -> GraphTable:
        network = planted_network(self.planted_depth, self.planted_width, self.planted_seed)
        sample = torch.Generator().manual_seed(0)
        usual = planted_targets(self._features(STANDARD_SAMPLE, sample), network)
        x = self._features(graphs, generator)
        y = (planted_targets(x, network) - usual.mean()) / usual.std()
        leaf = torch.arange(1, self.leaves + 1)
        there = torch.stack([torch.zeros_like(leaf), leaf])
        edges = torch.cat([there, there.flip(0)], dim=1)
        size = torch.full((graphs,), self.leaves + 1)
        return GraphTable.of(
            {
                "x": x.flatten(0, 1),
                "edge_index": edges.repeat(1, graphs),
                "y": y.float().view(-1, 1),
            },
            {"x": size, "edge_index": 2 * (size - 1), "y": size},
            dtypes={"edge_index": "int64"},
        )

    def _features(self, graphs: int, generator: torch.Generator) -> Tensor:
        return torch.randn(graphs, self.leaves + 1, FEATURES, generator=generator)


def planted_network(depth: int, width: int, seed: int) -> Planted:
    """Random weights, float64, from the law of a new `nn.Linear`: U(−1, 1) / √inputs, no biases."""
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return (2 * drawn - 1) / shape[-1] ** 0.5

    return Planted(weights(width, 2 * FEATURES), weights(depth, width, width), weights(1, width))


def planted_targets(x: Tensor, network: Planted) -> Tensor:
    """Targets [G, n + 1] of stars with features x [G, n + 1, F], in float64.

    h_e = U (x_hub ‖ x_leaf), then k times h_e ← h_e + ReLU(W · MEAN of h over the neighbours of e
    in the line graph, e included); a node's target is w · MEAN of h over its edges.

    The textbook's way, on the explicit line graph, for `lit_models` to be checked against.
    """
    return torch.cat([_targets(part.double(), network) for part in x.split(STARS_AT_ONCE)])


def _targets(x: Tensor, network: Planted) -> Tensor:
    leaves = x.shape[1] - 1
    incidence = torch.cat([x.new_ones(1, leaves), torch.eye(leaves, dtype=x.dtype)])  # nodes, edges
    line_graph = (incidence.T @ incidence > 0).to(x.dtype)
    hub = x[:, :1].expand(-1, leaves, -1)
    h = torch.cat([hub, x[:, 1:]], dim=-1) @ network.initial.T
    for weight in network.rounds:
        mean = line_graph @ h / line_graph.sum(dim=1, keepdim=True)
        h = h + torch.relu(mean @ weight.T)
    at_nodes = incidence @ h / incidence.sum(dim=1, keepdim=True)
    return (at_nodes @ network.readout.T).squeeze(-1)
