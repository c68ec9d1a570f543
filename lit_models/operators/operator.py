"""The LightningModule of every neural operator: from frames that are given to those that follow.

Shapes: B samples, H frames given (1, for the inputs of a steady problem), T frames that follow,
C channels, then the points of every axis. Fields are in the equation's units wherever they are
handed in or out; the network alone sees them normalised.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lit_models.module import LitModule, Optimisation, UnfitDataError
from lit_models.operators.at_resolution import AtResolution
from lit_models.operators.tasks import FieldTask, SteadySolution, relative_l2
from lit_models.trainer import data_of

Training = Literal["teacher_forced", "rollout", "pushforward"]
FieldBatch = dict[str, Tensor]


@runtime_checkable
class Statistics(Protocol):
    """Mean and standard deviation [C] of every channel of a data set."""

    mean: Tensor
    std: Tensor


class Normalisation(nn.Module):
    """Mean 0 and standard deviation 1 for every channel of the training data, kept with weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def adopt(self, statistics: Statistics) -> None:
        """Take over what a data set is like."""
        self.mean.copy_(statistics.mean)
        self.std.copy_(statistics.std)

    def forward(self, fields: Float[Tensor, "B T C *points"]) -> Float[Tensor, "B T C *points"]:
        return (fields - self._along(self.mean, fields)) / self._along(self.std, fields)

    def inverse(self, fields: Float[Tensor, "B T C *points"]) -> Float[Tensor, "B T C *points"]:
        """Normalised fields back to the equation's units."""
        return fields * self._along(self.std, fields) + self._along(self.mean, fields)

    def _along(self, values: Tensor, fields: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (fields.ndim - 3))


class LitOperator(LitModule):
    """Trains a network that maps frames to the next one, or inputs to a steady solution.

    Its batches are those of a PDEDataModule that does not normalise. It learns by how far off the
    T frames of a window are, in relative L2 norm; validation and test are rollouts over all that
    follow. `nrmse_per_step` has the mean error of every step of the last ones, by stage. Where the
    data module shows the test at more points too, as "2x", scores of that bear its name;
    "growth" is over the score at the points of training.

    Args:
        task: a forecast, or the solution of a steady problem.
        net: maps [B, H·C, *points], oldest frame first, or a steady problem's inputs, to
            [B, C, *points]; it need not be tied to a resolution.
        optimisation: optimiser and schedule.
        channels: C, fields of a state.
        inputs: fields that a steady problem's solution depends on; None where time passes.
        training: `teacher_forced` predicts every frame of the window from true ones, `rollout`
            from its own predictions and differentiates through all of them, `pushforward` one
            frame, drawn for each batch, from its own predictions without differentiating through
            those (Brandstetter et al., arXiv:2202.03376). On windows of one frame all are one.
        noise: standard deviation of white noise on true frames that are given in training, in
            units of the training data's own.
        residual: the network predicts the change from the last frame, not the next one.
        resolution: points of every axis at which the network works, whatever the data have, see
            AtResolution; None for those of the data.
        periodic: whether fields are, for `resolution`.
        compile: torch.compile the network.

    Raises:
        ValueError: `training` is none of these, `noise` is negative, or a steady problem has no
            inputs or is to have residuals, or a forecast has inputs.
        UnfitDataError: before training, the data have other fields than these, or the network
            cannot take them.
    """

    def __init__(
        self,
        task: FieldTask,
        net: nn.Module,
        optimisation: Optimisation,
        *,
        channels: int = 1,
        inputs: int | None = None,
        training: str = "teacher_forced",
        noise: float = 0.0,
        residual: bool = False,
        resolution: Sequence[int] | None = None,
        periodic: bool = True,
        compile: bool = False,
    ):
        if training not in get_args(Training) or noise < 0:
            raise ValueError(
                f"model.training is one of {', '.join(get_args(Training))} and model.noise is not "
                f"negative, got {training!r} and {noise}."
            )
        if residual and inputs is not None:
            raise ValueError(
                "A steady problem has no last frame from which a change could be predicted: set "
                "model.residual=false."
            )
        if isinstance(task, SteadySolution) is (inputs is None):
            raise ValueError(
                "The solution of a steady problem depends on given fields, a forecast on none but "
                f"its own: set model.inputs to their number, or to null, got {inputs} and "
                f"{type(task).__name__}."
            )
        if resolution is not None:
            net = AtResolution(net, resolution, periodic=periodic)
        super().__init__(task, net, optimisation, compile=compile)
        self.channels, self.inputs = channels, inputs
        self.mode, self.noise, self.residual = training, noise, residual
        self.states = Normalisation(channels)
        self.given = self.states if inputs is None else Normalisation(inputs)
        self.nrmse_per_step: dict[str, Tensor] = {}
        self.refined_metrics: dict[str, MetricCollection] = {}

    def forward(self, batch: FieldBatch) -> Float[Tensor, "B T C *points"]:
        """The prediction of a batch's target."""
        return self.rollout(batch["input"], batch["target"].shape[1])

    def rollout(
        self, frames: Float[Tensor, "B H I *points"], steps: int
    ) -> Float[Tensor, "B T C *points"]:
        """The frames that follow, each predicted from those before it; a steady problem has one."""
        return self.states.inverse(self._unroll(self.given(frames), steps))

    def training_loss(self, batch: FieldBatch) -> Tensor:
        target = batch["target"]
        frames, steps = self._noisy(self.given(batch["input"])), target.shape[1]
        if self.mode == "rollout" or steps == 1:
            predicted = self._unroll(frames, steps)
        elif self.mode == "pushforward":
            free = int(torch.randint(steps, ()))
            predicted, target = self._pushed(frames, free), target[:, free : free + 1]
        else:
            true = torch.cat([frames, self._noisy(self.states(target[:, :-1]))], dim=1)
            predicted = self._following(true, steps)
        return relative_l2(self.states.inverse(predicted), target)

    def _predict(self, frames: Float[Tensor, "B H I *points"]) -> Float[Tensor, "B C *points"]:
        return self.net(self.in_precision(frames).flatten(1, 2))

    def _step(self, frames: Float[Tensor, "B H I *points"]) -> Float[Tensor, "B C *points"]:
        predicted = self._predict(frames)
        return frames[:, -1] + predicted if self.residual else predicted

    def _following(self, true: Tensor, steps: int) -> Float[Tensor, "B T C *points"]:
        """What follows the last frames of all, each predicted from the `history` before it."""
        windows = true.unfold(1, true.shape[1] - steps + 1, 1).movedim(-1, 2)
        return self._step(windows.flatten(0, 1)).unflatten(0, (-1, steps))

    def _pushed(self, frames: Tensor, free: int) -> Float[Tensor, "B 1 C *points"]:
        """The frame after `free` predicted ones, through which no gradient flows."""
        with torch.no_grad():
            for _ in range(free):
                frames = self._advance(frames)
        return self._step(frames).unsqueeze(1)

    def _advance(self, frames: Float[Tensor, "B H I *points"]) -> Float[Tensor, "B H C *points"]:
        new = self._step(frames).unsqueeze(1)
        return new if frames.shape[1] == 1 else torch.cat([frames[:, 1:], new], dim=1)

    def _unroll(
        self, frames: Float[Tensor, "B H I *points"], steps: int
    ) -> Float[Tensor, "B T C *points"]:
        predicted = []
        for _ in range(steps):
            frames = self._advance(frames)
            predicted.append(frames[:, -1])
        return torch.stack(predicted, dim=1)

    def _noisy(self, fields: Tensor) -> Tensor:
        # The random numbers of a step are the step's own, see `on_train_batch_start`.
        return fields + self.noise * torch.randn_like(fields) if self.noise else fields

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._adopt(data_of(self.trainer))
        super().setup(stage)

    def _adopt(self, data: Any) -> None:
        """Take over the data's statistics, if the network can take the data."""
        wanted = (self.channels, self.inputs or 0)
        names = [*getattr(data, "channels", ())], [*getattr(data, "inputs", ())]
        if (len(names[0]), len(names[1])) != wanted:
            raise UnfitDataError(
                f"model.channels is {wanted[0]} and model.inputs {wanted[1]}, but {data.task} has "
                f"{len(names[0])} fields ({', '.join(names[0])}) that depend on {len(names[1])} "
                f"given ones ({', '.join(names[1])}): change the model or the data."
            )
        if data.normalise:
            raise UnfitDataError(
                "An operator normalises its data itself: set data.normalise=false."
            )
        self.states.adopt(data.normaliser)
        if self.inputs is not None:
            self.given.adopt(data.input_normaliser)
        self._try(data.train_dataset[0]["input"].unsqueeze(0))

    def _try(self, frames: Float[Tensor, "1 H I *points"]) -> None:
        """Apply the network to one sample, so that what does not fit is told in one sentence."""
        was_training = self.net.training
        wanted = [1, self.channels, *frames.shape[3:]]
        what = f"frames of shape {list(frames.shape[1:])} (frames, channels, points)"
        try:
            with torch.no_grad():
                self.net.eval()
                got = list(self._predict(self.given(frames)).shape)
        except (RuntimeError, ValueError) as error:
            told = str(error).splitlines()[0]
            raise UnfitDataError(
                f"The network cannot take {what}: {told} Change model.net or the data."
            ) from error
        finally:
            self.net.train(was_training)
        if got != wanted:
            raise UnfitDataError(
                f"The network makes {got[1:]} of {what}, where {wanted[1:]} is expected: change "
                "model.net or model.channels."
            )

    def on_test_start(self) -> None:
        names = getattr(data_of(self.trainer), "refined", {})
        self.refined_metrics = {name: self.task.metrics().to(self.device) for name in names}

    def test_step(self, batch: FieldBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx == 0:
            super().test_step(batch, batch_idx)
            return
        metrics = [*self.refined_metrics.values()][dataloader_idx - 1]
        self.task.update(metrics, self(batch), batch)

    def on_test_epoch_end(self) -> None:
        selection = self.task.selection
        for name, metrics in self.refined_metrics.items():
            scores = self.task.scores(metrics)
            for score, value in scores.items():
                self.log(f"test/{score}_{name}", value)
            growth = scores[selection] / self.task.scores(self.test_metrics)[selection]
            self.log(f"test/{selection}_growth_{name}", growth)
        super().on_test_epoch_end()

    def _log_metrics(self, metrics: MetricCollection, stage: str) -> None:
        self.nrmse_per_step[stage] = metrics["nrmse"].compute().reshape(-1).cpu()
        super()._log_metrics(metrics, stage)
