"""Small graphs that tests share: molecules with labels, and the odd shapes that break code."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch_geometric.data import Batch, Data

from datamodules.graphs.molecules import ATOM_FEATURE_SIZES, BOND_FEATURE_SIZES
from lit_models.graphs.encoders import CategoricalEncoder
from lit_models.graphs.heads import GraphHead, NodeHead
from lit_models.graphs.tasks import GraphTask
from lit_models.module import LitModule, Optimisation

molecule_encoder = partial(
    CategoricalEncoder, node_sizes=ATOM_FEATURE_SIZES, edge_sizes=BOND_FEATURE_SIZES
)

# Directed edges by name; the first column is the source.
TOPOLOGIES = {
    "path": (3, [(0, 1), (1, 2)]),
    "both ways": (4, [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]),
    "singleton": (1, []),
    "isolated nodes": (5, [(0, 3), (3, 0)]),
    "components": (6, [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)]),
    "self-loops": (3, [(0, 0), (0, 1), (1, 2), (2, 2)]),
    "repeated edges": (3, [(0, 1), (0, 1), (1, 2), (1, 2), (1, 2)]),
    "cycle": (4, [(0, 1), (1, 2), (2, 3), (3, 0)]),
    "hub": (8, [(0, i) for i in range(1, 8)] + [(i, 0) for i in range(1, 8)]),
}


def graph_model(
    task: GraphTask,
    net: Callable[..., nn.Module],
    encoder: Callable[[int], nn.Module] = molecule_encoder,
    head: Callable[..., nn.Module] | None = None,
    **options,
) -> LitModule:
    """A network with the usual head of the task's level, ready to be trained."""
    head = head or (GraphHead if task.level == "graph" else NodeHead)
    readout = partial(head, num_outputs=task.num_outputs)
    return LitModule(task, net(encoder, readout, **options), Optimisation())


def edge_index(name: str) -> torch.Tensor:
    """Edges [2, E] of a named topology."""
    return torch.tensor(TOPOLOGIES[name][1], dtype=torch.int64).reshape(-1, 2).T.contiguous()


def molecule_like(name: str, labels: int = 10) -> Data:
    """A graph of the named topology with random atom and bond features and labels."""
    nodes, edges = TOPOLOGIES[name]
    x = torch.stack([torch.randint(size, (nodes,)) for size in ATOM_FEATURE_SIZES], dim=1)
    bonds = [torch.randint(size, (len(edges),)) for size in BOND_FEATURE_SIZES]
    return Data(
        x=x,
        edge_index=edge_index(name),
        edge_attr=torch.stack(bonds, dim=1),
        y=torch.randint(2, (1, labels)).float(),
    )


def batch_of_all() -> Batch:
    """One graph of every topology."""
    return Batch.from_data_list([molecule_like(name) for name in TOPOLOGIES])
