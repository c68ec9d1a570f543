"""Which code computes an op: Triton kernels, vectorised torch, or the reference."""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

Backend = Literal["auto", "torch", "triton", "reference"]
Function = TypeVar("Function", bound=Callable)
HAS_TRITON = importlib.util.find_spec("triton") is not None


def choose_backend(
    backend: Backend, tensors: tuple[Tensor, ...], able: bool, knows: str
) -> Backend:
    """The backend that is meant: by default Triton's kernels on a GPU, wherever they can do it.

    Args:
        backend: what was asked for.
        tensors: the inputs with numbers.
        able: whether there are kernels for what is to be computed.
        knows: what there are kernels for, for people.

    Raises:
        ValueError: there is no such backend, or it cannot do it.
    """
    if backend not in ("auto", "torch", "triton", "reference"):
        raise ValueError(
            f"backend must be 'auto', 'torch', 'triton' or 'reference', got {backend!r}."
        )
    able = able and all(x.dtype != torch.float64 for x in tensors)
    if backend == "auto":
        return "triton" if able and HAS_TRITON and tensors[-1].is_cuda else "torch"
    if backend == "triton" and not able:
        raise ValueError(f"backend='triton' knows {knows}, and no float64: leave backend out.")
    return backend


def can_be_checked(x: Tensor) -> bool:
    """Whether a look at numbers costs no wait for a GPU, and is no break in a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def uncompiled(function: Function) -> Function:
    """Keep a function out of compiled graphs by `torch.compiler.disable`, which loses its type."""
    return cast(Function, torch.compiler.disable(function))


def log_choice(op: str, backend: str, how: str, device: str) -> None:
    """Say once how an op is computed."""
    if not torch.compiler.is_compiling():
        _log_once(op, backend, how, device)


@functools.cache
def _log_once(op: str, backend: str, how: str, device: str) -> None:
    logging.getLogger(f"kernels.{op}").info("backend %s, %s on %s", backend, how, device)
