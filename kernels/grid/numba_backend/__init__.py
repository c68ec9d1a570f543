"""Sums of grids' DAGs by loops that numba compiles; imported only where numba is there."""

from kernels.grid.numba_backend.forms import RowForm, StateForm, Ways, faster_form

__all__ = ["RowForm", "StateForm", "Ways", "faster_form"]
