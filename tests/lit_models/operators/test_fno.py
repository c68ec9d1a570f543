"""FNO: equal to neuraloperator's, alive in every parameter, the same map at every resolution."""

import copy

import pytest
import torch
from neuralop.models import FNO as PeerFNO

from lit_models.operators.fno import FNO
from tests.lit_models.operators.fabricated import (
    check_every_block_matters,
    check_every_parameter_learns,
    check_resolution_transfer,
)

# Not odd on a leading axis: there neuraloperator 2.0 shifts spectra back by one mode too many.
SIZES = [((6,), (33,)), ((4, 3), (12, 15)), ((2, 3, 2), (8, 10, 7))]


def make(modes, **options):
    return FNO(2, 3, modes, **{"width": 8, "layers": 3} | options)


def peer_of(net, modes, channel_mlp, padding=None):
    """neuraloperator's FNO with the weights of ours."""
    peer = PeerFNO(
        n_modes=(*(2 * m for m in modes[:-1]), 2 * modes[-1] - 1),
        in_channels=2,
        out_channels=3,
        hidden_channels=8,
        n_layers=3,
        positional_embedding=None,
        use_channel_mlp=channel_mlp is not None,
        channel_mlp_expansion=channel_mlp or 0.5,
        domain_padding=padding,
    )
    axes = len(modes)
    pairs = [(peer.lifting, net.lifting), (peer.projection, net.projection)]
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            conv, skip = peer.fno_blocks.convs[i], peer.fno_blocks.fno_skips[i]
            weight = block.conv.weight.movedim(axes, 0).movedim(-1, 1)
            conv.weight.tensor.copy_(torch.view_as_complex(weight.contiguous()))
            conv.bias.copy_(block.conv.bias.reshape(conv.bias.shape))
            skip.conv.weight.copy_(block.conv.skip_weight.unsqueeze(-1))
            if block.mlp is not None:
                pairs.append((peer.fno_blocks.channel_mlp[i], block.mlp))
                gate = peer.fno_blocks.channel_mlp_skips[i].weight
                gate.copy_(block.gate.reshape(gate.shape))
        for theirs, ours in pairs:
            for layer, source in zip(theirs.fcs, (ours.first, ours.second), strict=True):
                layer.weight.copy_(source.weight.unsqueeze(-1))
                layer.bias.copy_(source.bias)
    return peer


def perturbed(net):
    """With gates and biases that are not what they begin as."""
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("channel_mlp", [0.5, 1.25, None])
@pytest.mark.parametrize(("modes", "points"), SIZES)
def test_equal_to_neuraloperator(modes, points, channel_mlp):
    net = perturbed(make(modes, channel_mlp=channel_mlp, coordinates=None))
    peer = peer_of(net, modes, channel_mlp)
    count = sum(p.numel() * (2 if p.is_complex() else 1) for p in peer.parameters())
    assert sum(p.numel() for p in net.parameters()) == count
    x = torch.randn(2, 2, *points)
    expected = peer(x)
    assert (net(x) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(max=1)
    finer = torch.randn(1, 2, *(2 * n for n in points))
    torch.testing.assert_close(net(finer), peer(finer), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("modes", "points"), SIZES)
def test_padding_is_neuraloperator_s_but_all_behind(modes, points):
    net = perturbed(make(modes, coordinates=None, padding=0.5))
    x = torch.randn(1, 2, *(4 * (n // 4) for n in points))
    peer = peer_of(net, modes, 0.5, padding=0.25)
    torch.testing.assert_close(net(x), peer(x), atol=1e-5, rtol=1e-5)
    assert (net(x) - peer_of(net, modes, 0.5)(x)).abs().max() > 1e-3


def test_padding_is_of_the_same_length_at_every_resolution():
    periodic, closed = make((4,), padding=0.25), make((4,), padding=0.25, coordinates="closed")
    for n in (16, 32, 64, 128):
        assert periodic.padding._padded(n) / n == 1.25
        assert closed.padding._padded(n + 1) / n == 1.25


def test_coordinates_are_further_inputs():
    net = make((4, 4), coordinates="closed")
    bare = copy.deepcopy(net)
    bare.coordinates.grid = None
    x = torch.randn(1, 2, 9, 9)
    line = torch.linspace(0, 1, 9)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]
    assert torch.equal(net(x), bare(torch.cat([x, grid], dim=1)))


@pytest.mark.parametrize(("modes", "points"), SIZES)
@pytest.mark.parametrize("channel_mlp", [0.5, None])
def test_every_parameter_learns_and_every_block_matters(modes, points, channel_mlp):
    net = make(modes, channel_mlp=channel_mlp)
    x = torch.randn(2, 2, *points)
    check_every_parameter_learns(net, x)
    check_every_block_matters(net, x)


@pytest.mark.parametrize(("coordinates", "tolerance"), [(None, 1e-4), ("periodic", 0.01)])
@pytest.mark.parametrize(
    ("modes", "points"), [((6,), (32,)), ((4, 3), (16, 16)), ((2, 2, 2), (16, 16, 16))]
)
def test_the_same_function_at_twice_the_resolution(modes, points, coordinates, tolerance):
    check_resolution_transfer(make(modes, coordinates=coordinates), points, tolerance)


@pytest.mark.parametrize("options", [{"width": 0}, {"layers": 0}, {"padding": -0.1}])
def test_what_cannot_be_is_said(options):
    with pytest.raises(ValueError, match="Expected positive"):
        make((4,), **options)


def test_too_few_points_for_the_modes_is_said():
    with pytest.raises(ValueError, match="keep fewer modes"):
        make((8,))(torch.randn(1, 2, 15))
