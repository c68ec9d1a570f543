"""In which precision the torch backends compute."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_float32(operator: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply an operator in at least float32, outside autocast; the last input gives the dtype."""
    V = inputs[-1]
    dtype = torch.promote_types(V.dtype, torch.float32)
    with torch.autocast(V.device.type, enabled=False):
        return operator(*(x.to(dtype) for x in inputs)).to(V.dtype)
