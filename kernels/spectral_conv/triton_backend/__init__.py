"""The spectral convolution by Triton kernels; imported only where Triton is there.

What Triton compiles is marked `no_type_check`: Triton reads its source, which the shape checks of
the tests would hide.
"""

from kernels.spectral_conv.triton_backend.passes import convolution

__all__ = ["convolution"]
