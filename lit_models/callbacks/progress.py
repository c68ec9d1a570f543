"""How fast a run goes and when it will end."""

import resource
import sys
import time
from datetime import timedelta
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from lit_models.module import LitModule
from lit_models.trainer import data_of


class RunProgress(TQDMProgressBar):
    """Lightning's bar, with samples per second and the time left of the whole run.

    Throughput counts the time from one training step's end to the next, loading included and
    validation not.

    Args:
        refresh_rate: batches between two redraws.
    """

    def __init__(self, refresh_rate: int = 20):
        super().__init__(refresh_rate=refresh_rate)
        self.seconds, self.samples, self.steps = 0.0, 0, 0
        self._last: float | None = None
        self._step = 0

    def on_train_epoch_start(self, trainer: L.Trainer, *args) -> None:
        super().on_train_epoch_start(trainer, *args)
        self._last = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        # The first step of a process pays for allocation and compilation: it is not the pace.
        if self._last is not None and self._step:
            self.seconds += now - self._last
            self.samples += cast(LitModule, pl_module).task.samples(batch)
            self.steps += trainer.global_step - self._step  # of the optimiser
        self._last, self._step = now, trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @property
    def samples_per_second(self) -> float:
        """Training throughput of this process, NaN before the second step."""
        return self.samples / self.seconds if self.seconds else float("nan")

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a training step of this process, NaN before the second step."""
        return self.seconds / self.steps if self.steps else float("nan")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        if self.steps and trainer.training:
            left = trainer.estimated_stepping_batches - trainer.global_step
            seconds = int(left * self.seconds_per_step)
            items[f"{data_of(trainer).counted}/s"] = round(self.samples_per_second)
            items["left"] = str(timedelta(seconds=max(0, seconds)))
        return items


def peak_memory_mib() -> dict[str, float]:
    """Peak resident memory of this process, and of its GPU where there is one, in MiB."""
    # ru_maxrss counts KiB on Linux and bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
