"""The U-Net: every part matters, any grid, and shifts that it commutes with."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from lit_models.operators.unet import UNet
from tests.running import compose_model

POINTS = {1: (16,), 2: (8, 12), 3: (8, 4, 8)}


def make(axes: int = 2, **options) -> UNet:
    sizes = {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "groups": 2}
    return UNet(2, 3, axes, **sizes | options)


@pytest.mark.parametrize("axes", POINTS)
@pytest.mark.parametrize("attention", [False, True])
def test_every_parameter_learns(axes, attention):
    net = make(axes, blocks=2, attention=attention)
    y = net(torch.randn(2, 2, *POINTS[axes]))
    assert y.shape == (2, 3, *POINTS[axes])
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("periodic", [False, True])
def test_every_part_changes_the_output(periodic):
    net, x = make(attention=True, periodic=periodic), torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        before = net(x)
        for name, part in net.named_modules():
            own = [*part.parameters(recurse=False)]
            for parameter in own:
                kept = parameter.clone()
                parameter.add_(torch.randn_like(parameter))
                assert (net(x) - before).abs().max() > 1e-5, name
                parameter.copy_(kept)
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("axes", POINTS)
def test_a_periodic_network_commutes_with_shifts_by_its_stride(axes):
    net, x = make(axes, attention=True).double(), torch.randn(1, 2, *POINTS[axes]).double()
    stride = 4
    with torch.no_grad():
        y = net(x)
        for axis in range(2, 2 + axes):
            shifted = net(x.roll(stride, axis))
            torch.testing.assert_close(shifted, y.roll(stride, axis), rtol=0, atol=1e-12)
            assert (net(x.roll(1, axis)) - y.roll(1, axis)).abs().max() > 1e-3
        padded = make(axes, periodic=False).double()
        shifted = padded(x.roll(stride, 2))
        assert (shifted - padded(x).roll(stride, 2)).abs().max() > 1e-3


def test_a_border_is_heard_across_the_torus_alone():
    """A point at one end changes the other end, near it on the torus, where there is one."""
    x = torch.randn(1, 2, 64, 64)
    other = x.clone()
    other[..., 0, 0] += 1
    for periodic in (True, False):
        net = make(multipliers=(1,), periodic=periodic)
        # Norms hear everything.
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda values: values
        change = (net(other) - net(x)).detach().abs().amax(dim=1)[0]
        assert change[0, 0] > 0
        assert (change[-1, -1] > 0) == periodic
        assert change[32, 32] == 0


@pytest.mark.parametrize("points", [(1, 1), (5, 7), (9, 16), (17, 3)])
@pytest.mark.parametrize("periodic", [False, True])
def test_any_number_of_points(points, periodic):
    net, x = make(periodic=periodic, attention=True), torch.randn(2, 2, *points)
    y = net(x)
    assert y.shape == (2, 3, *points)
    assert y.isfinite().all()
    torch.testing.assert_close(net(x[:1]), y[:1])


def test_levels_have_the_channels_of_the_paper():
    """(1, 2, 2, 4) of 64 channels are 64, 128, 256, 1024."""
    with torch.device("meta"):
        net = UNet(1, 1, 2)
    strided = [m for m in net.down if isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in strided] == [64, 128, 256]
    assert net.middle[0].layers[2].in_channels == 1024
    assert len(net.down) == 4 * 2 + 3
    assert len(net.up) == 4 * 3 + 3


@pytest.mark.parametrize("wrong", [{"axes": 4}, {"groups": 3}, {"blocks": 0}], ids=str)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match=f"got.*{next(iter(wrong))}"):
        make(**wrong)


def test_its_config_builds_it():
    config, _ = compose_model("unet_ns_noise", "scale=smoke", "model.net.in_channels=3")
    model = instantiate(config, _convert_="all")
    batch = {"input": torch.randn(2, 3, 1, 16, 12), "target": torch.randn(2, 2, 1, 16, 12)}
    assert isinstance(model.net, UNet)
    assert model(batch).shape == batch["target"].shape
