"""Grids by Triton kernels, one file per form; imported only where Triton is there.

What Triton compiles is marked `no_type_check`: Triton reads its source, which the shape checks of
the tests would hide.
"""

from kernels.grid.triton_backend.rows import grid_rows
from kernels.grid.triton_backend.states import grid_product

__all__ = ["grid_product", "grid_rows"]
