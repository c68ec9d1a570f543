"""What every encoder of images must do, on a grid of any size."""

import pytest
import torch
from torch.nn import functional as F

from lit_models.images.encoder import PreNorm
from tests.lit_models.images.fabricated import BLIND_TO_PLACES, ENCODERS, GRID, PATCH, WIDTH, pixels

encoders = pytest.mark.parametrize("name", ENCODERS)


def features_and_gradients(net, images, weight):
    y = net(images)
    return y, *torch.autograd.grad((y * weight).sum(), [images, *net.parameters()])


@encoders
@pytest.mark.parametrize("grid", [GRID, (5, 2), (1, 3), (1, 1)])
def test_images_of_any_shape_do_not_know_each_other(name, grid):
    """Features of a batch and of each image alone, and all gradients."""
    net = ENCODERS[name]()
    images = torch.randn(3, 3, *pixels(net, *grid), requires_grad=True)
    weight = torch.randn(3, *grid, WIDTH)
    together = features_and_gradients(net, images, weight)
    assert together[0].shape == weight.shape
    each = [features_and_gradients(net, images[i : i + 1], weight[i : i + 1]) for i in range(3)]
    for number, (mine, *parts) in enumerate(zip(together, *each, strict=True)):
        alone = torch.cat(parts) if number < 2 else sum(parts)  # features and pixels, weights
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)


@encoders
def test_a_patch_sees_its_whole_image(name):
    net = ENCODERS[name]()
    patches = torch.randn(1, *GRID, WIDTH, requires_grad=True)
    y = net.encode(patches)
    for row, column in ((0, 0), (1, 2), (2, 3)):
        (gradient,) = torch.autograd.grad(
            y[0, row, column].square().sum(), patches, retain_graph=True
        )
        assert (gradient.abs().amax(-1) > 0).all()


@encoders
def test_only_some_know_where_a_patch_is(name):
    """Patches in another order: the same features in that order, or others."""
    net = ENCODERS[name]()
    x = torch.randn(2, GRID[0] * GRID[1], WIDTH)
    order = torch.randperm(x.shape[1])
    y = net.encode(x.unflatten(1, GRID)).flatten(1, 2)
    moved = net.encode(x[:, order].unflatten(1, GRID)).flatten(1, 2)
    same = (moved - y[:, order]).abs().max() < 1e-5
    assert bool(same) == (name in BLIND_TO_PLACES)


@encoders
def test_every_parameter_learns(name):
    net = ENCODERS[name]()
    y = net(torch.randn(3, 3, *pixels(net, *GRID)))
    (y * torch.randn_like(y)).sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@encoders
def test_in_bfloat16_it_is_nearly_the_same(name):
    net = ENCODERS[name]()
    images = torch.randn(2, 3, *pixels(net, *GRID))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(images)
    expected = net(images)
    assert (y - expected).norm() < 0.03 * expected.norm()
    y.sum().backward()


@encoders
def test_images_that_do_not_divide_into_patches(name):
    with pytest.raises(ValueError, match=r"multiples of 2 pixels, the patch's, got \[5, 4\]"):
        ENCODERS[name]()(torch.randn(1, 3, 5, 4))


def test_an_embedding_is_a_linear_map_of_a_patch_alone():
    net = ENCODERS["vit"]()
    images = torch.randn(2, 3, *pixels(net, *GRID))
    patch = images[1, :, PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH]
    expected = net.embedding.weight.flatten(1) @ patch.flatten() + net.embedding.bias
    torch.testing.assert_close(net.patches(images)[1, 1, 2], expected)


def test_positions_are_interpolated_to_other_grids_and_exact_at_their_own():
    net = ENCODERS["vit"]()
    assert net.positions_of(*GRID) is net.positions
    with torch.no_grad():
        net.positions.copy_(torch.arange(4.0)[:, None].expand(1, *GRID, WIDTH))
    wider = net.positions_of(6, 8)
    assert wider.shape == (1, 6, 8, WIDTH)
    # Columns still rise from left to right, and do not depend on the row.
    assert (wider.diff(dim=2) > 0).all()
    torch.testing.assert_close(wider, wider[:, :1].expand_as(wider))


class TestDropPath:
    def test_a_part_is_left_out_for_some_images_and_scaled_for_the_others(self):
        block = PreNorm(WIDTH, 0.25, torch.nn.Identity())
        x = torch.randn(4000, 1, 1, WIDTH)
        added = block(x) - x
        normal = F.layer_norm(x, (WIDTH,), eps=1e-6)
        dropped = (added == 0).all(dim=-1).flatten()
        assert 0.22 < dropped.float().mean() < 0.28
        torch.testing.assert_close(added[~dropped], normal[~dropped] / 0.75)

    def test_nothing_is_left_out_when_validating(self):
        block = PreNorm(WIDTH, 0.9, torch.nn.Identity()).eval()
        x = torch.randn(5, 1, 1, WIDTH)
        torch.testing.assert_close(block(x), x + F.layer_norm(x, (WIDTH,), eps=1e-6))

    def test_rates_rise_from_nothing_at_the_first_part(self):
        net = ENCODERS["vit"](drop_path=0.3)
        assert [block.drop_path for block in net.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
