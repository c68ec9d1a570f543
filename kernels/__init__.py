"""Performance-critical operators: one op a folder, one public function an op."""

from kernels.resolvent import AddElimination, AddPlan, resolvent, resolvent_matrix

__all__ = ["AddElimination", "AddPlan", "resolvent", "resolvent_matrix"]
