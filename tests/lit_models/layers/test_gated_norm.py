"""lit_models.layers.gated_norm against the same formula by autograd."""

import pytest
import torch
from torch.nn import functional as F

from kernels import tiling
from lit_models.layers.gated_norm import gated_norm

ROWS, WIDTH = 5, 6


def by_autograd(y, z):
    return F.rms_norm(y, y.shape[-1:], eps=1e-5) * F.silu(z)


@pytest.mark.parametrize("tokens", [0, 1, ROWS, 2 * ROWS + 3])
def test_outputs_and_gradients(monkeypatch, tokens):
    monkeypatch.setattr(tiling, "CPU_TILE", ROWS * WIDTH)
    y, z, d_out = torch.randn(3, tokens, WIDTH, dtype=torch.float64)
    inputs = (y.requires_grad_(), z.requires_grad_())
    found, exact = gated_norm(*inputs), by_autograd(*inputs)
    torch.testing.assert_close(found, exact)
    gradients = (torch.autograd.grad(x, inputs, d_out) for x in (found, exact))
    torch.testing.assert_close(*gradients)


def test_rows_of_zeros_and_of_huge_values():
    y = torch.tensor([[0.0] * 4, [1e15] * 4]).requires_grad_()
    out = gated_norm(y, torch.ones(2, 4))
    torch.testing.assert_close(out[0], torch.zeros(4))
    torch.testing.assert_close(out[1], F.silu(torch.ones(4)))
    (gradient,) = torch.autograd.grad(out.sum(), y)
    assert gradient.isfinite().all()


def test_mixed_precision_is_left_to_torch():
    y, z = torch.randn(5, 8), torch.randn(5, 8).bfloat16()
    torch.testing.assert_close(gated_norm(y, z), by_autograd(y, z))


def test_differentiating_twice_is_refused():
    y = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gated_norm(y, y).sum(), y, create_graph=True)
