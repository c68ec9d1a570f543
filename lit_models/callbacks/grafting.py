"""The length of a step from one gradient, its direction from another.

A step is θ ← θ − η a ∇L_B / ‖∇L_B‖, where B is the large batch, `trainer.accumulate_grad_batches`
of the data module's batches. The rules differ in the length a; each is a callback, so that any
experiment takes one of configs/grafting by one word, `+grafting@callbacks.grafting=constant`. The
optimiser must be SGD, `model.optimisation.algorithm=sgd`: others have lengths of their own.

Source: Novack et al., "Disentangling the Mechanisms Behind Implicit Regularization in SGD",
arXiv:2211.15853, after Agarwal et al., "Disentangling Adaptive Gradient Methods from Learning
Rates", arXiv:2002.11803.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lit_models.callbacks.cadence import batches_of_step
from lit_models.module import LitModule, UnfitDataError, gradients_of
from lit_models.trainer import data_of

LOGGED = "train/grad_norm"


class Grafting(Callback, ABC):
    """Gives the gradient of every step another length; a subclass says which.

    Raises:
        UnfitDataError: before training, gradients are clipped or scaled, or the optimiser is not
            SGD.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.precision == "16-mixed":
            raise UnfitDataError(
                "Expected gradients of their own length, which 16-mixed scales: set "
                "trainer.precision to 32-true or bf16-mixed."
            )
        if not all(isinstance(optimizer, torch.optim.SGD) for optimizer in trainer.optimizers):
            raise UnfitDataError(
                "Expected an optimiser whose step is as long as the gradient says: set "
                "+model.optimisation.algorithm=sgd."
            )
        if trainer.gradient_clip_val:
            raise UnfitDataError(
                "Expected gradients of any length, as grafting decides about it, but "
                f"trainer.gradient_clip_val is {trainer.gradient_clip_val}: set it to null."
            )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = gradients_of(pl_module)
        norm = torch.nn.utils.get_total_norm(gradients)
        # No direction is taken where there is none.
        factor = self.length(trainer.global_step) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]

    @abstractmethod
    def length(self, step: int) -> Tensor | float:
        """a of a step."""


class ConstantNorm(Grafting):
    """One length for all steps: normalised gradient descent.

    Args:
        norm: a.
    """

    def __init__(self, norm: float):
        self.norm = norm

    def length(self, step: int) -> float:
        return self.norm


class ExternalGrafting(Grafting):
    """The gradient's length at the same place of another run, such as one of small batches.

    Between steps that were logged, lengths are interpolated linearly; before the first and after
    the last the nearest one stands.

    Args:
        run: its folder.
        pace: its steps to one of this run, more than one where its batches are smaller but its
            epochs as many.

    Raises:
        UnfitDataError: it logged no lengths.
    """

    def __init__(self, run: str, pace: float = 1.0):
        if not Path(run).is_dir():
            raise UnfitDataError(f"Expected the folder of a run, but there is no {run}.")
        events = EventAccumulator(run, size_guidance={"scalars": 0}).Reload()
        if LOGGED not in events.Tags()["scalars"]:
            raise UnfitDataError(f"Expected a run that logged {LOGGED}, but {run} did not.")
        self.pace = pace
        # Of a step that a resumed run repeated, the last counts.
        norms = {point.step: point.value for point in events.Scalars(LOGGED)}
        self.steps, self.norms = zip(*sorted(norms.items()), strict=True)

    def length(self, step: int) -> float:
        return float(np.interp(self.pace * step, self.steps, self.norms))


class IterativeGrafting(Grafting):
    """The length of the gradient of the first micro-batch of every step, its penalty included.

    Among several processes, the mean of those of their first micro-batches.
    """

    def __init__(self):
        self.norm = torch.tensor(0.0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # What a micro-batch's gradient is multiplied by before it is added to the others.
        task = cast(LitModule, pl_module).task
        self.share = task.weight(batch, data_of(trainer).batch_size)
        self.share /= batches_of_step(trainer)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0:
            norm = torch.nn.utils.get_total_norm(gradients_of(pl_module)) / self.share
            self.norm = trainer.strategy.reduce(norm, reduce_op="mean")

    def length(self, step: int) -> Tensor:
        return self.norm
