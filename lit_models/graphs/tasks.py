"""Tasks about graphs, their nodes, or pairs of nodes: the loss and metrics of each.

A data configuration of graphs names one of these.
"""

from abc import abstractmethod
from collections.abc import Iterable
from copy import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch
from torchmetrics import MetricCollection

from lit_models.graphs.metrics import (
    AveragePrecision,
    MacroF1,
    MeanAbsoluteError,
    MeanReciprocalRank,
    MeanSquaredError,
)
from lit_models.task import Task

Level = Literal["graph", "node", "pair"]


class GraphTask(Task):
    """A prediction for each graph of a batch, or each of its nodes, or pairs of them.

    Attributes:
        level: one output row per `graph` or `node`, or per node of scored `pair`s.
        num_outputs: columns of the prediction [rows, num_outputs].
    """

    level: ClassVar[Level]
    trivial = "constant"

    def __init__(self, num_outputs: int):
        self.num_outputs = num_outputs

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """What the batch says is true, one row per row of the prediction (per pair for pairs)."""

    @abstractmethod
    def constant(self, target: Tensor) -> Tensor:
        """The best prediction [num_outputs] that looks at nothing, from all training targets."""

    def update(self, metrics: MetricCollection, prediction: Tensor, batch: Batch) -> None:
        metrics.update(prediction, self.target(batch))

    def samples(self, batch: Batch) -> int:
        return batch.num_graphs

    def weight(self, batch: Batch, batch_size: int) -> float:
        # Batches differ in their number of graphs, and hardly in that of nodes.
        return super().weight(batch, batch_size) if self.level == "graph" else 1.0

    def score_trivial(self, train: Iterable[Batch], test: Iterable[Batch]) -> dict[str, float]:
        """Of the constant predictor fitted on the training targets."""
        constant = self.constant(torch.cat([self.target(batch) for batch in train]))
        metrics = self.local_metrics()
        for batch in test:
            rows = batch.num_graphs if self.level == "graph" else batch.num_nodes
            self.update(metrics, constant.expand(rows, -1), batch)
        return {name: float(value) for name, value in self.scores(metrics).items()}


class MultilabelClassification(GraphTask):
    """Independent labels per graph, NaN where one is missing; binary cross-entropy and AP."""

    level = "graph"
    selection = "ap"

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        present = ~batch.y.isnan()
        return F.binary_cross_entropy_with_logits(prediction[present], batch.y[present])

    def drawn(self, prediction: Tensor, batch: Batch) -> Batch:
        drawn = copy(batch)
        # NaN stays where a label is missing.
        drawn.y = torch.bernoulli(prediction.float().sigmoid()).to(batch.y) + 0 * batch.y
        return drawn

    def targets(self, batch: Batch) -> int:
        return int((~batch.y.isnan()).sum())

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


class Regression(GraphTask):
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


class NodeRegression(GraphTask):
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


class NodeClassification(GraphTask):
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


class ContactPrediction(GraphTask):
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
