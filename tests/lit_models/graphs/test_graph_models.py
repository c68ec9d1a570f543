"""What holds for every graph model: live parameters, and graphs that do not hear each other."""

from functools import partial

import pytest
import torch
from torch_geometric.data import Batch, Data

from kernels.resolvent import AddPlan
from lit_models.graphs.chimera import ChimeraGraph
from lit_models.graphs.encoders import LinearEncoder
from lit_models.graphs.gps import GPS
from lit_models.graphs.message_passing import GCN, MessagePassing, gated_gcn, gine
from lit_models.graphs.tasks import MultilabelClassification
from lit_models.module import LitModule
from tests.graphs import TOPOLOGIES, batch_of_all, edge_index, graph_model, molecule_like

MODELS = {
    "chimera": partial(ChimeraGraph, heads=2, state=8),
    "chimera without local part": partial(ChimeraGraph, heads=2, state=8, local=False),
    "gps": partial(GPS, heads=2),
    "gcn": partial(MessagePassing, conv=GCN),
    "gine": partial(MessagePassing, conv=gine),
    "gated gcn": partial(MessagePassing, conv=gated_gcn),
}


@pytest.fixture(params=MODELS)
def model(request) -> LitModule:
    return graph_model(MultilabelClassification(10), MODELS[request.param], width=16, layers=2)


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(model):
    batch = Batch.from_data_list([molecule_like(n) for n in ("both ways", "hub", "self-loops")] * 3)
    model.task.loss(model(batch), batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_perturbing_any_part_changes_the_output(model):
    model.eval()
    batch = batch_of_all()
    before = model(batch)
    for name, parameter in model.named_parameters():
        saved = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.1 * torch.randn_like(parameter)
        assert (model(batch) - before).abs().max() > 1e-7, name
        with torch.no_grad():
            parameter.copy_(saved)


def test_permuting_the_atoms_changes_nothing(model):
    model.eval()
    graph = molecule_like("hub")
    order = torch.randperm(8)
    permuted = graph.clone()
    permuted.x, permuted.edge_index = graph.x[order], order.argsort()[graph.edge_index]
    edges = torch.randperm(graph.num_edges)
    permuted.edge_index = permuted.edge_index[:, edges]
    permuted.edge_attr = graph.edge_attr[edges]
    y = [model(Batch.from_data_list([g])) for g in (graph, permuted)]
    torch.testing.assert_close(*y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [True, False], ids=["with gradients", "without"])
def test_a_batch_equals_each_graph_alone(model, grad):
    """Without gradients too: torch's attention then takes another path."""
    model.eval()
    graphs = [molecule_like(name) for name in TOPOLOGIES]
    with torch.set_grad_enabled(grad):
        together = model(Batch.from_data_list(graphs))
        alone = torch.cat([model(Batch.from_data_list([graph])) for graph in graphs])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_single_node_can_be_trained_on(model):
    batch = Batch.from_data_list([molecule_like("singleton")])
    model.task.loss(model(batch), batch).backward()


def featureless(name: str) -> Data:
    """A graph of real-valued nodes, in float64, whose edges have no features."""
    nodes, _ = TOPOLOGIES[name]
    x = torch.randn(nodes, 2, dtype=torch.float64)
    return Data(x=x, edge_index=edge_index(name), y=torch.randint(2, (1, 10)).float())


@pytest.fixture(params=MODELS)
def model_without_edge_features(request) -> LitModule:
    encoder = partial(LinearEncoder, node_size=2, edge_size=0)
    task = MultilabelClassification(10)
    return graph_model(task, MODELS[request.param], encoder, width=16, layers=2)


def test_edges_need_no_features(model_without_edge_features):
    model = model_without_edge_features
    batch = Batch.from_data_list([featureless(n) for n in ("both ways", "hub", "singleton")] * 3)
    model.task.loss(model(batch), batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_one_graph_is_a_batch_of_one(model):
    model.eval()
    graph, other = molecule_like("hub"), molecule_like("path")
    expected = model(Batch.from_data_list([graph, other]))
    torch.testing.assert_close(model(graph), expected[:1])
    torch.testing.assert_close(model([graph, other]), expected)


def test_edges_of_32_bits_are_edges(model):
    model.eval()
    graphs = [molecule_like("hub"), molecule_like("path")]
    expected = model(Batch.from_data_list(graphs))
    for graph in graphs:
        graph.edge_index = graph.edge_index.int()
    batch = AddPlan()(Batch.from_data_list(graphs))
    assert torch.equal(model(batch), expected)
    assert batch.edge_index.dtype == torch.int32
