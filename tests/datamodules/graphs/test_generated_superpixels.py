"""Generated superpixels: sound graphs, and classes that only both ends of an object tell."""

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Voronoi
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import f1_score
from torch_geometric.data import Data
from torch_geometric.utils import is_undirected

from datamodules.graphs.generated_superpixels import (
    class_names,
    end_kinds,
    generate_superpixels,
    region_adjacency,
    textures,
)

CLASSES = 21


@pytest.fixture(scope="module")
def graphs() -> list[Data]:
    return generate_superpixels(60, seed=3, num_classes=CLASSES)


def objects_of(graph: Data) -> list[np.ndarray]:
    """The nodes of each object: connected regions that are not background."""
    source, target = graph.edge_index[:, (graph.y[graph.edge_index] > 0).all(0)].numpy()
    shape = (graph.num_nodes, graph.num_nodes)
    _, component = connected_components(coo_array((np.ones(len(source)), (source, target)), shape))
    inside = graph.y.numpy() > 0
    return [np.flatnonzero((component == c) & inside) for c in np.unique(component[inside])]


def seen_kinds(graph: Data, num_classes: int) -> np.ndarray:
    """The nearest texture of every node, from its features alone."""
    colours = graph.x[:, :12].double().numpy()
    mean, deviation, highest, lowest = np.split(colours, 4, axis=1)
    texture = [(deviation - 0.02) / 0.1, (highest - mean - 0.1) / 0.3, (mean - lowest - 0.1) / 0.3]
    distance = np.hstack(texture)[:, None] - textures(num_classes)
    return np.linalg.norm(distance, axis=2).argmin(1)


def test_equal_seeds_give_equal_graphs(graphs):
    for one, two in zip(generate_superpixels(5, 3, CLASSES), graphs, strict=False):
        assert all(torch.equal(one[key], two[key]) for key in ("x", "edge_index", "edge_attr", "y"))
    assert not torch.equal(generate_superpixels(1, 4, CLASSES)[0].y, graphs[0].y)


@pytest.mark.parametrize("num_classes", [21, 81, 8, 2])
def test_layout(num_classes):
    for graph in generate_superpixels(3, 0, num_classes):
        nodes, edges = graph.num_nodes, graph.num_edges
        assert graph.x.shape == (nodes, 14)
        assert graph.edge_attr.shape == (edges, 2)
        assert graph.y.shape == (nodes,)
        assert graph.x.dtype == graph.edge_attr.dtype == torch.float32
        assert graph.edge_index.dtype == graph.y.dtype == torch.int64
        assert graph.x.isfinite().all()
        assert 0 <= graph.y.min() < graph.y.max() < num_classes
        assert ((graph.edge_attr >= 0) & (graph.edge_attr <= torch.tensor([1, 2]))).all()
        assert is_undirected(graph.edge_index, graph.edge_attr)
        assert not graph.has_self_loops()
    names = class_names(num_classes)
    assert len(set(names)) == len(names) == num_classes


@pytest.mark.parametrize(("num", "num_classes"), [(0, 21), (1, 1)])
def test_impossible_numbers_are_refused(num, num_classes):
    with pytest.raises(ValueError, match=r"Expected num ≥ 1 and num_classes ≥ 2"):
        generate_superpixels(num, 0, num_classes)


def test_sizes_resemble_the_official_set(graphs):
    # Official: mean 479 nodes and 2,710 edges.
    assert 450 < np.mean([graph.num_nodes for graph in graphs]) < 510
    assert 2550 < np.mean([graph.num_edges for graph in graphs]) < 2900
    share = torch.cat([graph.y for graph in graphs]).gt(0).float().mean()
    assert 0.15 < share < 0.4
    assert all(len(objects_of(graph)) > 0 for graph in graphs)


def test_adjacency_and_boundaries_are_those_of_voronoi_cells():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(9), np.arange(8)), -1).reshape(-1, 2)
    centres = grid + rng.uniform(0.15, 0.85, grid.shape)
    edges, length = region_adjacency(centres)
    got = {(i, j): n for i, j, n in zip(*edges, length, strict=True)}
    voronoi = Voronoi(centres)
    inner = 0
    for (i, j), corners in zip(voronoi.ridge_points, voronoi.ridge_vertices, strict=True):
        if -1 in corners or np.linalg.norm(centres[i] - centres[j]) >= 2:
            continue
        first, last = voronoi.vertices[corners]
        assert got[i, j] == got[j, i] == pytest.approx(min(2, np.linalg.norm(first - last)))
        inner += 1
    assert inner > 150


def test_both_ends_of_an_object_tell_its_class(graphs):
    right = total = 0
    for graph in graphs:
        kinds = seen_kinds(graph, CLASSES)
        for nodes in objects_of(graph):
            (label,) = set(graph.y[nodes].tolist())
            first, second = (
                np.bincount(kinds[nodes], minlength=11)[kind].argmax()
                for kind in (slice(2, 6), slice(6, 11))
            )
            right += (first, second) == end_kinds(label, CLASSES)
            total += 1
    assert total > 60
    assert right / total > 0.95


def test_a_region_by_itself_says_object_or_not_but_no_class(graphs):
    """The F1 of a forest is about .05 over the classes and .94 for object against background."""
    x = [graph.x.numpy() for graph in graphs]
    y = [graph.y.numpy() for graph in graphs]
    train, test = slice(0, 45), slice(45, None)
    forest = ExtraTreesClassifier(30, min_samples_leaf=3, random_state=0)
    forest.fit(np.concatenate(x[train]), np.concatenate(y[train]))
    guess, truth = forest.predict(np.concatenate(x[test])), np.concatenate(y[test])
    labels = np.arange(1, CLASSES)
    f1 = f1_score(truth, guess, labels=labels, average="macro", zero_division=0)
    assert f1 < 0.15
    forest.fit(np.concatenate(x[train]), np.concatenate(y[train]) > 0)
    assert f1_score(truth > 0, forest.predict(np.concatenate(x[test]))) > 0.8
