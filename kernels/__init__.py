"""Performance-critical operators: one op a folder, one public function an op."""

from kernels.resolvent import AddElimination, AddPlan, resolvent, resolvent_matrix
from kernels.spectral_conv import spectral_conv

__all__ = ["AddElimination", "AddPlan", "resolvent", "resolvent_matrix", "spectral_conv"]
