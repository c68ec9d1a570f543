"""The resolvent by Triton kernels, one file per form; imported only where Triton is there.

What Triton compiles is marked `no_type_check`: Triton reads its source, which the shape checks of
the tests would hide.
"""

from kernels.resolvent.triton_backend.row import row_form
from kernels.resolvent.triton_backend.state import state_form

__all__ = ["row_form", "state_form"]
