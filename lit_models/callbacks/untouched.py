"""Measuring a network while it is trained, without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without compilation; modes and random numbers are afterwards as before."""
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with (
            torch.random.fork_rng(),
            torch.enable_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        for part, mode in training:
            part.training = mode
