"""Checkpoints that are whole or absent."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_models.callbacks.cadence import is_amid_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames: a kill leaves the old file whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save `checkpoint` to `path`; `storage_options` is Lightning's and must be None."""
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO takes no storage_options.")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's, which notes where files lie in its folder, so that a run may be moved.

    Lightning notes absolute paths, and forgets the best score where they have changed.
    """

    def state_dict(self) -> dict[str, Any]:
        return _with_paths(super().state_dict(), lambda path: Path(path).name) | {"dirpath": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None  # of the constructor
        folder = Path(self.dirpath)
        found = _with_paths(state_dict, lambda name: str(folder / name))
        super().load_state_dict(found | {"dirpath": self.dirpath})


def _with_paths(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A checkpoint callback's state with all its paths changed, empty ones aside."""
    changed = {
        key: change(value) if key.endswith("_path") and value else value
        for key, value in state.items()
    }
    models = {change(path): score for path, score in state["best_k_models"].items()}
    return changed | {"best_k_models": models}


class BestCheckpoint(MovableCheckpoint):
    """Keeps the checkpoint that is best on validation data.

    Args:
        dirpath: of the checkpoint, best.ckpt.
        monitor: name of the metric.
        mode: "max" where a higher value is better, else "min".
    """

    def __init__(self, dirpath: str | Path, monitor: str, mode: str):
        super().__init__(dirpath, "best", monitor, mode=mode, enable_version_counter=False)


class LastCheckpoint(MovableCheckpoint):
    """Overwrites one checkpoint every so many steps, and at the end of every epoch.

    None is written between an epoch's last step and its end: a run that went on from there would
    skip the epoch's validation, and with it perhaps the best checkpoint.

    Args:
        dirpath, filename: of the checkpoint.
        every_n_train_steps: steps between two of an epoch.
    """

    def __init__(self, dirpath: str | Path, filename: str, every_n_train_steps: int):
        super().__init__(
            dirpath, filename, every_n_train_steps=every_n_train_steps, enable_version_counter=False
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        # Nor amid a step of several batches, whose gradients so far no checkpoint holds.
        if not (last or is_amid_step(trainer)):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
