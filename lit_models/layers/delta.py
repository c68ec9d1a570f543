"""Where Δ, a state-space model's step, begins."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

MIN_DELTA = 1e-4


def delta_bias_init(
    channels: int, heads: int, delta_range: Sequence[float]
) -> Float[Tensor, "channels heads"]:
    """softplus⁻¹ of log-uniform draws from `delta_range`, no step below MIN_DELTA."""
    low, high = torch.tensor(list(delta_range)).log()
    delta = (low + (high - low) * torch.rand(channels, heads)).exp().clamp(min=MIN_DELTA)
    return delta + torch.log(-torch.expm1(-delta))
