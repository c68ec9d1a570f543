"""What tests put into a run to hurt it."""

import os
import signal
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_models.graphs.bag_of_atoms import BagOfAtoms


class KillAt(Callback):
    """kill −9 (or another signal) just before a step, unless the run was resumed."""

    def __init__(self, step: int, signal_number: int = int(signal.SIGKILL)):
        self.step, self.signal_number = step, signal_number

    def on_train_batch_start(self, trainer: L.Trainer, *args) -> None:
        if trainer.global_step == self.step and trainer.ckpt_path is None:
            os.kill(os.getpid(), self.signal_number)


class KillInValidation(Callback):
    """kill −9 in the validation of an epoch, unless the run was resumed."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_validation_batch_start(self, trainer: L.Trainer, *args) -> None:
        if trainer.current_epoch == self.epoch and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGKILL)


class StopAtEnd(Callback):
    """Stop, as Ctrl-C does, when all is trained and validated, unless the run was resumed."""

    def on_train_end(self, trainer: L.Trainer, *args) -> None:
        if trainer.ckpt_path is None:
            raise KeyboardInterrupt


class OpaqueNet(BagOfAtoms):
    """A network whose state torch.load(weights_only=True) refuses."""

    def get_extra_state(self) -> object:
        return Path("anywhere")


class PoisonAt(Callback):
    """Make a weight NaN before a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(module.parameters()).fill_(torch.nan)
