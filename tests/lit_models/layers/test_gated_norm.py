"""lit_models.layers.gated_norm against the same formula by autograd."""

import pytest
import torch
from torch.nn import functional as F

from lit_models.layers.gated_norm import ROWS, GatedRMSNorm


def by_autograd(norm, y, z):
    return F.rms_norm(y, y.shape[-1:], norm.weight, norm.eps) * F.silu(z)


@pytest.mark.parametrize("tokens", [0, 1, ROWS, 2 * ROWS + 3])
def test_outputs_and_gradients(tokens):
    norm = GatedRMSNorm(6).double()
    with torch.no_grad():
        norm.weight.normal_()
    y, z, d_out = torch.randn(3, tokens, 6, dtype=torch.float64)
    inputs = (y.requires_grad_(), z.requires_grad_(), norm.weight)
    found, exact = norm(y, z), by_autograd(norm, y, z)
    torch.testing.assert_close(found, exact)
    gradients = (torch.autograd.grad(x, inputs, d_out) for x in (found, exact))
    torch.testing.assert_close(*gradients)


def test_rows_of_zeros_and_of_huge_values():
    norm = GatedRMSNorm(4)
    y = torch.tensor([[0.0] * 4, [1e15] * 4]).requires_grad_()
    out = norm(y, torch.ones(2, 4))
    torch.testing.assert_close(out[0], torch.zeros(4))
    torch.testing.assert_close(out[1], F.silu(torch.ones(4)))
    (gradient,) = torch.autograd.grad(out.sum(), y)
    assert gradient.isfinite().all()


def test_mixed_precision_is_left_to_torch():
    norm = GatedRMSNorm(8)
    y, z = torch.randn(5, 8), torch.randn(5, 8).bfloat16()
    torch.testing.assert_close(norm(y, z), by_autograd(norm, y, z))


def test_differentiating_twice_is_refused():
    y = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(GatedRMSNorm(3)(y, y).sum(), y, create_graph=True)
