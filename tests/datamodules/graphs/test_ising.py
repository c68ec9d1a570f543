"""Ising means against all 2ⁿ states, and trees that are trees."""

from itertools import product

import pytest
import torch

from datamodules.errors import DataError
from datamodules.graphs.ising import NODES, IsingDataModule, means, random_trees

GENERATOR = torch.Generator()


def brute_force(parent: torch.Tensor, field: torch.Tensor, coupling: float) -> torch.Tensor:
    """E[x_i] [n] of one tree, by summing over all states."""
    states = torch.tensor(list(product([-1.0, 1.0], repeat=len(parent))), dtype=torch.float64)
    energy = coupling * (states[:, 1:] * states[:, parent[1:]]).sum(1) + states @ field
    return energy.softmax(dim=0) @ states


@pytest.mark.parametrize("coupling", [1.0, -0.5])
@pytest.mark.parametrize("nodes", [2, 3, 7, 12])
def test_belief_propagation_equals_brute_force(nodes, coupling):
    parent = random_trees(5, nodes, GENERATOR.manual_seed(nodes))
    field = torch.randn(5, nodes, dtype=torch.float64)
    got = means(parent, field, coupling)
    want = torch.stack([brute_force(*tree, coupling) for tree in zip(parent, field, strict=True)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_random_trees_are_all_trees_and_uniform():
    """Rooted at node 0, parents first; each of the 16 labelled trees of 4 nodes is as likely."""
    parent = random_trees(16000, 4, GENERATOR.manual_seed(0))
    assert (parent[:, 0] == -1).all()
    assert (parent[:, 1:] >= 0).all()
    assert (parent < torch.arange(4)).all()
    # 12 of the 16 are paths, 4 are stars.
    degree = torch.zeros_like(parent).scatter_add_(1, parent[:, 1:], torch.ones_like(parent[:, 1:]))
    degree[:, 1:] += 1
    assert (degree.amax(dim=1) == 3).double().mean() == pytest.approx(0.25, abs=0.02)
    # A star is rooted at its centre as often as at each of its 3 leaves.
    stars = degree[degree.amax(dim=1) == 3]
    assert (stars[:, 0] == 3).double().mean() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("topology", NODES)
def test_graphs_carry_fields_means_and_both_directions(topology, tmp_path):
    data = IsingDataModule(topology, cache_dir=tmp_path, generated_size=[20, 4, 4])
    data.prepare_data()
    data.setup()
    graphs = list(data.train_dataset)
    for graph in graphs:
        n = NODES[topology]
        assert graph.x.shape == graph.y.shape == (n, 1)
        assert graph.edge_index.shape == (2, 2 * (n - 1))
        assert graph.is_undirected()
        down = graph.edge_index[:, : n - 1]
        assert (down[0] < down[1]).all()
        assert down[1].tolist() == list(range(1, n))
        parent = torch.cat([torch.tensor([-1]), down[0]])
        exact = means(parent[None], graph.x.double().T, 1.0)
        torch.testing.assert_close(graph.y.T.double(), exact, rtol=0, atol=1e-5)
    same = all(g.edge_index.equal(graphs[0].edge_index) for g in graphs)
    assert same == (topology != "prufer")
    assert data.provenance["source"] == "generated"
    assert data.sizes(data.val_dataset).tolist() == [NODES[topology]] * 4


def test_depth_of_the_complete_binary_tree(tmp_path):
    data = IsingDataModule(cache_dir=tmp_path, generated_size=[1, 1, 1])
    data.prepare_data()
    data.setup()
    (graph,) = data.train_dataset
    degree = torch.bincount(graph.edge_index[0])
    assert degree.tolist() == [2] + [3] * 14 + [1] * 16


def test_an_unknown_topology_is_one_sentence():
    with pytest.raises(DataError, match="one of binary_tree, path, prufer"):
        IsingDataModule("ring")
