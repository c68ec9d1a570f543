"""What a data set asks for: the shape of the answer, the loss, the metrics, the trivial answer.

A data configuration names one of these; any model that accepts a `task` can then be trained on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch
from torchmetrics import MetricCollection

from lit_models.layers.heads import Level
from lit_models.metrics import (
    AveragePrecision,
    MacroF1,
    MeanAbsoluteError,
    MeanReciprocalRank,
    MeanSquaredError,
)


class Task(ABC):
    """Loss and metrics of one kind of prediction.

    Attributes:
        level: one output row per `graph` or `node`, or per node of scored `pair`s.
        num_outputs: columns of the prediction.
        selection: the metric by which checkpoints are selected and models compared.
        maximise: whether more of it is better.
    """

    level: ClassVar[Level]
    selection: ClassVar[str]
    maximise: ClassVar[bool] = True

    def __init__(self, num_outputs: int):
        self.num_outputs = num_outputs

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The scalar to minimise, for a prediction of [rows, num_outputs]."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics, by the names under which they are logged."""

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """What the batch says is true, one row per row of the prediction (per pair for pairs)."""

    @abstractmethod
    def constant(self, target: Tensor) -> Tensor:
        """The best prediction [num_outputs] that looks at nothing, from all training targets."""

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: Batch) -> None:
        """Add one batch to the metrics."""
        metrics.update(prediction, self.target(batch))

    def per_label(self, metrics: MetricCollection, names: list[str]) -> dict[str, Tensor]:
        """What the metrics say of every label, by `<metric>_per_label/<label>`; {} if nothing."""
        return {}

    def score_constant(self, train: Iterable[Batch], test: Iterable[Batch]) -> dict[str, float]:
        """Test metrics of the constant predictor fitted on the training targets.

        Both are to be whole: nothing is gathered from other processes.
        """
        constant = self.constant(torch.cat([self.target(batch) for batch in train]))
        metrics = self.metrics()
        for metric in metrics.values():
            metric.sync_on_compute = metric._to_sync = False
        for batch in test:
            rows = batch.num_graphs if self.level == "graph" else batch.num_nodes
            self.update(metrics, constant.expand(rows, -1), batch)
        return {name: float(value) for name, value in metrics.compute().items()}


class MultilabelClassification(Task):
    """Independent labels per graph, NaN where one is missing; binary cross-entropy and AP."""

    level = "graph"
    selection = "ap"

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        present = ~batch.y.isnan()
        return F.binary_cross_entropy_with_logits(prediction[present], batch.y[present])

    def metrics(self) -> MetricCollection:
        return MetricCollection({"ap": AveragePrecision(self.num_outputs)})

    def per_label(self, metrics: MetricCollection, names: list[str]) -> dict[str, Tensor]:
        values = metrics["ap"].per_label()
        defined = zip(names, values, strict=True) if names else enumerate(values)
        return {f"ap_per_label/{name}": value for name, value in defined if not value.isnan()}

    def target(self, batch: Batch) -> Tensor:
        return batch.y

    def constant(self, target: Tensor) -> Tensor:
        return target.nanmean(dim=0).logit(eps=1e-6)


class Regression(Task):
    """Real targets per graph, NaN where one is missing; absolute error as loss and metric."""

    level = "graph"
    selection = "mae"
    maximise = False

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        present = ~batch.y.isnan()
        return F.l1_loss(prediction[present], batch.y[present])

    def metrics(self) -> MetricCollection:
        return MetricCollection({"mae": MeanAbsoluteError()})

    def target(self, batch: Batch) -> Tensor:
        return batch.y

    def constant(self, target: Tensor) -> Tensor:
        return target.nanmedian(dim=0).values


class NodeRegression(Task):
    """Real targets per node, y [N, num_outputs]; squared error as loss, its root as metric."""

    level = "node"
    selection = "rmse"
    maximise = False

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(prediction, batch.y)

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {"rmse": MeanSquaredError(squared=False), "mse": MeanSquaredError()},
            compute_groups=False,
        )

    def target(self, batch: Batch) -> Tensor:
        return batch.y

    def constant(self, target: Tensor) -> Tensor:
        return target.mean(dim=0)


class NodeClassification(Task):
    """One class per node; cross-entropy weighted against frequent classes, macro F1.

    A class that holds a share s of the batch's nodes has weight 1 − s, as in the benchmark's
    reference code (Dwivedi et al., arXiv:2206.08164).
    """

    level = "node"
    selection = "f1"

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        counts = torch.bincount(batch.y, minlength=self.num_outputs)
        weight = (1 - counts / batch.y.numel()).to(prediction.dtype)
        return F.cross_entropy(prediction, batch.y, weight=weight)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"f1": MacroF1(self.num_outputs)})

    def target(self, batch: Batch) -> Tensor:
        return batch.y

    def constant(self, target: Tensor) -> Tensor:
        return torch.bincount(target, minlength=self.num_outputs).float()


class ContactPrediction(Task):
    """Pairs of atoms in contact or not, scored by inner products of node vectors; MRR.

    `num_outputs` is the length of the node vectors.
    """

    level = "pair"
    selection = "mrr"

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        head, tail = batch.edge_label_index
        logit = (prediction[head] * prediction[tail]).sum(dim=-1)
        return F.binary_cross_entropy_with_logits(logit, self.target(batch))

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "mrr": MeanReciprocalRank(filtered=False),
                "mrr_filtered": MeanReciprocalRank(filtered=True),
            },
            compute_groups=False,
        )

    def target(self, batch: Batch) -> Tensor:
        return batch.edge_label.float()

    def constant(self, target: Tensor) -> Tensor:
        return torch.zeros(self.num_outputs)

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: Batch) -> None:
        pair_graph = batch.batch[batch.edge_label_index[0]]
        for graph, (first, last) in enumerate(zip(batch.ptr[:-1], batch.ptr[1:], strict=True)):
            here = pair_graph == graph
            nodes = prediction[first:last]
            pairs = batch.edge_label_index[:, here] - first
            metrics.update(nodes @ nodes.T, pairs, batch.edge_label[here])
