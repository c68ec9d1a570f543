"""Launches of Triton kernels: on a GPU, interpreted on a CPU, or only noted for a compiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import triton
from torch import Tensor
from triton import knobs


class Launch(NamedTuple):
    """One kernel with its arguments, in the order of its parameters, as it would have run."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


_notebook: list[Launch] | None = None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int = 1,
    **constants: Any,
) -> None:
    """Run a Triton kernel over a grid of programs; an empty grid runs nothing.

    Args:
        kernel: made by `triton.jit`.
        grid: number of programs along each axis.
        arguments: tensors and numbers, in the order of the kernel's parameters.
        num_warps: threads per program, in units of 32.
        num_stages: above 1 the compiler loads ahead in loops, which is wrong where a loop reads
            what it has written.
        constants: the kernel's `tl.constexpr` parameters.

    Raises:
        ValueError: the tensors are on a CPU, and kernels are not interpreted.
    """
    if 0 in grid:
        return
    if _notebook is not None:
        _notebook.append(Launch(kernel, grid, arguments, constants, num_warps, num_stages))
        return
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)
        return
    if not knobs.runtime.interpret:
        raise ValueError(
            "Triton kernels need tensors on a GPU: move them there, leave backend='triton' out, or "
            "set TRITON_INTERPRET=1 before Python starts to have them interpreted, slowly."
        )
    kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


@contextmanager
def noted_launches() -> Iterator[list[Launch]]:
    """Launches inside are noted instead of run; what they would have written stays unwritten."""
    global _notebook
    before, _notebook = _notebook, []
    try:
        yield _notebook
    finally:
        _notebook = before


def cdiv(count: int, size: int) -> int:
    """`triton.cdiv` outside of kernels, where it gives a plain number."""
    return cast(int, triton.cdiv(count, size))


def next_power_of_2(size: int) -> int:
    """`triton.next_power_of_2` outside of kernels, where it gives a plain number."""
    return cast(int, triton.next_power_of_2(size))


def dot_precision(dtype: torch.dtype) -> str:
    """Precision of `tl.dot` on float32 operands that come from inputs of this dtype.

    Three TF32 products are nearly as exact as float32. One, whose operands lose all but 10 bits of
    their fractions, will do for bfloat16, which has 7, and for float32 where torch has been told so
    (`torch.set_float32_matmul_precision`); float16 has 10 itself, and sums would show the loss.
    """
    told = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if told or dtype == torch.bfloat16 else "tf32x3"
