"""Encoders of features, and of edges that have none, by hand; other features in one sentence."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from lit_models.graphs.encoders import CategoricalEncoder, LinearEncoder
from lit_models.module import UnfitDataError

EDGES = torch.tensor([[0, 1, 1], [1, 0, 2]])


def batch_of(x, edge_attr=None) -> Batch:
    return Batch.from_data_list([Data(x=x, edge_index=EDGES, edge_attr=edge_attr)])


@pytest.mark.parametrize(
    ("encoder", "x"),
    [
        (LinearEncoder(4, node_size=2, edge_size=0), torch.randn(3, 2)),
        (CategoricalEncoder(4, node_sizes=[2, 3], edge_sizes=[]), torch.ones(3, 2).long()),
    ],
    ids=["linear", "categorical"],
)
def test_edges_without_features_share_a_learnt_vector(encoder, x):
    nodes, edges = encoder(batch_of(x))
    assert nodes.shape == (3, 4)
    assert torch.equal(edges, encoder.edges.vector.expand(3, 4))
    edges.sum().backward()
    assert torch.equal(encoder.edges.vector.grad, torch.full((4,), 3.0))
    _, none = encoder(Batch.from_data_list([Data(x=x, edge_index=EDGES[:, :0])]))
    assert none.shape == (0, 4)


def test_features_of_any_number_type_are_taken():
    encoder = LinearEncoder(4, node_size=2, edge_size=1)
    x, edge_attr = torch.tensor([[1, 0], [0, 1], [0, 1]]), torch.tensor([[1], [0], [2]])
    expected = encoder(batch_of(x.float(), edge_attr.float()))
    for given in (batch_of(x, edge_attr), batch_of(x.double(), edge_attr.double())):
        for got, want in zip(encoder(given), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("x", "edge_attr", "what"),
    [
        (torch.zeros(3, 3), torch.zeros(3, 1), r"Expected x of 2 columns, as encoder.node_size"),
        (torch.zeros(3), torch.zeros(3, 1), r"got shape \[3\]"),
        (torch.zeros(3, 2), torch.zeros(3), r"Expected edge_attr of 1 columns.*got shape \[3\]"),
        (torch.zeros(3, 2), None, r"as encoder.edge_size says, got none"),
    ],
)
def test_other_features_are_refused_in_a_sentence(x, edge_attr, what):
    with pytest.raises(UnfitDataError, match=what):
        LinearEncoder(4, node_size=2, edge_size=1)(batch_of(x, edge_attr))
