"""What is asked about images: which of several classes each shows.

A batch is {"image": [B, 3, H, W], "label": int64 [B], …}; in training it may have "target" [B,
classes], shares of classes where images are mixed, which then stands for the label.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_models.task import Task, drawn_classes, in_single

ImageBatch = dict[str, Tensor]


class ImageClassification(Task):
    """One class an image; cross-entropy, the share of right ones, and of those among five guesses.

    Args:
        num_outputs: number of classes.
        label_smoothing: share of a training label that is spread over all classes.
    """

    selection = "accuracy"
    trivial = "majority"

    def __init__(self, num_outputs: int, label_smoothing: float = 0.0):
        self.num_outputs, self.label_smoothing = num_outputs, label_smoothing

    def loss(self, prediction: Tensor, batch: ImageBatch) -> Tensor:
        return F.cross_entropy(in_single(prediction), batch["label"])

    def training_loss(self, prediction: Tensor, batch: ImageBatch) -> Tensor:
        """Cross-entropy to smoothed labels, or to the shares of classes in mixed images."""
        target = batch.get("target", batch["label"])
        return F.cross_entropy(in_single(prediction), target, label_smoothing=self.label_smoothing)

    def drawn(self, prediction: Tensor, batch: ImageBatch) -> ImageBatch:
        return batch | {"label": drawn_classes(prediction)}

    def metrics(self) -> MetricCollection:
        most = min(5, self.num_outputs)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.num_outputs, average="micro"),
                "accuracy_top5": MulticlassAccuracy(self.num_outputs, top_k=most, average="micro"),
            },
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: ImageBatch) -> None:
        metrics.update(prediction.float(), batch["label"])

    def samples(self, batch: ImageBatch) -> int:
        return len(batch["label"])

    def score_trivial(
        self, train: Iterable[ImageBatch], test: Iterable[ImageBatch]
    ) -> dict[str, float]:
        """Of the commonest training class."""
        labels = torch.cat([batch["label"] for batch in train])
        counts = torch.bincount(labels, minlength=self.num_outputs).float()
        metrics = self.local_metrics()
        for batch in test:
            self.update(metrics, counts.expand(self.samples(batch), -1), batch)
        return {name: float(value) for name, value in self.scores(metrics).items()}
