"""Losses, constant predictors and targets of every kind of task, by hand."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch_geometric.data import Batch, Data

from lit_models.graphs.tasks import (
    ContactPrediction,
    GraphClassification,
    MultilabelClassification,
    NodeClassification,
    NodeRegression,
    Regression,
)
from lit_models.module import UnfitDataError
from tests.graphs import molecule_like


def graphs_with(y: torch.Tensor) -> Batch:
    graphs = [molecule_like("path") for _ in y]
    for graph, row in zip(graphs, y, strict=True):
        graph.y = row[None]
    return Batch.from_data_list(graphs)


def test_missing_labels_do_not_count():
    y = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    batch, logits = graphs_with(y), torch.tensor([[0.3, 9.0], [-1.0, 0.5]])
    expected = F.binary_cross_entropy_with_logits(
        logits.flatten()[[0, 2, 3]], torch.tensor([1.0, 0, 1])
    )
    torch.testing.assert_close(MultilabelClassification(2).loss(logits, batch), expected)
    expected = torch.tensor([0.7, 1.0, 0.5]).mean()
    torch.testing.assert_close(Regression(2).loss(logits, batch), expected)


@pytest.mark.parametrize("task", [MultilabelClassification(2), Regression(2)])
def test_a_batch_without_any_known_label_has_loss_zero_and_no_gradient(task):
    batch = graphs_with(torch.full((2, 2), math.nan))
    prediction = torch.randn(2, 2, requires_grad=True)
    loss = task.loss(prediction, batch)
    loss.backward()
    assert loss == 0
    assert torch.equal(prediction.grad, torch.zeros(2, 2))


def test_a_batch_without_any_pair_has_loss_zero_and_no_gradient():
    batch = Batch.from_data_list([pair_graph(3, [(0, 1)], [1])])
    batch.edge_label_index, batch.edge_label = batch.edge_label_index[:, :0], batch.edge_label[:0]
    prediction = torch.randn(3, 2, requires_grad=True)
    loss = ContactPrediction(2).loss(prediction, batch)
    loss.backward()
    assert loss == 0
    assert torch.equal(prediction.grad, torch.zeros(3, 2))


def classes(y: torch.Tensor) -> Batch:
    graphs = [molecule_like("path") for _ in y]
    for graph, row in zip(graphs, y, strict=True):
        graph.y = row
    return Batch.from_data_list(graphs)


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 1)], ids=["[G]", "[G, 1]"])
def test_classes_of_graphs_by_hand(shape):
    task, batch = GraphClassification(3), classes(torch.tensor([2, 0, 2, 1]).reshape(shape))
    logits = torch.tensor([[0.0, 0, 3], [1, 0, 0], [2, 0, 0], [0, 1, 0]])
    nll = -logits.log_softmax(dim=1)
    expected = (nll[0, 2] + nll[1, 0] + nll[2, 2] + nll[3, 1]) / 4
    torch.testing.assert_close(task.loss(logits, batch), expected)
    metrics = task.metrics()
    task.update(metrics, logits, batch)
    scores = task.scores(metrics)
    assert scores["accuracy"] == pytest.approx(3 / 4)
    # Of classes 0, 1 and 2, F1 is 2/3, 1 and 2/3.
    assert scores["f1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    trivial = task.score_trivial([batch], [batch])
    assert (task.trivial, trivial["accuracy"]) == ("majority", pytest.approx(1 / 2))
    assert task.targets(batch) == 4
    drawn = task.drawn(1e4 * logits, batch)
    assert drawn.y.tolist() == [2, 0, 0, 1]
    assert batch.y.flatten().tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize(
    ("y", "what"),
    [
        (torch.tensor([[1.0], [0.0]]), "integers"),
        (torch.tensor([[1, 0], [0, 1]]), "integers"),
        (torch.tensor([[1], [2]]), "Expected classes from 0 to 1, got 1 to 2"),
        (torch.tensor([[-1], [1]]), "Expected classes from 0 to 1, got -1 to 1"),
    ],
)
def test_other_labels_are_refused_in_a_sentence(y, what):
    with pytest.raises(UnfitDataError, match=what):
        GraphClassification(2).loss(torch.zeros(2, 2), classes(y))


def test_one_output_is_no_classification():
    with pytest.raises(ValueError, match="num_outputs=2"):
        GraphClassification(1)


def test_constant_of_labels_is_their_frequency():
    task = MultilabelClassification(2)
    y = torch.tensor([[1.0, math.nan], [0, 1], [0, 0], [0, 0]])
    torch.testing.assert_close(task.constant(y).sigmoid(), torch.tensor([0.25, 1 / 3]))
    score = task.score_trivial([graphs_with(y)], [graphs_with(y)])
    # A constant ranks nothing: its average precision is the share of positives.
    assert score["ap"] == pytest.approx((0.25 + 1 / 3) / 2)


def test_constant_of_targets_is_their_median():
    y = torch.tensor([[0.0], [1.0], [10.0]])
    assert Regression(1).score_trivial([graphs_with(y)], [graphs_with(y)])["mae"] == pytest.approx(
        10 / 3
    )


def nodes(y: list[int]) -> Batch:
    empty = torch.zeros(2, 0, dtype=torch.int64)
    return Batch.from_data_list(
        [Data(x=torch.zeros(len(y), 1), edge_index=empty, y=torch.tensor(y))]
    )


def test_frequent_classes_weigh_less():
    """Three nodes of class 0, one of class 1: weights 1/4 and 3/4."""
    batch, logits = nodes([0, 0, 0, 1]), torch.randn(4, 3)
    nll = -logits.log_softmax(dim=1)
    weighted = torch.stack(
        [nll[i, c] * w for i, (c, w) in enumerate([(0, 0.25)] * 3 + [(1, 0.75)])]
    )
    expected = weighted.sum() / (3 * 0.25 + 0.75)
    torch.testing.assert_close(NodeClassification(3).loss(logits, batch), expected)


def test_nodes_of_one_class_weigh_alike():
    """Its weight of 1 − 1 = 0 would make the weighted mean 0 / 0."""
    batch, logits = nodes([1, 1, 1]), torch.randn(3, 3)
    expected = -logits.log_softmax(dim=1)[:, 1].mean()
    torch.testing.assert_close(NodeClassification(3).loss(logits, batch), expected)


def test_constant_of_classes_is_the_most_frequent_one():
    batch = nodes([2, 2, 0])
    score = NodeClassification(3).score_trivial([batch], [batch])
    assert score["f1"] == pytest.approx((0.8 + 0) / 2)


def pair_graph(nodes: int, pairs: list[tuple[int, int]], labels: list[int]) -> Data:
    empty = torch.zeros(2, 0, dtype=torch.int64)
    index = torch.tensor(pairs).T.contiguous()
    return Data(
        x=torch.zeros(nodes, 1),
        edge_index=empty,
        edge_label_index=index,
        edge_label=torch.tensor(labels),
    )


def test_contacts_are_scored_graph_by_graph():
    """In each graph node 0 is closest to node 2: the true tail 2 ranks first, 1 does not."""
    batch = Batch.from_data_list(
        [pair_graph(3, [(0, 2), (0, 1)], [1, 0]), pair_graph(3, [(0, 1)], [1])]
    )
    vectors = torch.tensor([[1.0, 0], [0.2, 0], [2.0, 0]]).repeat(2, 1)
    task = ContactPrediction(2)
    logits = torch.tensor([2.0, 0.2, 0.2])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0, 1]))
    torch.testing.assert_close(task.loss(vectors, batch), expected)
    metrics = task.metrics()
    task.update(metrics, vectors, batch)
    # second graph: 2 (score 2) and 0 itself (score 1) are ahead of 1 (score .2)
    assert float(metrics.compute()["mrr"]) == pytest.approx((1 + 1 / 3) / 2)


def test_regression_of_nodes_is_squared_error_and_its_root():
    batch = nodes([0, 0, 0, 0])
    batch.y = torch.tensor([[0.0], [1.0], [2.0], [5.0]])
    prediction = torch.tensor([[0.0], [1.0], [4.0], [1.0]])
    task = NodeRegression(1)
    assert task.loss(prediction, batch) == pytest.approx(5.0)
    metrics = task.metrics()
    for part in (slice(0, 1), slice(1, 4)):  # updates of different sizes weigh by their rows
        metrics.update(prediction[part], batch.y[part])
    assert metrics.compute() == {"mse": pytest.approx(5.0), "rmse": pytest.approx(5.0**0.5)}
    assert task.score_trivial([batch], [batch])["mse"] == pytest.approx(3.5)
    assert not task.maximise
    with pytest.raises(ValueError, match="one shape"):
        metrics.update(prediction, batch.y.flatten())
