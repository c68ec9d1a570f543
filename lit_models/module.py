"""The base of every LightningModule: one loss, one set of metrics, one optimiser, no surprises."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric, Metric, MetricCollection

from lit_models.callbacks.cadence import batches_of_step
from lit_models.task import Task, in_single
from lit_models.trainer import data_of


class NonFiniteError(RuntimeError):
    """The loss or its gradient is NaN or infinite; raised before the optimiser step."""


class UnfitDataError(RuntimeError):
    """The data are not what the model was made for; raised before training."""


@dataclass
class Optimisation:
    """AdamW or plain SGD, with linear warm-up and decay to `final_lr_ratio` × `lr`.

    Args:
        lr: peak learning rate.
        weight_decay: on weight matrices only; biases, norms, Δ and D have none.
        warmup: share of all steps that warm up linearly.
        betas: AdamW's momenta.
        final_lr_ratio: learning rate of the last step over the peak.
        decay: `cosine`, `linear` or `none`.
        eps: AdamW's.
        algorithm: `adamw`, or `sgd` without momentum.

    Raises:
        ValueError: `decay` or `algorithm` is another.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.02
    betas: Sequence[float] = (0.9, 0.999)
    final_lr_ratio: float = 0.0
    decay: str = "cosine"
    eps: float = 1e-8
    algorithm: str = "adamw"

    def __post_init__(self):
        if self.decay not in ("cosine", "linear", "none"):
            raise ValueError(f"Expected a cosine or linear decay, or none, got {self.decay!r}.")
        if self.algorithm not in ("adamw", "sgd"):
            raise ValueError(f"Expected adamw or sgd for an algorithm, got {self.algorithm!r}.")

    def factor(self, step: int, total: int) -> float:
        """Learning rate at `step` of `total`, relative to the peak."""
        warmup = self.warmup * total
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.decay == "none":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
        linear = self.decay == "linear"
        left = 1 - progress if linear else (1 + math.cos(math.pi * progress)) / 2
        return self.final_lr_ratio + (1 - self.final_lr_ratio) * left

    def build(self, module: nn.Module, total: int) -> OptimizerLRSchedulerConfig:
        """Optimiser and per-step schedule in Lightning's form."""
        decayed, others = [], []
        for name, parameter in module.named_parameters():
            matrix = parameter.ndim > 1 and name.endswith("weight")
            (decayed if matrix else others).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        if self.algorithm == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr)
        else:
            how = {"lr": self.lr, "betas": tuple(self.betas), "eps": self.eps}
            optimizer = torch.optim.AdamW(groups, **how)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: self.factor(s, total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Penalty(Protocol):
    """What training adds to the loss, see `lit_models.callbacks.explicit_regularisation`."""

    weight: float

    def losses(self, module: "LitModule", batch: Any) -> tuple[Tensor, Tensor]:
        """The loss, and what is added to it `weight` times."""
        ...


class LitModule(L.LightningModule):
    """Trains a network on a task.

    `self(batch)`, here `self.net(batch)`, is the prediction that the task scores. Logged:
    train/loss, train/grad_norm and, for validation and test, loss and the task's scores as
    <stage>/<name>.

    Args:
        task: what is predicted, its loss and its metrics.
        net: maps a batch to the prediction.
        optimisation: optimiser and schedule.
        compile: torch.compile the network with dynamic shapes.

    Attributes:
        label_names: of the outputs, where the data have names; known of a model that was trained.
    """

    penalty: Penalty | None = None

    def __init__(
        self, task: Task, net: nn.Module, optimisation: Optimisation, *, compile: bool = False
    ):
        super().__init__()
        self.task, self.optimisation, self.compile_net = task, optimisation, compile
        self.label_names: list[str] = []
        self.val_metrics, self.test_metrics = task.metrics(), task.metrics()
        # Not by `log`: Lightning rounds the mean number of a process's samples down.
        self.mean_loss = MeanMetric(nan_strategy="disable")
        self.net = net
        self.register_state_dict_post_hook(_leave_what_cannot_be_loaded)

    def forward(self, batch: Any) -> Tensor:
        return self.net(self.in_precision(self.task.as_batch(batch)))

    def in_precision(self, batch: Any) -> Any:
        """A tensor, a dict of tensors or a graph batch, in the precision of the weights."""
        dtype = next((p.dtype for p in self.parameters()), torch.float32)
        if dtype == torch.float32:  # also where autocast chooses the precision
            return batch

        def convert(x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        if isinstance(batch, Tensor):
            return convert(batch)
        if isinstance(batch, dict):
            return {name: convert(x) for name, x in batch.items()}
        return copy(batch).apply(convert)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LitModule":
        super()._apply(fn, recurse)
        # Metrics sum in float32 whatever the precision of the weights.
        for metric in self.modules():
            if isinstance(metric, Metric) and metric.dtype != torch.float32:
                metric._dtype_convert = True
                nn.Module.float(metric)
                metric._dtype_convert = False
        return self

    def setup(self, stage: str) -> None:
        if self.compile_net:
            self.net.compile(dynamic=True)

    def configure_model(self) -> None:
        if self.trainer.precision in ("64-true", "bf16-true", "16-true"):
            # Lightning would round targets too, and make new tensors, such as those of a metric, of
            # the weights' precision. `forward` converts what the network is given.
            self.trainer.precision_plugin.convert_input = lambda data: data
            self.trainer.precision_plugin.forward_context = nullcontext
        if self.trainer.precision == "64-true":
            # Before weights are restored, which Lightning would do in float32.
            self.double()
        # Only a strategy that shares weights among processes (trainer=fsdp) sets a mesh. Called
        # again before testing.
        if self._device_mesh is None or isinstance(self.net, FSDPModule):
            return
        mesh = self._device_mesh["data_parallel"]
        for module in reversed([*self.net.modules()]):
            if isinstance(module, nn.ModuleList):
                for block in module:
                    fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = getattr(data_of(self.trainer), "label_names", [])
        checkpoint["label_names"] = [str(name) for name in names]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.label_names = checkpoint.get("label_names", [])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout of a step depends on seed, step and rank alone, so that a resumed run draws what
        # the uninterrupted one would have drawn.
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        key = [seed, self.global_rank, self.trainer.current_epoch, batch_idx]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        samples = self.task.samples(batch)
        if self.penalty is None:
            loss = objective = self.training_loss(batch)
        else:
            loss, penalty = self.penalty.losses(self, batch)
            objective = loss + self.penalty.weight * penalty
            self.log("train/penalty", penalty, batch_size=samples)
        self._loss = objective.detach()
        self.log("train/loss", loss, prog_bar=True, batch_size=samples)
        return objective * self.task.weight(batch, data_of(self.trainer).batch_size)

    def training_loss(self, batch: Any) -> Tensor:
        """The mean over a batch's samples of what training minimises."""
        return self.task.loss(in_single(self(batch)), batch)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # Lightning divides by the batches of a whole step, also in an epoch's last one, which has
        # the batches that are left.
        left, whole = batches_of_step(self.trainer), self.trainer.accumulate_grad_batches
        super().backward(loss if left == whole else loss * (whole / left), *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norm = torch.nn.utils.get_total_norm(gradients_of(self))
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        values = {"loss": self._loss, "gradient norm": norm}
        if self.trainer.precision == "16-mixed":
            # A loss scaler meets overflowing gradients by design and skips such steps itself.
            del values["gradient norm"]
        self._require_finite(values, self.trainer.fit_loop.batch_idx)
        self.log("train/grad_norm", norm)

    def _require_finite(self, values: dict[str, Tensor], batch_idx: int) -> None:
        # The only look at a GPU's numbers that every step takes.
        finite = torch.stack([value.float() for value in values.values()]).isfinite()
        # All processes stop together: one alone would leave the others waiting for its gradients.
        if not self.trainer.strategy.reduce_boolean_decision(bool(finite.all())):
            what = list(values)[int(finite.int().argmin())]
            raise NonFiniteError(
                f"The {what} became {float(values[what])} at step {self.global_step} (epoch "
                f"{self.trainer.current_epoch}, batch {batch_idx}), before the optimiser step: "
                "train again with a smaller model.optimisation.lr, a longer warm-up or a smaller "
                "trainer.gradient_clip_val, or look for bad values in that batch."
            )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: Any, metrics: MetricCollection) -> None:
        prediction = in_single(self(batch))
        self.task.update(metrics, prediction, batch)
        loss = self.task.loss(prediction, batch)
        self.mean_loss.update(loss.expand(self.task.samples(batch)))

    def on_validation_epoch_end(self) -> None:
        self._log_metrics(self.val_metrics, "val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics(self.test_metrics, "test")

    def _log_metrics(self, metrics: MetricCollection, stage: str) -> None:
        for name, value in self.task.scores(metrics).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == self.task.selection)
        names = getattr(data_of(self.trainer), "label_names", [])
        for name, value in self.task.per_label(metrics, names).items():
            self.log(f"{stage}_{name}", value)
        self.log(f"{stage}/loss", self.mean_loss.compute())
        metrics.reset()
        self.mean_loss.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimisation.build(self, int(self.trainer.estimated_stepping_batches))


def _leave_what_cannot_be_loaded(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Take out of a state_dict what a foreign network added that is no state of a module.

    `load_state_dict` would refuse it, and `torch.load(weights_only=True)` the classes in it; the
    networks of neuraloperator add their constructor's arguments.
    """
    for key in [*state_dict]:
        if not isinstance(state_dict[key], Tensor) and not key.endswith("_extra_state"):
            del state_dict[key]


def gradients_of(module: nn.Module) -> list[Tensor]:
    """Of all parameters that have one."""
    return [p.grad for p in module.parameters() if p.grad is not None]
