"""What a data set asks for: the shape of the answer, the loss, the metrics, the trivial answer.

Each subject's `tasks` derive from `Task`. A data configuration names one of them, and any model
that accepts a `task` can then be trained on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MetricCollection


class Task(ABC):
    """Loss and metrics of one kind of prediction.

    Attributes:
        selection: the metric by which checkpoints are selected and models compared.
        maximise: whether more of it is better.
        trivial: the report's name for the prediction that needs no model.
    """

    selection: ClassVar[str]
    maximise: ClassVar[bool] = True
    trivial: ClassVar[str]

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Any) -> Tensor:
        """The scalar to minimise."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics."""

    @abstractmethod
    def update(self, metrics: MetricCollection, prediction: Tensor, batch: Any) -> None:
        """Add one batch to the metrics."""

    @abstractmethod
    def samples(self, batch: Any) -> int:
        """How many samples a batch has."""

    @abstractmethod
    def score_trivial(self, train: Iterable[Any], test: Iterable[Any]) -> dict[str, float]:
        """Test scores of the prediction that needs no model.

        Both are to be whole: nothing is gathered from other processes.
        """

    def as_batch(self, samples: Any) -> Any:
        """What a network is given of what a model is called with: a batch as it is."""
        return samples

    def drawn(self, prediction: Tensor, batch: Any) -> Any | None:
        """The batch with targets drawn from the distribution that is predicted; None if none is.

        That is the one whose negative logarithm `loss` is the mean of, over `targets`.
        """
        return None

    def targets(self, batch: Any) -> int:
        """How many targets, each drawn by itself, `loss` is a mean over."""
        return self.samples(batch)

    def weight(self, batch: Any, batch_size: int) -> float:
        """Of a training batch's loss, so that every sample weighs the same."""
        return self.samples(batch) / batch_size

    def scores(self, metrics: MetricCollection) -> dict[str, Tensor]:
        """Scalars, by the names under which they are logged."""
        return metrics.compute()

    def per_label(self, metrics: MetricCollection, names: list[str]) -> dict[str, Tensor]:
        """What the metrics say of every label, by `<metric>_per_label/<label>`; {} if nothing."""
        return {}

    def local_metrics(self) -> MetricCollection:
        """Fresh metrics of this process alone."""
        metrics = self.metrics()
        for metric in metrics.values():
            metric.sync_on_compute = metric._to_sync = False
        return metrics


def drawn_classes(prediction: Float[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """One class a row, as likely as its score says."""
    return torch.multinomial(prediction.float().softmax(dim=1), 1).squeeze(1)


def in_single(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
