"""The pooling of the head of graphs, by hand."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from lit_models.graphs.heads import GraphHead

POOLED = {"mean": lambda x: x.mean(0), "sum": lambda x: x.sum(0), "max": lambda x: x.amax(0)}


@pytest.mark.parametrize("pooling", POOLED)
def test_graphs_are_pooled_one_by_one(pooling):
    x = torch.randn(5, 4)
    graphs = [Data(x=part, edge_index=torch.zeros(2, 0).long()) for part in (x[:2], x[2:])]
    torch.manual_seed(0)
    head = GraphHead(4, 3, 0.0, pooling=pooling)
    expected = torch.stack([POOLED[pooling](part) for part in (x[:2], x[2:])])
    torch.testing.assert_close(head(x, Batch.from_data_list(graphs)), head.mlp(expected))
    torch.manual_seed(0)
    for name, value in GraphHead(4, 3, 0.0).state_dict().items():
        assert torch.equal(value, head.state_dict()[name]), name


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match="mean, sum, max, got 'attention'"):
        GraphHead(4, 3, 0.0, pooling="attention")
