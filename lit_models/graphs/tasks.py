"""Tasks about graphs, their nodes, or pairs of nodes: the loss and metrics of each.

A data configuration of graphs names one of these.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_models.graphs.batch import Batch
from lit_models.graphs.metrics import (
    AveragePrecision,
    MacroF1,
    MeanAbsoluteError,
    MeanReciprocalRank,
    MeanSquaredError,
)
from lit_models.module import UnfitDataError
from lit_models.task import Task, drawn_classes

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

    def as_batch(self, samples: Batch | Data | Sequence[Data]) -> Batch:
        """A batch, also of a single graph or a list of them, whose edges, if any, are int64."""
        if not isinstance(samples, Batch):
            graphs: list[BaseData] = [samples] if isinstance(samples, Data) else [*samples]
            samples = Batch.from_data_list(graphs)
        edges = samples.edge_index
        if edges is None or edges.dtype == torch.int64:
            return samples
        batch = copy(samples)
        batch.edge_index = edges.long()
        return batch

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
        return over_present(F.binary_cross_entropy_with_logits, prediction, batch.y)

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
        metric = metrics["ap"]
        assert isinstance(metric, AveragePrecision)  # as `metrics` made it
        values = metric.per_label()
        defined = zip(names, values, strict=True) if names else enumerate(values)
        return {f"ap_per_label/{name}": value for name, value in defined if not value.isnan()}

    def target(self, batch: Batch) -> Tensor:
        return batch.y

    def constant(self, target: Tensor) -> Tensor:
        return target.nanmean(dim=0).logit(eps=1e-6)


class GraphClassification(GraphTask):
    """One of `num_outputs` classes per graph, two or more; cross-entropy, accuracy and macro F1.

    y is of integers, one a graph, [G] or [G, 1], the first class 0, as in TU's data sets.

    Raises:
        ValueError: fewer than two classes.
        UnfitDataError: another y.
    """

    level = "graph"
    selection = "accuracy"
    trivial = "majority"

    def __init__(self, num_outputs: int):
        if num_outputs < 2:
            raise ValueError(
                f"Expected two classes or more, got task.num_outputs={num_outputs}: a binary label "
                "has task.num_outputs=2."
            )
        super().__init__(num_outputs)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(prediction, self.target(batch))

    def drawn(self, prediction: Tensor, batch: Batch) -> Batch:
        drawn = copy(batch)
        drawn.y = drawn_classes(prediction)
        return drawn

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.num_outputs, average="micro"),
                "f1": MacroF1(self.num_outputs),
            },
            compute_groups=False,
        )

    def target(self, batch: Batch) -> Tensor:
        y = batch.y
        if y.is_floating_point() or y.numel() != batch.num_graphs:
            raise UnfitDataError(
                f"Expected y of integers, the class of each of {batch.num_graphs} graphs, got "
                f"{y.dtype} of shape {list(y.shape)}: set y to one number a graph, or "
                "task._target_ to MultilabelClassification."
            )
        low, high = y.aminmax()
        if low < 0 or high >= self.num_outputs:
            raise UnfitDataError(
                f"Expected classes from 0 to {self.num_outputs - 1}, got {int(low)} to "
                f"{int(high)}: number classes from 0 on, or raise task.num_outputs."
            )
        return y.flatten()

    def constant(self, target: Tensor) -> Tensor:
        return torch.bincount(target, minlength=self.num_outputs).float()


class Regression(GraphTask):
    """Real targets per graph, NaN where one is missing; absolute error as loss and metric."""

    level = "graph"
    selection = "mae"
    maximise = False

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        return over_present(F.l1_loss, prediction, batch.y)

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
    reference code (Dwivedi et al., arXiv:2206.08164), and one that holds all of them 1: weights
    that are all equal cancel.
    """

    level = "node"
    selection = "f1"

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        counts = torch.bincount(batch.y, minlength=self.num_outputs)
        share = counts / batch.y.numel()
        weight = torch.where(share < 1, 1 - share, 1.0).to(prediction.dtype)
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
        return over_present(F.binary_cross_entropy_with_logits, logit, self.target(batch))

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


def over_present(
    loss: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor
) -> Tensor:
    """The mean loss of the entries whose target is no NaN; 0 where there are none."""
    present = ~target.isnan()
    if not present.any():
        return prediction[present].sum()  # 0, as well as its gradient
    return loss(prediction[present], target[present])
