"""A network at one resolution: what it is given, and what is made of what it returns."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from lit_models.operators.at_resolution import AtResolution, interpolate_periodic


class Remember(nn.Module):
    """The identity, and what it was given."""

    def forward(self, x):
        self.given = x
        return x


def waves(points: tuple[int, ...], top: int = 3) -> torch.Tensor:
    """A sum of waves of the torus, of up to `top` turns along every axis."""
    total = 0.0
    grid = torch.meshgrid(*(torch.arange(n).double() / n for n in points), indexing="ij")
    for axis, x in enumerate(grid):
        for k in range(top + 1):
            total = total + (2 * math.pi * k * x + axis + k).cos() / (k + 1)
    for x, y in pairwise(grid):
        total = total + (2 * math.pi * top * (x - y)).sin()
    return total[None, None]


@pytest.mark.parametrize("points", [(8,), (9,), (8, 12), (7, 8, 9)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_waves_that_the_coarse_grid_holds_come_back_exactly(points, factor):
    fine = tuple(factor * n for n in points)
    net = Remember()
    x = waves(fine)
    torch.testing.assert_close(AtResolution(net, points)(x), x)
    torch.testing.assert_close(net.given, waves(points))


def test_interpolation_goes_through_its_points():
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(interpolate_periodic(x, (24, 18))[..., ::3, ::2], x)


@pytest.mark.parametrize(("points", "fine"), [((5,), (17,)), ((5, 4), (9, 7))], ids=str)
def test_closed_grids_share_both_ends(points, fine):
    """Polynomials of degree one are interpolated exactly, in the middle of a bicubic's reach."""
    lines = [torch.linspace(0, 1, n, dtype=torch.float64) for n in fine]
    x = sum(torch.meshgrid(*lines, indexing="ij"))[None, None]
    net = Remember()
    y = AtResolution(net, points, periodic=False)(x)
    assert net.given.shape[2:] == points
    assert net.given[0, 0].flatten()[-1] == x.flatten()[-1] == len(points)
    inner = (..., *(slice(n // 3, n - n // 3) for n in fine)) if len(points) == 2 else (...,)
    torch.testing.assert_close(y[inner], x[inner])


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match=r"refinement of the grid of \[8\] points"):
        AtResolution(Remember(), (8,))(torch.zeros(1, 1, 12))
    with pytest.raises(ValueError, match=r"refinement of the grid of \[9\] points"):
        AtResolution(Remember(), (9,), periodic=False)(torch.zeros(1, 1, 18))
