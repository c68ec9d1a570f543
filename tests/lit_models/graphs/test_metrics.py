"""The benchmark metrics against independent implementations."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor
from torch.multiprocessing import start_processes

from lit_models.graphs.metrics import (
    AveragePrecision,
    MacroF1,
    MeanAbsoluteError,
    MeanReciprocalRank,
)
from tests import loopback

Graph = tuple[Tensor, Tensor, Tensor]


def labelled_scores(seed: int, n: int = 200, num_labels: int = 6) -> tuple[Tensor, Tensor]:
    """Logits with ties and targets with missing entries; labels 0 and 1 are one-sided."""
    generator = torch.Generator().manual_seed(seed)
    logits = (20 * torch.randn(n, num_labels, generator=generator)).round()
    target = (torch.rand(n, num_labels, generator=generator) < 0.3).float()
    target[:, 0], target[:, 1] = 0, 1
    target[torch.rand(n, num_labels, generator=generator) < 0.2] = torch.nan
    return logits, target


def expected_average_precision(logits: Tensor, target: Tensor) -> np.ndarray:
    values = []
    for score, label in zip(logits.double().numpy().T, target.numpy().T, strict=True):
        present = ~np.isnan(label)
        both = len(set(label[present])) == 2
        values.append(average_precision_score(label[present], score[present]) if both else np.nan)
    return np.array(values)


def random_graph(seed: int) -> Graph:
    """A score matrix with ties, and labelled pairs of which some are positive."""
    generator = torch.Generator().manual_seed(seed)
    num_nodes = int(torch.randint(5, 12, (), generator=generator))
    scores = torch.randint(0, 6, (num_nodes, num_nodes), generator=generator).float()
    pairs = torch.randperm(num_nodes**2, generator=generator)[:15]
    index = torch.stack([pairs // num_nodes, pairs % num_nodes])
    return scores, index, (torch.rand(15, generator=generator) < 0.5).int()


def expected_mrr(graphs: list[Graph], filtered: bool) -> float:
    means = []
    for scores, index, label in graphs:
        rows, pairs = scores.tolist(), [tuple(p) for p in index.T.tolist()]
        positives = [pair for pair, one in zip(pairs, label.tolist(), strict=True) if one]
        reciprocal = []
        for head, tail in positives:
            rank = 1.0
            for other, score in enumerate(rows[head]):
                if other == tail or (filtered and (head, other) in positives):
                    continue
                rank += 1.0 if score > rows[head][tail] else 0.5 * (score == rows[head][tail])
            reciprocal.append(1 / rank)
        if reciprocal:
            means.append(sum(reciprocal) / len(reciprocal))
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_scikit_learn(seed: int) -> None:
    logits, target = labelled_scores(seed)
    metric = AveragePrecision(num_labels=6)
    metric.update(logits, target)
    expected = expected_average_precision(logits, target)
    assert np.isnan(expected[:2]).all()
    np.testing.assert_allclose(metric.per_label(), expected, rtol=1e-5)
    assert metric.compute().item() == pytest.approx(np.nanmean(expected), rel=1e-5)


def test_average_precision_keeps_the_order_of_large_logits() -> None:
    logits = torch.tensor([[30.0], [31.0], [32.0], [33.0]])  # sigmoid is 1.0 for all, in float32
    target = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    metric = AveragePrecision(num_labels=1)
    metric.update(logits, target)
    assert metric.compute().item() == pytest.approx(1 / 4)


def test_average_precision_is_one_order_over_batches_of_different_scale() -> None:
    # torchmetrics decides per update whether to apply a sigmoid: [.9] stays, [3.] becomes .95.
    scores, target = (
        torch.tensor([[0.9], [0.1], [3.0], [-3.0]]),
        torch.tensor([[1.0], [0], [0], [1]]),
    )
    metric = AveragePrecision(num_labels=1)
    metric.update(scores[:2], target[:2])
    metric.update(scores[2:], target[2:])
    expected = average_precision_score(target[:, 0], scores[:, 0])
    assert metric.compute().item() == pytest.approx(expected)


def test_average_precision_without_a_defined_label_is_nan() -> None:
    metric = AveragePrecision(num_labels=2)
    metric.update(torch.randn(4, 2), torch.ones(4, 2))
    assert metric.compute().isnan()
    assert metric.per_label().isnan().all()


@pytest.mark.parametrize("seed", range(3))
def test_mean_absolute_error_equals_numpy(seed: int) -> None:
    preds, target = torch.randn(2, 50, 11, generator=torch.Generator().manual_seed(seed))
    target[torch.rand(50, 11) < 0.3] = torch.nan
    metric = MeanAbsoluteError()
    metric.update(preds, target)
    expected = np.nanmean(np.abs(preds.numpy() - target.numpy()))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_equals_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(300, 21, generator=generator)
    logits[:, [4, 5]] = -100.0  # never predicted; 5 is not a label either
    labels = torch.randint(0, 21, (300,), generator=generator)
    labels[(labels == 5) | (labels == 6)] = 0  # 6 is predicted, never a label
    metric = MacroF1(num_classes=21)
    metric.update(logits, labels)
    expected = f1_score(labels, logits.argmax(1), average="macro", zero_division=0)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("filtered", [False, True])
def test_mean_reciprocal_rank_equals_loops(filtered: bool) -> None:
    graphs = [random_graph(seed) for seed in range(20)]
    scores, index, _ = graphs[0]
    graphs.append((scores, index, torch.zeros(15)))  # no positive pair: skipped
    one_by_one, at_once = MeanReciprocalRank(filtered), MeanReciprocalRank(filtered)
    for graph in graphs:
        one_by_one.update(*graph)
    at_once.update(*(list(column) for column in zip(*graphs, strict=True)))
    assert one_by_one.compute().item() == pytest.approx(expected_mrr(graphs, filtered), rel=1e-5)
    assert torch.equal(one_by_one.compute(), at_once.compute())


def test_mean_reciprocal_rank_by_hand() -> None:
    scores = torch.tensor([[0.0, 3.0, 2.0, 1.0], *[[0.0] * 4] * 3])
    index, label = torch.tensor([[0, 0, 0], [1, 2, 3]]), torch.tensor([1, 1, 0])
    values = []
    for filtered in (False, True):
        metric = MeanReciprocalRank(filtered)
        metric.update(scores, index, label)
        values.append(metric.compute().item())
    assert values == [pytest.approx((1 + 1 / 2) / 2), pytest.approx(1.0)]


def test_mean_reciprocal_rank_averages_over_graphs_first() -> None:
    # Two positives of rank 2 and 2 in one graph, one of rank 1 in the other.
    scores = torch.tensor([[5.0, 1.0, 0.0], [1.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    metric = MeanReciprocalRank(filtered=False)
    metric.update(scores, torch.tensor([[0, 1], [1, 0]]), torch.ones(2))
    metric.update(scores, torch.tensor([[0], [0]]), torch.ones(1))
    assert metric.compute().item() == pytest.approx((1 / 2 + 1) / 2)


def test_equal_scores_rank_in_the_middle() -> None:
    metric = MeanReciprocalRank(filtered=False)
    metric.update(torch.zeros(9, 9), torch.tensor([[0], [4]]), torch.ones(1))
    assert metric.compute().item() == pytest.approx(1 / 5)


def batches_of(name: str) -> tuple[Callable[[], torchmetrics.Metric], list[tuple[Tensor, ...]]]:
    """A metric's constructor and four unequal batches for it."""
    if name == "average_precision":
        logits, target = labelled_scores(0)
        chunks = [slice(0, 50), slice(50, 60), slice(60, 61), slice(61, 200)]
        return lambda: AveragePrecision(6), [(logits[c], target[c]) for c in chunks]
    generator = torch.Generator().manual_seed(1)
    sizes = (30, 1, 7, 12)
    if name == "mean_absolute_error":
        pairs = [torch.randn(2, n, 3, generator=generator) for n in sizes]
        return MeanAbsoluteError, [(pair[0], pair[1]) for pair in pairs]
    if name == "macro_f1":
        logits = [torch.randn(n, 5, generator=generator) for n in sizes]
        labels = [torch.randint(0, 5, (n,), generator=generator) for n in sizes]
        return lambda: MacroF1(5), list(zip(logits, labels, strict=True))
    return lambda: MeanReciprocalRank(True), [random_graph(seed) for seed in range(4)]


METRICS = ("average_precision", "mean_absolute_error", "macro_f1", "mean_reciprocal_rank")


@pytest.mark.parametrize("name", METRICS[:3])
def test_several_updates_equal_one(name: str) -> None:
    make, batches = batches_of(name)
    several, one = make(), make()
    for batch in batches:
        several.update(*batch)
    one.update(*(torch.cat(column) for column in zip(*batches, strict=True)))
    torch.testing.assert_close(several.compute(), one.compute())


def values_of_one_process(batches_by_name: list[list[tuple[Tensor, ...]]]) -> list[Tensor]:
    values = []
    for name, batches in zip(METRICS, batches_by_name, strict=True):
        metric = batches_of(name)[0]()
        for batch in batches:
            metric.update(*batch)
        values.append(metric.compute())
        if isinstance(metric, AveragePrecision):
            values.append(metric.per_label())
    return values


def check_process(rank: int, store: str) -> None:
    torch.set_num_threads(1)  # a forked process cannot use its parent's thread pool
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    batches = [batches_of(name)[1] for name in METRICS]
    both_work = values_of_one_process([every[rank::2] for every in batches])
    # The second process has seen no data; torchmetrics gathers an empty tensor from it.
    one_idles = values_of_one_process([every if rank == 0 else [] for every in batches])
    torch.distributed.destroy_process_group()
    expected = values_of_one_process(batches)
    torch.testing.assert_close(both_work, expected, equal_nan=True)
    torch.testing.assert_close(one_idles, expected, equal_nan=True)


@loopback.needed
def test_two_processes_equal_one(tmp_path: Path) -> None:
    # Forked, as importing torch twice more would take most of the test's time.
    start_processes(check_process, (str(tmp_path / "store"),), nprocs=2, start_method="fork")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AveragePrecision(2).update(torch.zeros(3, 4), torch.zeros(3, 4)), "num_labels"),
        (lambda: AveragePrecision(2).update(torch.zeros(3, 2), torch.zeros(4, 2)), "one shape"),
        (lambda: AveragePrecision(1).update(torch.zeros(3, 1), 2 * torch.ones(3, 1)), "0, 1"),
        (
            lambda: AveragePrecision(1).update(torch.full((3, 1), torch.nan), torch.ones(3, 1)),
            "NaN",
        ),
        (lambda: MeanAbsoluteError().update(torch.zeros(3, 1), torch.zeros(3, 2)), "one shape"),
        (
            lambda: MeanReciprocalRank(True).update(
                torch.zeros(3, 4), torch.zeros(2, 1, dtype=torch.long), torch.ones(1)
            ),
            "score matrix",
        ),
        (
            lambda: MeanReciprocalRank(True).update(
                torch.zeros(3, 3), torch.zeros(2, 2, dtype=torch.long), torch.ones(1)
            ),
            "edge_label_index",
        ),
        (
            lambda: MeanReciprocalRank(True).update(
                torch.full((3, 3), torch.nan), torch.zeros(2, 1, dtype=torch.long), torch.ones(1)
            ),
            "NaN",
        ),
    ],
)
def test_wrong_inputs_are_named(call: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
