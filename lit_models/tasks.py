"""What a data set asks for: the shape of the answer, the loss, the metrics, the trivial answer.

The data configuration of graphs names one of these; any model that accepts a `task` can then be
trained on it. Those of fields are chosen by `lit_models.operator.LitOperator`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch
from torchmetrics import MetricCollection

from lit_models.field_metrics import VRMSE, MaxError, RelativeL2, SpectralError
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


class FieldTask(Task):
    """Fields on a grid, one frame or several that follow; relative L2 error as loss and metric.

    A batch is {"input": [B, history, C, *points], "target": [B, T, C, *points], …}, a prediction
    [B, T, C, *points], all in the equation's units. The scores are of all samples and, but for
    `nrmse_first` and `nrmse_last`, all frames; `spectral_error_low`, `_mid` and `_high` are of
    the waves with |k| below 5, below 13 and the others.
    """

    selection = "nrmse"
    maximise = False

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return relative_l2(prediction, batch["target"])

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "nrmse": RelativeL2(per_step=True),
                "vrmse": VRMSE(),
                "max_error": MaxError(),
                "spectral_error": SpectralError(),
            },
            compute_groups=False,
        )

    def update(
        self, metrics: MetricCollection, prediction: Tensor, batch: dict[str, Tensor]
    ) -> None:
        metrics.update(prediction, batch["target"])

    def scores(self, metrics: MetricCollection) -> dict[str, Tensor]:
        values = metrics.compute()
        # torchmetrics makes a number of what has one element.
        per_step, bands = values.pop("nrmse").reshape(-1), values.pop("spectral_error")
        scores = {"nrmse": per_step.mean()}
        if len(per_step) > 1:
            scores |= {"nrmse_first": per_step[0], "nrmse_last": per_step[-1]}
        names = (f"spectral_error_{band}" for band in ("low", "mid", "high"))
        return scores | values | dict(zip(names, bands, strict=True))

    def samples(self, batch: dict[str, Tensor]) -> int:
        return len(batch["target"])

    def score_trivial(
        self, train: Iterable[dict[str, Tensor]], test: Iterable[dict[str, Tensor]]
    ) -> dict[str, float]:
        predict = self.trivial_predictor(train)
        metrics = self.local_metrics()
        for batch in test:
            self.update(metrics, predict(batch).expand_as(batch["target"]), batch)
        return {name: float(value) for name, value in self.scores(metrics).items()}

    @abstractmethod
    def trivial_predictor(
        self, train: Iterable[dict[str, Tensor]]
    ) -> Callable[[dict[str, Tensor]], Tensor]:
        """Maps a batch to what broadcasts to its target."""


class Forecast(FieldTask):
    """The frames that follow those that are given; the trivial forecast repeats the last one."""

    trivial = "persistence"

    def trivial_predictor(
        self, train: Iterable[dict[str, Tensor]]
    ) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda batch: batch["input"][:, -1:]


class SteadySolution(FieldTask):
    """The solution that belongs to given fields; the trivial one is the mean of training."""

    trivial = "mean_field"

    def trivial_predictor(
        self, train: Iterable[dict[str, Tensor]]
    ) -> Callable[[dict[str, Tensor]], Tensor]:
        sums, samples = 0.0, 0
        for batch in train:
            sums = sums + batch["target"].double().sum(dim=0)
            samples += len(batch["target"])
        mean = sums / samples
        return lambda batch: mean


def drawn_classes(prediction: Float[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """One class a row, as likely as its score says."""
    return torch.multinomial(prediction.float().softmax(dim=1), 1).squeeze(1)


def in_single(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def relative_l2(
    prediction: Float[Tensor, "B T C *points"], target: Float[Tensor, "B T C *points"]
) -> Float[Tensor, ""]:
    """‖u − v‖ / ‖v‖ over channels and points of prediction u and target v, the mean of the rest."""
    error = (prediction.float() - target.float()).flatten(2).norm(dim=2)
    return (error / target.float().flatten(2).norm(dim=2)).mean()
