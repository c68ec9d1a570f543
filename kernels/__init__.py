"""Performance-critical operators: one op a folder, one public function an op."""

from kernels.resolvent import resolvent, resolvent_matrix

__all__ = ["resolvent", "resolvent_matrix"]
