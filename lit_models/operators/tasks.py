"""Tasks about fields on a grid: forecasts in time, and solutions of steady problems.

The data configuration of a differential equation names one of them.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import cast

from jaxtyping import Float
from torch import Tensor
from torchmetrics import MetricCollection

from lit_models.operators.metrics import VRMSE, MaxError, RelativeL2, SpectralError
from lit_models.task import Task


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
        mean = cast(Tensor, sums / samples)
        return lambda batch: mean


def relative_l2(
    prediction: Float[Tensor, "B T C *points"], target: Float[Tensor, "B T C *points"]
) -> Float[Tensor, ""]:
    """‖u − v‖ / ‖v‖ over channels and points of prediction u and target v, the mean of the rest."""
    error = (prediction.float() - target.float()).flatten(2).norm(dim=2)
    return (error / target.float().flatten(2).norm(dim=2)).mean()
