"""A moving average of the weights, used to validate, to test and to keep."""

from copy import deepcopy

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class ExponentialMovingAverage(WeightAveraging):
    """Lightning's weight averaging, after every optimiser step.

    After step t + 1 the share min(decay, (1 + t) / (10 + t)) of the old average is kept, so that
    the window grows with training and forgets where it began: of 75 steps the first weighs 1e-10,
    where a fixed decay of .99 would leave it .47. From step 891 on a decay of .99 is kept as it is.

    Statistics of batch norm are averaged with the weights. Integer buffers, such as the offsets of
    an embedding, are copied: rounding an average would corrupt them, as Lightning's own EMA does.
    Weights of 16 bits are averaged in float32, as theirs would round small changes away.

    Args:
        decay: largest share of the old average that a step keeps; 0 turns averaging off.

    Source: the growing window is that of TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self._unrounded: dict[str, Tensor] | None = None
        super().__init__(use_buffers=True, avg_fn=self._average)

    def _average(self, old: Tensor, new: Tensor, _: Tensor) -> Tensor:
        if not new.is_floating_point():
            return new
        # Every step is averaged, so this many were; Lightning's own count lies on the device.
        steps = self._latest_update_step
        return new.to(old.dtype).lerp(old, min(self.decay, (1 + steps) / (10 + steps)))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.precision == "64-true":
            # The model itself is converted later; an average in float32 would round it when the
            # two are exchanged for validation.
            assert self._average_model is not None  # made by Lightning's setup
            self._average_model.double()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average_model is not None and trainer.precision in ("16-true", "bf16-true"):
            self._unrounded = deepcopy(self._average_model.state_dict())
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if self._unrounded is not None and self._average_model is not None:
            # The model of 16 bits that borrowed the average gave it back rounded.
            self._average_model.load_state_dict(self._unrounded)
            self._unrounded = None
