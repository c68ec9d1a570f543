"""FFNO: its layer by hand, alive in every parameter, the same map at every resolution."""

import pytest
import torch
from torch.nn import functional as F

from lit_models.operators.ffno import FFNO
from tests.lit_models.operators.fabricated import (
    check_every_block_matters,
    check_every_parameter_learns,
    check_resolution_transfer,
)

SIZES = [((6,), (32,)), ((4, 3), (12, 15)), ((2, 3, 2), (8, 9, 7))]


def make(modes, **options):
    return FFNO(2, 3, modes, **{"width": 8, "layers": 3} | options)


@pytest.mark.parametrize(("modes", "points"), SIZES)
def test_a_block_by_hand(modes, points):
    """x + GELU(W₂ GELU(W₁ K x + b₁) + b₂), K a sum over axes of products with Fourier modes."""
    block, x = make(modes).blocks[1], torch.randn(2, 8, *points)
    summed = torch.zeros_like(x)
    for axis, conv in enumerate(block.conv.axes, start=2):
        spectrum = torch.fft.rfft(x.movedim(axis, -1))
        weight = torch.view_as_complex(conv.weight.transpose(2, 3).contiguous())
        kept = torch.einsum("bc...k,kcd->bd...k", spectrum[..., : len(weight)], weight)
        summed += torch.fft.irfft(kept, n=x.shape[axis]).movedim(-1, axis)
    first, second = block.mlp.first, block.mlp.second
    y = F.gelu(torch.einsum("dc,bc...->bd...", first.weight, summed) + along(first, x))
    y = torch.einsum("dc,bc...->bd...", second.weight, y) + along(second, x)
    torch.testing.assert_close(block(x), x + F.gelu(y), atol=1e-5, rtol=1e-5)


def along(layer, x):
    return layer.bias.reshape(-1, *[1] * (x.ndim - 2))


def test_shared_weights_are_one():
    apart, shared = make((4, 4)), make((4, 4), shared=True)
    convs = [block.conv for block in shared.blocks]
    assert all(conv is convs[0] for conv in convs)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (apart, shared)]
    assert sizes[0] - sizes[1] == 2 * 2 * 4 * 8 * 8 * 2


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("modes", "points"), SIZES)
def test_every_parameter_learns_and_every_block_matters(modes, points, shared):
    net, x = make(modes, shared=shared), torch.randn(2, 2, *points)
    check_every_parameter_learns(net, x)
    check_every_block_matters(net, x)


@pytest.mark.parametrize(("coordinates", "tolerance"), [(None, 1e-4), ("periodic", 0.01)])
@pytest.mark.parametrize(
    ("modes", "points"), [((6,), (32,)), ((4, 3), (16, 16)), ((2, 2, 2), (8, 8, 8))]
)
def test_the_same_function_at_twice_the_resolution(modes, points, coordinates, tolerance):
    check_resolution_transfer(make(modes, coordinates=coordinates), points, tolerance)


@pytest.mark.parametrize("options", [{"width": 0}, {"layers": 0}])
def test_what_cannot_be_is_said(options):
    with pytest.raises(ValueError, match="Expected positive"):
        make((4,), **options)
