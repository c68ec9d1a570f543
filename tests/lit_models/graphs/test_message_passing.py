"""Message passing: who hears whom, and what each convolution computes; see test_graph_models.py."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Batch

from lit_models.graphs.message_passing import GCN, MessagePassing, gated_gcn, gine
from lit_models.graphs.tasks import NodeClassification
from lit_models.module import LitModule
from tests.graphs import graph_model, molecule_like

CONVOLUTIONS = [GCN, gine, gated_gcn]


def make_model(conv, **options) -> LitModule:
    sizes = {"width": 16, "layers": 2} | options
    return graph_model(NodeClassification(3), MessagePassing, conv=conv, **sizes).eval()


@pytest.mark.parametrize("conv", CONVOLUTIONS)
@pytest.mark.parametrize("layers", [1, 2])
def test_influence_runs_along_the_edges_one_hop_a_layer(conv, layers):
    """On 0 → 1 → 2 a change of node 0 reaches node 2 with the second layer; never backwards."""
    model = make_model(conv, layers=layers)
    batch = Batch.from_data_list([molecule_like("path")])
    before = model(batch)
    for changed, reached in ((0, list(range(1 + layers))), (2, [2])):
        other = batch.clone()
        other.x[changed] = (other.x[changed] + 1) % 2
        moved = (model(other) - before).abs().amax(dim=1) > 1e-6
        assert moved.nonzero().flatten().tolist() == reached


@pytest.mark.parametrize(("conv", "sees"), [(GCN, False), (gine, True), (gated_gcn, True)])
def test_who_sees_the_bonds(conv, sees):
    model = make_model(conv)
    batch = Batch.from_data_list([molecule_like("path")])
    other = batch.clone()
    other.edge_attr[:] = (other.edge_attr + 1) % 2
    assert bool((model(other) - model(batch)).abs().max() > 1e-6) == sees
    assert any(name.startswith("net.encoder.edges") for name, _ in model.named_parameters()) == sees


def path_and_conv(conv) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A convolution, and on 0 → 1 → 2 node vectors, edge vectors and edges."""
    return conv(4), torch.randn(3, 4), torch.randn(2, 4), torch.tensor([[0, 1], [1, 2]])


def test_gcn_by_hand():
    """Every node counts itself: degrees 1, 2, 2."""
    conv, x, e, edges = path_and_conv(GCN)
    w = x @ conv.lin.weight.T
    expected = torch.stack([w[0], w[1] / 2 + w[0] / 2**0.5, w[2] / 2 + w[1] / 2])
    torch.testing.assert_close(conv(x, edges, e), expected)


def test_gine_by_hand():
    conv, x, e, edges = path_and_conv(gine)
    summed = torch.stack([x[0], x[1] + F.relu(x[0] + e[0]), x[2] + F.relu(x[1] + e[1])])
    first, _, second = conv.nn
    hidden = F.relu(summed @ first.weight.T + first.bias)
    torch.testing.assert_close(conv(x, edges, e), hidden @ second.weight.T)


def test_gated_gcn_by_hand():
    conv, x, e, edges = path_and_conv(gated_gcn)
    expected = conv.lin_skip(x)
    for edge, (j, i) in enumerate(edges.T.tolist()):
        here, there = (torch.cat([x[node], e[edge]]) for node in (i, j))
        gate = torch.sigmoid(conv.lin_key(here) + conv.lin_query(there))
        expected[i] = expected[i] + gate * conv.lin_value(there)
    torch.testing.assert_close(conv(x, edges, e), expected)
