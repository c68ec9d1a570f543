"""An exponential moving average of the weights, used to validate, to test and to keep."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class ExponentialMovingAverage(WeightAveraging):
    """Lightning's weight averaging, after every optimiser step.

    Statistics of batch norm are averaged with the weights. Integer buffers, such as the offsets of
    an embedding, are copied: rounding an average would corrupt them, as Lightning's own EMA does.

    Args:
        decay: share of the old average that a step keeps; 0 turns averaging off.
    """

    def __init__(self, decay: float):
        def average(old: Tensor, new: Tensor, _: Tensor) -> Tensor:
            return new.lerp(old.to(new.dtype), decay) if new.is_floating_point() else new

        super().__init__(use_buffers=True, avg_fn=average)
