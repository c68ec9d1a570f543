"""The metrics of GLUE against scikit-learn and SciPy; hidden words against counts by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn import functional as F

from lit_models.text.tasks import (
    GLUE_TASKS,
    IGNORED,
    Acceptability,
    Bigrams,
    Inference,
    MaskedLanguageModelling,
    Paraphrase,
    SentenceClassification,
    Similarity,
    glue_task,
)


def batch_of(label: list[float] | Tensor, mismatched: list[bool] | None = None) -> dict:
    label = torch.as_tensor(label)
    mismatched = mismatched or [False] * len(label)
    return {"label": label, "mismatched": torch.tensor(mismatched)}


def scores_in_parts(task, prediction: Tensor, batch: dict) -> dict[str, float]:
    """Scores of uneven batches: a mean of batches would differ."""
    metrics = task.metrics()
    for part in (slice(0, 5), slice(5, 6), slice(6, None)):
        task.update(metrics, prediction[part], {k: v[part] for k, v in batch.items()})
    return {name: float(value) for name, value in task.scores(metrics).items()}


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_scored_as_by_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(80, generator=generator) < 0.7).long()
    logits = torch.randn(80, 2, generator=generator) + 1.0 * torch.eye(2)[label]
    said, batch = logits.argmax(1), batch_of(label)
    accuracy, f1 = accuracy_score(label, said), f1_score(label, said)
    assert scores_in_parts(Acceptability(), logits, batch) == {
        "matthews": pytest.approx(matthews_corrcoef(label, said), abs=1e-6),
        "accuracy": pytest.approx(accuracy),
    }
    assert scores_in_parts(Paraphrase(), logits, batch) == {
        "f1": pytest.approx(f1),
        "accuracy": pytest.approx(accuracy),
        "f1_accuracy": pytest.approx((f1 + accuracy) / 2),
    }
    assert scores_in_parts(SentenceClassification(), logits, batch)["accuracy"] == pytest.approx(
        accuracy
    )
    expected = F.cross_entropy(logits, label)
    torch.testing.assert_close(Acceptability().loss(logits, batch), expected)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_scored_as_by_scipy(seed):
    generator = torch.Generator().manual_seed(seed)
    label = (20 * torch.rand(60, generator=generator)).round() / 4  # with ties
    said = (label + 2 * torch.randn(60, generator=generator)).round().unsqueeze(1)
    pearson = pearsonr(said[:, 0], label).statistic
    spearman = spearmanr(said[:, 0], label).statistic
    assert scores_in_parts(Similarity(), said, batch_of(label)) == {
        "pearson": pytest.approx(pearson, abs=1e-5),
        "spearman": pytest.approx(spearman, abs=1e-5),
        "pearson_spearman": pytest.approx((pearson + spearman) / 2, abs=1e-5),
    }
    torch.testing.assert_close(
        Similarity().loss(said, batch_of(label)), (said[:, 0] - label).square().mean()
    )


def test_genres_are_scored_apart():
    label, said = [0, 1, 2, 2, 1, 0, 1], [0, 1, 2, 0, 0, 0, 2]
    away = [False, False, False, False, True, True, True]
    logits = torch.eye(3)[said]
    assert scores_in_parts(Inference(), logits, batch_of(label, away)) == {
        "accuracy_matched": pytest.approx(3 / 4),
        "accuracy_mismatched": pytest.approx(1 / 3),
    }
    alone = scores_in_parts(Inference(), logits, batch_of(label))
    assert alone == {"accuracy_matched": pytest.approx(4 / 7)}


def test_the_trivial_answer_is_the_majority_or_the_mean():
    train, test = [batch_of([1, 1, 0]), batch_of([1])], [batch_of([1, 1, 1, 0])]
    assert SentenceClassification().score_trivial(train, test) == {"accuracy": 0.75}
    assert Acceptability().score_trivial(train, test) == {"matthews": 0.0, "accuracy": 0.75}
    f1 = f1_score([1, 1, 1, 0], [1, 1, 1, 1])
    assert Paraphrase().score_trivial(train, test)["f1"] == pytest.approx(f1)
    numbers = [batch_of([1.0, 4.0, 2.5])]
    assert Similarity().score_trivial(numbers, numbers)["pearson_spearman"] == 0.0
    assert float(Similarity().constant(torch.tensor([1.0, 4.0]))) == 2.5


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_every_task_selects_by_a_score_that_it_has(name):
    task = glue_task(name)
    label = torch.arange(12.0) % 5 if task.num_outputs == 1 else torch.arange(12) % 2
    prediction = torch.randn(12, task.num_outputs)
    assert task.selection in scores_in_parts(task, prediction, batch_of(label))
    assert task.maximise


def test_an_unknown_task_is_one_sentence():
    with pytest.raises(ValueError, match="choose one of cola, sst2"):
        glue_task("ax")


# --- Hidden words -----------------------------------------------------------------------------

CLS, SEP, MASK, FIRST, V = 0, 1, 2, 3, 8


def text(rows: list[list[int]], hidden: list[list[int]]) -> dict[str, Tensor]:
    """[CLS] … [SEP] with words hidden at the given places."""
    clean = torch.tensor([[CLS, *row, SEP] for row in rows])
    tokens, labels = clean.clone(), torch.full_like(clean, IGNORED)
    for row, places in enumerate(hidden):
        labels[row, places] = clean[row, places]
        tokens[row, places] = MASK
    return {
        "tokens": tokens,
        "labels": labels,
        "lengths": torch.tensor([clean.shape[1]] * len(rows)),
    }


def test_hidden_words_are_scored_one_by_one():
    batches = [text([[3, 4, 5], [6, 7, 3]], [[1, 2], []]), text([[5, 5, 4]], [[3]])]
    task, logits = MaskedLanguageModelling(V), [torch.randn(2, V), torch.randn(1, V)]
    metrics = task.metrics()
    for batch, prediction in zip(batches, logits, strict=True):
        task.update(metrics, prediction, batch)
    target = torch.tensor([3, 4, 4])
    nll = F.cross_entropy(torch.cat(logits), target)
    right = (torch.cat(logits).argmax(1) == target).float().mean()
    assert {name: float(value) for name, value in task.scores(metrics).items()} == {
        "cross_entropy": pytest.approx(float(nll), rel=1e-5),
        "perplexity": pytest.approx(float(nll.exp()), rel=1e-5),
        "accuracy": pytest.approx(float(right)),
    }
    assert task.samples(batches[0]) == 2
    nothing = text([[3]], [[]])
    assert task.loss(torch.zeros(0, V), nothing) == 0


def test_bigrams_are_probabilities_and_count():
    rng = np.random.default_rng(0)
    words = rng.integers(FIRST, V, 300)
    words[rng.random(300) < 0.1] = SEP
    model = Bigrams.of([words], V, FIRST)
    for left in range(V):
        nll, right, alone, _ = model.score(np.full(V, left), np.arange(V))
        assert np.exp(-nll).sum() == pytest.approx(1)
        assert np.exp(-alone).sum() == pytest.approx(1)
        assert right.argmax() == np.exp(-nll).argmax()
        assert right.sum() == 1
    pairs = list(itertools.pairwise(words))
    after = [w for v, w in pairs if v == 4 and w >= FIRST]
    count, kinds, occurring = after.count(5), len(set(after)), words[words >= FIRST]
    alone = ((occurring == 5).sum() + 1) / (len(occurring) + V)
    expected = (count + kinds * alone) / (len(after) + kinds)
    assert np.exp(-model.score(np.array([4]), np.array([5]))[0][0]) == pytest.approx(expected)


def test_the_trivial_models_read_what_is_not_hidden():
    """5 always follows 4, and 6 follows 5: told by the neighbour, but not where it is hidden."""
    rows = [[4, 5, 6], [7, 4, 5]] * 30
    train = [text(rows, [[1], [3]] * 30)]  # what is hidden in training is counted all the same
    seen, unseen = [text([[4, 5, 6]], [[2]])], [text([[4, 5, 6]], [[1, 2]])]
    task = MaskedLanguageModelling(V, first_word=FIRST)
    told, blind = task.score_trivial(train, seen), task.score_trivial(train, unseen)
    assert told["accuracy"] == 1
    assert told["perplexity"] < 1.1
    assert told["unigram_perplexity"] > 2
    assert math.log(told["perplexity"]) == pytest.approx(told["cross_entropy"])
    # After [MASK] the bigram model is the unigram one; after [CLS] it knows what begins.
    words = np.array([4, 5])
    model = Bigrams.of([task._text(train[0])], V, FIRST)
    expected = [model.score(np.array([v]), np.array([w]))[0][0] for v, w in ((CLS, 4), (MASK, 5))]
    assert expected[1] == pytest.approx(model.score(np.array([MASK]), words[1:])[2][0])
    assert blind["cross_entropy"] == pytest.approx(np.mean(expected))


def test_counting_stops_where_enough_is_counted():
    task = MaskedLanguageModelling(V, first_word=FIRST, counted_tokens=5)
    train = [text([[4, 5, 6]], [[1]]), text([[7, 7, 7]], [[1]])]
    test = [text([[7, 7, 7]], [[2]])]
    assert task.score_trivial(train, test)["unigram_cross_entropy"] == pytest.approx(
        -math.log(1 / (3 + V))
    )
