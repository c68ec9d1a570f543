"""What is asked about text: GLUE's nine tasks, and the words that are hidden from a model.

A batch is {"tokens": [B, T], …, "lengths": [B]}, or {"tokens": [1, N], …, "ptr": [B + 1]} without
padding. Of GLUE it has "label" [B] and "mismatched" bool [B]; of hidden words "labels", like
tokens: the word behind a hidden token, IGNORED elsewhere. Shapes: M hidden tokens of a batch, V
words.

Source: Wang et al., "GLUE", arXiv:1804.07461; Devlin et al., arXiv:1810.04805.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

from lit_models.task import Task, drawn_classes
from lit_models.text.metrics import MatthewsCorrelation, Pearson, Spearman

IGNORED = -100
TextBatch = dict[str, Tensor]


class SentenceTask(Task):
    """A prediction [B, num_outputs] about every sentence, or pair of them, of a batch."""

    num_outputs: int

    @abstractmethod
    def constant(self, label: Tensor) -> Tensor:
        """The best prediction [num_outputs] that reads nothing, from all training labels."""

    def samples(self, batch: TextBatch) -> int:
        return len(batch["label"])

    def score_trivial(
        self, train: Iterable[TextBatch], test: Iterable[TextBatch]
    ) -> dict[str, float]:
        """Of the constant predictor fitted on the training labels."""
        constant = self.constant(torch.cat([batch["label"] for batch in train]))
        metrics = self.local_metrics()
        for batch in test:
            self.update(metrics, constant.expand(self.samples(batch), -1), batch)
        return {name: float(value) for name, value in self.scores(metrics).items()}


class SentenceClassification(SentenceTask):
    """One class per sentence or pair; cross-entropy and accuracy: SST-2, QNLI, RTE, WNLI.

    Args:
        num_outputs: number of classes.
    """

    selection = "accuracy"
    trivial = "majority"

    def __init__(self, num_outputs: int = 2):
        self.num_outputs = num_outputs

    def loss(self, prediction: Tensor, batch: TextBatch) -> Tensor:
        return F.cross_entropy(prediction.float(), batch["label"])

    def drawn(self, prediction: Tensor, batch: TextBatch) -> TextBatch:
        return batch | {"label": drawn_classes(prediction)}

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": self._accuracy()})

    def _accuracy(self) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.num_outputs, average="micro")

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: TextBatch) -> None:
        metrics.update(prediction.argmax(dim=1), batch["label"])

    def constant(self, label: Tensor) -> Tensor:
        return torch.bincount(label, minlength=self.num_outputs).float()


class Acceptability(SentenceClassification):
    """Whether a sentence is English: CoLA, scored by Matthews correlation."""

    selection = "matthews"

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {"matthews": MatthewsCorrelation(), "accuracy": self._accuracy()}, compute_groups=False
        )


class Paraphrase(SentenceClassification):
    """Whether two sentences say the same: MRPC and QQP, scored by F1, accuracy and their mean."""

    selection = "f1_accuracy"

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {"f1": BinaryF1Score(), "accuracy": self._accuracy()}, compute_groups=False
        )

    def scores(self, metrics: MetricCollection) -> dict[str, Tensor]:
        values = metrics.compute()
        return values | {"f1_accuracy": (values["f1"] + values["accuracy"]) / 2}


class Inference(SentenceClassification):
    """What follows from a sentence: MNLI, scored by accuracy on the genres it was trained on.

    `accuracy_mismatched` is of the other genres, and stands for itself where there are any.
    """

    selection = "accuracy_matched"

    def __init__(self):
        super().__init__(num_outputs=3)

    def metrics(self) -> MetricCollection:
        # With NaN checks disabled torchmetrics 1.9 would drop the weights.
        return MetricCollection(
            {
                f"accuracy_{genres}": MeanMetric(nan_strategy="ignore")
                for genres in ("matched", "mismatched")
            },
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: TextBatch) -> None:
        right = (prediction.argmax(dim=1) == batch["label"]).float()
        metrics["accuracy_matched"].update(right, (~batch["mismatched"]).float())
        metrics["accuracy_mismatched"].update(right, batch["mismatched"].float())

    def scores(self, metrics: MetricCollection) -> dict[str, Tensor]:
        return {name: value for name, value in metrics.compute().items() if not value.isnan()}


class Similarity(SentenceTask):
    """How alike two sentences are, from 0 to 5: STS-B, scored by two correlations and their mean.

    Squared error is the loss.
    """

    num_outputs = 1
    selection = "pearson_spearman"
    trivial = "mean_label"

    def loss(self, prediction: Tensor, batch: TextBatch) -> Tensor:
        return F.mse_loss(prediction.squeeze(1).float(), batch["label"])

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {"pearson": Pearson(), "spearman": Spearman()}, compute_groups=False
        )

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: TextBatch) -> None:
        metrics.update(prediction.squeeze(1).float(), batch["label"])

    def scores(self, metrics: MetricCollection) -> dict[str, Tensor]:
        values = metrics.compute()
        return values | {"pearson_spearman": (values["pearson"] + values["spearman"]) / 2}

    def constant(self, label: Tensor) -> Tensor:
        return label.mean().reshape(1)


GLUE_TASKS = {
    "cola": Acceptability,
    "sst2": SentenceClassification,
    "mrpc": Paraphrase,
    "stsb": Similarity,
    "qqp": Paraphrase,
    "mnli": Inference,
    "qnli": SentenceClassification,
    "rte": SentenceClassification,
    "wnli": SentenceClassification,
}


def glue_task(name: str) -> SentenceTask:
    """The loss and the official metrics of one of GLUE's tasks.

    Raises:
        ValueError: there is no such task.
    """
    if name not in GLUE_TASKS:
        raise ValueError(f"There is no GLUE task {name!r}: choose one of {', '.join(GLUE_TASKS)}.")
    return GLUE_TASKS[name]()


class MaskedLanguageModelling(Task):
    """Cross-entropy over the hidden tokens; perplexity and accuracy.

    A prediction is [M, V], of the hidden tokens alone, in the batch's order. The trivial models
    count words and pairs of neighbours in the training text, `Bigrams`; what they score without
    the neighbour is reported beside as `unigram_…`.

    Args:
        vocabulary: V.
        first_word: tokens below are special: never hidden, never predicted by the trivial models.
        counted_tokens: of the training text, as many as the trivial models are fitted on.
    """

    selection = "perplexity"
    maximise = False
    trivial = "bigram"

    def __init__(self, vocabulary: int, first_word: int = 999, counted_tokens: int = 20_000_000):
        self.num_outputs, self.first_word = vocabulary, first_word
        self.counted_tokens = counted_tokens

    def target(self, batch: TextBatch) -> Int[Tensor, " M"]:
        """The words behind the hidden tokens."""
        return batch["labels"][batch["labels"] != IGNORED]

    def loss(self, prediction: Tensor, batch: TextBatch) -> Tensor:
        target = self.target(batch)
        # A short batch may have no hidden token, and then has no loss.
        return F.cross_entropy(prediction.float(), target, reduction="sum") / max(1, len(target))

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {name: MeanMetric(nan_strategy="disable") for name in ("cross_entropy", "accuracy")},
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: TextBatch) -> None:
        target = self.target(batch)
        if len(target):
            each = F.cross_entropy(prediction.float(), target, reduction="none")
            metrics["cross_entropy"].update(each)
            metrics["accuracy"].update((prediction.argmax(dim=1) == target).float())

    def scores(self, metrics: MetricCollection) -> dict[str, Tensor]:
        values = metrics.compute()
        return values | {"perplexity": values["cross_entropy"].exp()}

    def samples(self, batch: TextBatch) -> int:
        return len(batch["lengths"]) if "lengths" in batch else len(batch["ptr"]) - 1

    def score_trivial(
        self, train: Iterable[TextBatch], test: Iterable[TextBatch]
    ) -> dict[str, float]:
        """Of the bigram and the unigram model fitted on the training text, nothing hidden."""
        parts, tokens = [], 0
        for batch in train:
            parts.append(self._text(batch))
            tokens += parts[-1].size
            if tokens >= self.counted_tokens:
                break
        model = Bigrams.of(parts, self.num_outputs, self.first_word)
        scored = [model.score(*self._asked(batch)) for batch in test]
        nll, right, unigram_nll, unigram_right = (
            float(np.concatenate(column).mean()) for column in zip(*scored, strict=True)
        )
        return {
            "perplexity": float(np.exp(nll)),
            "cross_entropy": nll,
            "accuracy": right,
            "unigram_perplexity": float(np.exp(unigram_nll)),
            "unigram_cross_entropy": unigram_nll,
            "unigram_accuracy": unigram_right,
        }

    def _text(self, batch: TextBatch) -> np.ndarray:
        """Tokens with nothing hidden, rows one after the other."""
        hidden = batch["labels"] != IGNORED
        return torch.where(hidden, batch["labels"], batch["tokens"]).flatten().numpy()

    def _asked(self, batch: TextBatch) -> tuple[np.ndarray, np.ndarray]:
        """What a model sees to the left of every hidden word, and the word."""
        # The first token of a sentence is never hidden, so none looks into another row.
        left = batch["tokens"].flatten().roll(1)[batch["labels"].flatten() != IGNORED]
        return left.numpy(), self.target(batch).numpy()


@dataclass
class Bigrams:
    """How often words, and words after others, occur in a text; smoothed after Witten and Bell.

    p(w | v) = (count(v w) + kinds(v) · p(w)) / (count(v ·) + kinds(v)) with kinds(v) the number of
    different words seen after v, and p(w) = (count(w) + 1) / (count(·) + V). After what was never
    seen before a word, such as [MASK], it is p(w).

    Attributes:
        unigram: float64 [V], p(w).
        pairs: int64, sorted: V · v + w for every pair that occurs.
        counts: int64, how often each does.
        after, kinds: int64 [V], count(v ·) and kinds(v).
        best: int64 [V], the likeliest word after each.

    Source: Witten and Bell 1991, doi:10.1109/18.87000, method C, as Chen and Goodman 1996,
    arXiv:cmp-lg/9606011, interpolate it.
    """

    unigram: np.ndarray
    pairs: np.ndarray
    counts: np.ndarray
    after: np.ndarray
    kinds: np.ndarray
    best: np.ndarray

    @classmethod
    def of(cls, texts: list[np.ndarray], vocabulary: int, first_word: int) -> "Bigrams":
        """Count in texts, int64 [tokens] each; tokens below `first_word` are no words."""
        occurring = np.zeros(vocabulary, dtype=np.int64)
        keys = []
        for text in texts:
            occurring += np.bincount(text[text >= first_word], minlength=vocabulary)
            is_word = text[1:] >= first_word
            keys.append((vocabulary * text[:-1] + text[1:])[is_word])
        unigram = (occurring + 1) / (occurring.sum() + vocabulary)
        pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
        left, word = pairs // vocabulary, pairs % vocabulary
        after = np.bincount(left, counts, minlength=vocabulary).astype(np.int64)
        kinds = np.bincount(left, minlength=vocabulary)
        # Of words never seen after v the likeliest is at most as likely as the commonest of all.
        score = counts + kinds[left] * unigram[word]
        common = int(unigram.argmax())
        best, reached = np.full(vocabulary, common), kinds * unigram[common]
        order = np.argsort(score, kind="stable")
        order = order[score[order] > reached[left[order]]]
        best[left[order]] = word[order]  # of equal places the last, the largest, is kept
        return cls(unigram, pairs, counts, after, kinds, best)

    def score(
        self, left: np.ndarray, word: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """−log p(w | v) in nats and whether w is the likeliest, then both without v; [M] each."""
        key = len(self.unigram) * left + word
        place = np.searchsorted(self.pairs, key).clip(max=len(self.pairs) - 1)
        count = np.where(self.pairs[place] == key, self.counts[place], 0)
        alone, kinds, after = self.unigram[word], self.kinds[left], self.after[left]
        likely = (count + kinds * alone) / np.maximum(after + kinds, 1)
        likely = np.where(after > 0, likely, alone)
        common = self.unigram.argmax()
        return -np.log(likely), self.best[left] == word, -np.log(alone), common == word
