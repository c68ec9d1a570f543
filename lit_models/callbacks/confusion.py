"""Which classes are taken for which, in TensorBoard."""

from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lit_models.callbacks.cadence import is_due
from lit_models.module import LitModule
from lit_models.trainer import board_of, data_of

MOST_NAMED = 12


class Classification(Protocol):
    """A task that has classes."""

    num_outputs: int


class ConfusionMatrix(Callback):
    """Draws the confusion matrix of a classifier over the first validation set.

    Batches have their class under `label`; a task with one output is no classification, and
    nothing is drawn.

    Args:
        every_n_epochs: validation epochs between two drawings; the first and the last are drawn.
    """

    def __init__(self, every_n_epochs: int = 1):
        self.every_n_epochs = every_n_epochs
        self.matrix: MulticlassConfusionMatrix | None = None
        self.prediction = torch.empty(0)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = cast(LitModule, pl_module)
        classes = cast(Classification, module.task).num_outputs
        self.matrix = None
        if classes > 1 and is_due(trainer, self.every_n_epochs):
            self.matrix = MulticlassConfusionMatrix(classes).to(module.device)
            self.hook = module.net.register_forward_hook(self._keep)

    def _keep(self, net: torch.nn.Module, inputs: tuple, prediction: Tensor) -> None:
        self.prediction = prediction

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.matrix is not None and dataloader_idx == 0:
            self.matrix.update(self.prediction, batch["label"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.matrix is None:
            return
        self.hook.remove()
        counts = self.matrix.compute().cpu()  # of all processes, so none may leave before
        self.matrix, self.prediction = None, torch.empty(0)
        if trainer.is_global_zero:
            names = getattr(data_of(trainer), "label_names", []) or range(len(counts))
            figure = draw_confusion(counts, [str(name) for name in names])
            board_of(trainer).add_figure("confusion", figure, trainer.global_step)


def draw_confusion(counts: Tensor, names: list[str]) -> Figure:
    """Counts [true, predicted], coloured by their share of the true class.

    Of more than `MOST_NAMED` classes colours alone.
    """
    share = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    size = min(len(names), MOST_NAMED)
    figure = Figure(figsize=(1.5 + size, 1 + size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) > MOST_NAMED:
        return figure
    for i, row in enumerate(counts.tolist()):
        for j, count in enumerate(row):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    return figure
