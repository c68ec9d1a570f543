"""Edge embeddings against the explicit line graph, built edge by edge, and at the size of a hub."""

import time
from functools import partial

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_undirected

from lit_models.graphs.edge_embeddings import (
    EdgeEmbeddings,
    NodeEmbeddings,
    NodeEncoder,
    find_edges,
)
from lit_models.graphs.encoders import LinearEncoder
from lit_models.graphs.heads import LinearNodeHead, NodeHead
from lit_models.graphs.tasks import NodeRegression, Regression
from lit_models.module import LitModule
from tests.graphs import TOPOLOGIES, batch_of_all, edge_index, graph_model, molecule_like


def random_graph(nodes: int, entries: int, both_ways: bool) -> Data:
    """Random entries, self-loops and repeats among them."""
    edges = torch.randint(nodes, (2, entries))
    return Data(edge_index=to_undirected(edges) if both_ways else edges, num_nodes=nodes)


def cases() -> dict[str, Batch]:
    graphs = {
        name: Data(edge_index=edge_index(name), num_nodes=n) for name, (n, _) in TOPOLOGIES.items()
    }
    torch.manual_seed(0)
    graphs["random"] = random_graph(9, 25, both_ways=False)
    graphs["random, both ways"] = random_graph(30, 60, both_ways=True)
    alone = {name: Batch.from_data_list([graph]) for name, graph in graphs.items()}
    return alone | {"batch": Batch.from_data_list(list(graphs.values()))}


GRAPHS = cases()


def line_graph(graph: Batch, directed: bool) -> tuple[list[tuple[int, int]], list[torch.Tensor]]:
    """All edges as pairs, in order, and by definition the line graph's adjacencies [M, M]."""
    pairs = {tuple(p) if directed else tuple(sorted(p)) for p in graph.edge_index.T.tolist()}
    edges = sorted(pairs)

    def hears(edge: tuple, other: tuple) -> bool:
        if not directed:
            return bool(set(edge) & set(other))
        return other[1] == edge[0] and other != edge[::-1]

    rows = [[hears(edge, other) for other in edges] for edge in edges]
    adjacency = torch.tensor(rows, dtype=torch.float64).reshape(len(edges), len(edges))
    if not directed:
        return edges, [adjacency]
    is_down = torch.tensor([u <= v for u, v in edges], dtype=torch.bool)
    return edges, [adjacency * is_down, adjacency * ~is_down]


def dense_forward(model: EdgeEmbeddings, batch: Batch) -> torch.Tensor:
    """The edge version on the explicit line graph, node by node and edge by edge."""
    net = model.net
    edges, relations = line_graph(batch, net.directed)
    x, edge_attr = net.encoder(batch)
    entries = batch.edge_index.T.tolist()
    h = []
    for u, v in edges:
        ends = torch.cat([x[u], x[v]]) if net.concatenate else x[u] + x[v]
        state = net.initial(ends)
        if edge_attr is not None:
            mine = [
                i
                for i, e in enumerate(entries)
                if (u, v) == tuple(e if net.directed else sorted(e))
            ]
            state = state + edge_attr[mine].mean(dim=0)
        h.append(state)
    h = torch.stack(h) if h else x.new_zeros(0, x.shape[1])
    for block in net.blocks:
        means = [a @ h / a.sum(dim=1, keepdim=True).clamp(min=1) for a in relations]
        h = h + torch.relu(torch.cat(means, dim=1) @ block.linear.weight.T + block.linear.bias)
    at_nodes = []
    for v in range(batch.num_nodes):
        mine = [i for i, e in enumerate(edges) if v in (e[1:] if net.directed else e)]
        at_nodes.append(h[mine].mean(dim=0) if mine else torch.zeros_like(x[0]))
    return net.head(torch.stack(at_nodes), batch)


KINDS = {
    "undirected": {"head": NodeHead},
    "oriented": {"head": LinearNodeHead, "oriented": True},
    "directed": {"head": LinearNodeHead, "directed": True},
}


@pytest.mark.parametrize("has_edge_features", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRAPHS)
def test_edge_version_equals_the_explicit_line_graph(name, kind, has_edge_features):
    encoder = partial(NodeEncoder, node_size=3)
    if has_edge_features:
        encoder = partial(LinearEncoder, node_size=3, edge_size=2)
    model = graph_model(
        NodeRegression(2), EdgeEmbeddings, encoder, width=6, layers=3, **KINDS[kind]
    ).double()
    batch = GRAPHS[name].clone()
    batch.x = torch.randn(batch.num_nodes, 3, dtype=torch.float64)
    batch.edge_attr = torch.randn(batch.num_edges, 2, dtype=torch.float64)
    wanted = [batch.x.requires_grad_(), *model.parameters()]
    weight = torch.randn(batch.num_nodes, 2, dtype=torch.float64)
    outputs = [f(batch) for f in (model, partial(dense_forward, model))]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-10)
    gradients = [
        torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
        for y in outputs
    ]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", GRAPHS)
def test_node_version_is_the_mean_over_neighbours(name):
    """Undirected and with one matrix for smaller and one for larger numbers."""
    batch = GRAPHS[name].clone()
    batch.x = torch.randn(batch.num_nodes, 3, dtype=torch.float64)
    for directed in (False, True):
        model = graph_model(
            NodeRegression(1),
            NodeEmbeddings,
            partial(NodeEncoder, node_size=3),
            LinearNodeHead,
            directed=directed,
            width=4,
            layers=2,
        ).double()
        h = model.net.encoder.nodes(batch.x)
        for block in model.net.blocks:
            rows = []
            for v in range(batch.num_nodes):
                heard = [u for u, w in batch.edge_index.T.tolist() if w == v]
                groups = [heard]
                if directed:
                    groups = [[u for u in heard if u <= v], [u for u in heard if u > v]]
                means = [h[g].mean(dim=0) if g else torch.zeros_like(h[0]) for g in groups]
                rows.append(block.linear(torch.cat(means)))
            h = h + torch.relu(torch.stack(rows))
        torch.testing.assert_close(model(batch), model.net.head(h, batch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("directed", [False, True])
def test_a_star_of_100_000_leaves_takes_seconds(directed):
    """Its line graph has 10¹⁰ edges."""
    leaves = 100_000
    leaf = torch.arange(1, leaves + 1)
    there = torch.stack([torch.zeros_like(leaf), leaf])
    star = Data(x=torch.randn(leaves + 1, 1), edge_index=torch.cat([there, there.flip(0)], dim=1))
    batch = Batch.from_data_list([star])
    model = graph_model(
        NodeRegression(1),
        EdgeEmbeddings,
        partial(NodeEncoder, node_size=1),
        LinearNodeHead,
        directed=directed,
        width=8,
        layers=2,
    )
    begin = time.perf_counter()
    model(batch).square().mean().backward()
    assert time.perf_counter() - begin < 20
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_parallel_entries_are_one_edge_and_reverses_are_found():
    entries = torch.tensor([[0, 1, 0, 1, 2, 3], [1, 0, 1, 2, 2, 1]])
    edges = find_edges(entries, 4, directed=False)
    assert list(zip(edges.source.tolist(), edges.target.tolist(), strict=True)) == [
        (0, 1),
        (1, 2),
        (1, 3),
        (2, 2),
    ]
    assert edges.of_entry.tolist() == [0, 0, 0, 1, 3, 2]
    edges = find_edges(entries, 4, directed=True)
    # 0 → 1, 1 → 0, 1 → 2, 2 → 2, 3 → 1
    assert edges.reverse.tolist() == [1, 0, -1, 3, -1]


MOLECULES = {
    "node": NodeEmbeddings,
    "edge": EdgeEmbeddings,
    "directed": partial(EdgeEmbeddings, directed=True),
}


def molecule_model(kind: str, **options) -> LitModule:
    return graph_model(Regression(10), MOLECULES[kind], width=16, layers=2, **options)


@pytest.mark.parametrize("kind", MOLECULES)
def test_molecules_do_not_hear_each_other(kind):
    model = molecule_model(kind, norm=True).eval()
    graphs = [molecule_like(name) for name in TOPOLOGIES]
    together = model(Batch.from_data_list(graphs))
    alone = torch.cat([model(Batch.from_data_list([graph])) for graph in graphs])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["node", "edge"])
def test_without_direction_the_order_of_atoms_and_bonds_does_not_matter(kind):
    model = molecule_model(kind, norm=True).eval()
    graph = molecule_like("hub")
    order, entries = torch.randperm(8), torch.randperm(graph.num_edges)
    permuted = Data(
        x=graph.x[order],
        edge_index=order.argsort()[graph.edge_index][:, entries],
        edge_attr=graph.edge_attr[entries],
    )
    outputs = [model(Batch.from_data_list([g])) for g in (graph, permuted)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MOLECULES)
def test_every_parameter_matters(kind):
    model = molecule_model(kind, norm=True, dropout=0.1)
    batch = batch_of_all()
    model.task.loss(model(batch), batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", MOLECULES)
def test_bonds_are_seen(kind):
    model = molecule_model(kind).eval()
    graph = molecule_like("both ways")
    other = graph.clone()
    other.edge_attr = (graph.edge_attr + 1) % 2
    outputs = [model(Batch.from_data_list([g])) for g in (graph, other)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def test_a_single_atom_can_be_trained_on():
    for kind in MOLECULES:
        model = molecule_model(kind, norm=True)
        batch = Batch.from_data_list([molecule_like("singleton")])
        model.task.loss(model(batch), batch).backward()
