"""Masked language modelling: an encoder learns to fill in words that are hidden from it.

Devlin et al., arXiv:1810.04805. A batch is {"tokens", "token_types", "labels": [B, T], "lengths":
[B]}, or packed {… [1, N], "ptr": [B + 1]}, see `TextEncoder`; labels are the words behind hidden
tokens, and IGNORED at all others. Shapes: M hidden tokens of a batch, V words, W width.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from lit_models.layers.text_encoder import NORM_EPSILON, TextEncoder, initialise_as_bert
from lit_models.module import LitModule, Optimisation
from lit_models.tasks import Task

IGNORED = -100
TextBatch = dict[str, Tensor]


class MaskedLanguageModelling(Task):
    """Cross-entropy over the hidden tokens; perplexity and accuracy.

    A prediction is [M, V], for the hidden tokens alone, in the batch's order.

    Args:
        vocabulary: V.
    """

    selection = "perplexity"
    maximise = False
    trivial = "constant"

    def __init__(self, vocabulary: int):
        self.num_outputs = vocabulary

    def target(self, batch: TextBatch) -> Int[Tensor, " M"]:
        """The words behind the hidden tokens."""
        return batch["labels"][batch["labels"] != IGNORED]

    def loss(self, prediction: Tensor, batch: TextBatch) -> Tensor:
        target = self.target(batch)
        # A short batch may have no hidden token, and then has no loss.
        return F.cross_entropy(prediction.float(), target, reduction="sum") / max(1, len(target))

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "perplexity": Perplexity(),
                "accuracy": MulticlassAccuracy(
                    self.num_outputs, average="micro", validate_args=False
                ),
            },
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: TextBatch) -> None:
        target = self.target(batch)
        if len(target):
            metrics["perplexity"].update(prediction.float().unsqueeze(0), target.unsqueeze(0))
            metrics["accuracy"].update(prediction, target)

    def samples(self, batch: TextBatch) -> int:
        return len(batch["lengths"]) if "lengths" in batch else len(batch["ptr"]) - 1

    def score_trivial(
        self, train: Iterable[TextBatch], test: Iterable[TextBatch]
    ) -> dict[str, float]:
        """Of the words' frequencies among hidden ones, each counted once more than it is seen."""
        counts = torch.ones(self.num_outputs)
        for batch in train:
            counts += torch.bincount(self.target(batch), minlength=self.num_outputs)
        logits = (counts / counts.sum()).log()
        metrics = self.local_metrics()
        for batch in test:
            self.update(metrics, logits.expand(len(self.target(batch)), -1), batch)
        return {name: float(value) for name, value in self.scores(metrics).items()}


class MaskedLMHead(nn.Module):
    """BERT's: linear, GELU, LayerNorm, and the inner product with every word's embedding."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.apply(initialise_as_bert)

    def forward(self, x: Float[Tensor, "M W"], words: Float[Tensor, "V W"]) -> Float[Tensor, "M V"]:
        return F.linear(self.norm(F.gelu(self.dense(x))), words, self.bias)


class MaskedLMNet(nn.Module):
    """Encoder and head, its output tied to the encoder's embedding: a batch to logits [M, V]."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.encoder = encoder
        self.head = MaskedLMHead(encoder.width, encoder.vocabulary)

    def forward(self, batch: TextBatch) -> Float[Tensor, "M V"]:
        features = encode(self.encoder, batch)
        return self.head(features[batch["labels"] != IGNORED], self.encoder.words.weight)


def encode(encoder: TextEncoder, batch: TextBatch) -> Float[Tensor, "R T W"]:
    """The features of a batch's tokens."""
    return encoder(batch["tokens"], batch["token_types"], batch.get("lengths"), batch.get("ptr"))


class LitMaskedLM(LitModule):
    """Trains an encoder of text by filling in hidden words.

    Args:
        encoder: of any architecture.
        optimisation: optimiser and schedule.
    """

    def __init__(self, encoder: TextEncoder, optimisation: Optimisation):
        super().__init__(MaskedLanguageModelling(encoder.vocabulary), optimisation)
        self.net = MaskedLMNet(encoder)
