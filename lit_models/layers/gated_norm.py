"""A root-mean-square norm under a gate, as Mamba-2 has it before its last projection.

Shapes: N tokens, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.autograd import refuse_second_derivatives

ROWS = 128
"""Tokens worked on together on a CPU, so that what they need stays near the cores."""


class GatedRMSNorm(nn.RMSNorm):
    """weight · y / rms(y) ⊙ SiLU(z).

    Args:
        width: W.
        eps: added to the mean square.

    Source: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, whose code gates after the norm.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__(width, eps=eps)

    def forward(self, y: Float[Tensor, "N W"], z: Float[Tensor, "N W"]) -> Float[Tensor, "N W"]:
        if y.device.type == "cpu" and y.dtype == z.dtype == self.weight.dtype:
            return _GatedRMSNorm.apply(y, z, self.weight, self.eps)
        return super().forward(y) * F.silu(z)


class _GatedRMSNorm(torch.autograd.Function):
    """All passes over a few rows, then the next ones, where torch would pass over all rows."""

    @staticmethod
    def forward(ctx, y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square() / y.shape[1]
        scale = (mean_square + eps).rsqrt()
        out = torch.empty_like(y)
        for row in range(0, len(y), ROWS):
            rows = slice(row, row + ROWS)
            torch.mul(y[rows], scale[rows], out=out[rows])
            out[rows].mul_(F.silu(z[rows]).mul_(weight))
        ctx.save_for_backward(y, z, weight, scale)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        y, z, weight, scale = ctx.saved_tensors
        dy, dz, d_weight = (torch.empty_like(x) for x in (y, z, weight))
        d_weight.zero_()
        for row in range(0, len(y), ROWS):
            rows = slice(row, row + ROWS)
            normal = y[rows] * scale[rows]
            gate = F.silu(z[rows])
            d_gated = d_out[rows] * normal
            torch.ops.aten.silu_backward.grad_input(d_gated * weight, z[rows], grad_input=dz[rows])
            d_gated.mul_(gate)
            d_weight += d_gated.sum(0)
            along = (d_gated @ weight).unsqueeze(1) / y.shape[1]
            d_normal = gate.mul_(weight).mul_(d_out[rows])
            torch.addcmul(d_normal, normal, along, value=-1, out=dy[rows])
            dy[rows].mul_(scale[rows])
        return dy, dz, d_weight, None
