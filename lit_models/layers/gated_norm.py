"""A root-mean-square norm under a gate, as Mamba-2 has it before its last projection.

Shapes: N tokens, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from kernels.autograd import refuse_second_derivatives
from kernels.tiling import tiles


def gated_norm(
    y: Float[Tensor, "N W"], z: Float[Tensor, "N W"], eps: float = 1e-5
) -> Float[Tensor, "N W"]:
    """y / rms(y) ⊙ SiLU(z). A weight is left to the projection behind it, whose columns it scales.

    Args:
        y: [N, W] values.
        z: [N, W] gate.
        eps: added to the mean square.

    Source: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, whose code gates after the norm.
    """
    if y.device.type == "cpu" and y.dtype == z.dtype:
        return _GatedNorm.apply(y, z, eps)
    return F.rms_norm(y, y.shape[-1:], eps=eps) * F.silu(z)


class _GatedNorm(torch.autograd.Function):
    """All passes over a few rows, then the next ones, where torch would pass over all rows."""

    @staticmethod
    def forward(ctx, y: Tensor, z: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square() / y.shape[1]
        scale = (mean_square + eps).rsqrt()
        out = torch.empty_like(y)
        for rows in tiles(len(y), y.shape[1], y.device):
            torch.mul(y[rows], scale[rows], out=out[rows])
            out[rows].mul_(F.silu(z[rows]))
        ctx.save_for_backward(y, z, scale)
        return out

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] as torch means it to be
        ctx, d_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        y, z, scale = ctx.saved_tensors
        dy, dz = torch.empty_like(y), torch.empty_like(z)
        for rows in tiles(len(y), y.shape[1], y.device):
            normal, sigmoid = y[rows] * scale[rows], z[rows].sigmoid()
            gate = z[rows] * sigmoid
            torch.mul(d_out[rows], gate, out=dy[rows])
            along = torch.linalg.vecdot(dy[rows], normal).unsqueeze(-1) / y.shape[1]
            dy[rows].addcmul_(normal, along, value=-1).mul_(scale[rows])
            torch.mul(d_out[rows], normal, out=dz[rows])
            # SiLU's derivative.
            dz[rows].mul_(torch.addcmul(sigmoid, gate, sigmoid, value=-1).add_(gate))
        return dy, dz, None
