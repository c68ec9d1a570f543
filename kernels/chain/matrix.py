"""(I − A)⁻¹ of chains, written out."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def chain_matrix(weight: Float[Tensor, "*batch Q"]) -> Float[Tensor, "*batch Q Q"]:
    """L = (I − A)⁻¹ of chains of Q nodes: L[i, j] = w[j + 1] ⋯ w[i] for j ≤ i; w[0] is not read.

    Row i is w[i] times row i − 1. Blocks of about √Q rows take all their rows' first steps at once,
    then each block continues the last row of the one before: 2√Q steps instead of Q.
    """
    Q = weight.shape[-1]
    block = largest_divisor_up_to_the_root(Q)
    L = weight.new_zeros(*weight.shape, Q)
    L.diagonal(dim1=-2, dim2=-1).fill_(1)
    own = L.unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    own = own.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # blocks on the diagonal [.., Q/b, b, b]
    w = weight.unflatten(-1, (-1, block)).unsqueeze(-1)
    for i in range(1, block):
        torch.mul(w[..., i, :], own[..., i - 1, :i], out=own[..., i, :i])
    entering = (w[..., 0, :] * own[..., 0]).unsqueeze(-1)
    for k in range(1, Q // block):
        first = k * block
        before, rows = L[..., first - 1 : first, :first], L[..., first : first + block, :first]
        torch.mul(entering[..., k, :, :], before, out=rows)
    return L


def chain_matrix_adjoint(
    L: Float[Tensor, "m Q Q"], dL: Float[Tensor, "m Q Q"]
) -> Float[Tensor, "m Q"]:
    """Gradient of `chain_matrix`'s weights: dA = Lᵀ dL Lᵀ on the edges (i − 1, i)."""
    T = torch.bmm(L.mT, dL)
    d_weight = T.new_zeros(T.shape[:-1])
    d_weight[:, 1:] = T[:, 1:].mul_(L[:, :-1]).sum(-1)
    return d_weight


def largest_divisor_up_to_the_root(count: int) -> int:
    """Blocks of this size cut `count` steps into about 2√count, fewer steps in each than blocks."""
    return max(d for d in range(1, math.isqrt(count) + 1) if count % d == 0)
