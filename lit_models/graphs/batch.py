"""The batch of graphs that networks and tasks are given."""

# torch-geometric makes this class where it runs, of parts that no declared class could combine.
# pyright: reportGeneralTypeIssues=false, reportIncompatibleMethodOverride=false

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch_geometric.data import Batch as AnyBatch
from torch_geometric.data import Data

from kernels.resolvent import Plan

if TYPE_CHECKING:

    class Batch(AnyBatch, Data):
        """torch-geometric's, whose attributes are only known where it runs.

        Attributes:
            x: [N, features] of nodes.
            edge_index: int64 [2, E].
            edge_attr: [E, features] of edges.
            y: targets, of a shape that the task says.
            batch: int64 [N], the graph of every node.
            ptr: int64 [G + 1], the first node of every graph, and N.
            num_nodes: N.
            edge_label_index: int64 [2, M], pairs of nodes that are asked about.
            edge_label: [M], what is true of them.
            plan: of the resolvent, where it was added.
        """

        x: Tensor
        edge_index: Tensor
        edge_attr: Tensor
        y: Tensor
        batch: Tensor
        ptr: Tensor
        num_nodes: int
        edge_label_index: Tensor
        edge_label: Tensor
        plan: Plan

        def to(self, device: torch.device) -> "Batch": ...

else:
    Batch = AnyBatch
