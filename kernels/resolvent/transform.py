"""Elimination orders and plans as torch-geometric transforms: of a graph, of a batch."""

import torch
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from kernels.backends import HAS_TRITON, uncompiled
from kernels.resolvent.elimination import PASSES, SLACK, Elimination, eliminate
from kernels.resolvent.plan import Plan, make_plan
from kernels.resolvent.scheduling import scheduled


class AddElimination(BaseTransform):
    """Adds `elimination_round` [N] and `fill_index` [2, F], see `eliminate`, to a graph or a batch.

    torch-geometric joins both as it joins x and edge_index, so the order of a batch is stitched
    from its graphs' orders by collation alone; `plan_of` makes the plan of it.
    """

    def forward(self, data: Data) -> Data:
        ptr = data.ptr if "ptr" in data else None
        edge_index, nodes = data.edge_index, data.num_nodes
        assert edge_index is not None  # of a graph
        assert nodes is not None
        rounds, fill_index = eliminate(edge_index, nodes, ptr)
        data.elimination_round, data.fill_index = rounds, fill_index
        return data

    def __repr__(self) -> str:
        """Names all that the result depends on, for the keys of caches."""
        return f"{type(self).__name__}(version=1, passes={PASSES}, slack={SLACK})"


class AddPlan(BaseTransform):
    """Adds `plan`, see `plan_of`, to a batch where it is loaded, so that it moves with the batch.

    Where there is a GPU that includes what Triton kernels follow: a model then makes no plan and
    asks the GPU for no number.
    """

    def __init__(self):
        self.for_triton = HAS_TRITON and torch.cuda.is_available()

    def forward(self, data: Data) -> Data:
        plan = plan_of(data)
        data.plan = scheduled(plan) if self.for_triton else plan
        return data


@uncompiled  # its shapes depend on the graphs
def plan_of(batch: Data) -> Plan:
    """The plan of a batch, as a transform has left it, or made here.

    Its elimination order is computed where no transform has added that.
    """
    if "plan" in batch:
        return batch.plan
    known = "elimination_round" in batch
    edge_index, nodes = batch.edge_index, batch.num_nodes
    assert edge_index is not None  # of a batch of graphs
    assert nodes is not None
    return make_plan(
        edge_index.long(),
        nodes,
        batch.ptr,
        Elimination(batch.elimination_round, batch.fill_index) if known else None,
    )
