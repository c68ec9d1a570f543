"""Coordinates: where the points are, at any resolution."""

import pytest
import torch

from lit_models.operators.coordinates import Coordinates


def test_periodic_points_leave_out_the_end_and_the_first_axis_comes_first():
    x = torch.randn(2, 3, 4, 5)
    y = Coordinates("periodic")(x)
    assert torch.equal(y[:, :3], x)
    assert torch.equal(y[1, 3, :, 2], torch.tensor([0.0, 0.25, 0.5, 0.75]))
    assert torch.allclose(y[1, 4, 1], torch.arange(5) / 5)


def test_closed_points_have_both_ends():
    y = Coordinates("closed")(torch.randn(1, 1, 3, 2, 5))
    assert y.shape == (1, 4, 3, 2, 5)
    assert torch.equal(y[0, 1, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(y[0, 3, 0, 0], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert Coordinates("closed")(torch.randn(1, 1, 1))[0, 1] == 0


@pytest.mark.parametrize(("grid", "points"), [("periodic", (16, 32)), ("closed", (17, 33))])
def test_a_place_keeps_its_coordinates_at_another_resolution(grid, points):
    coarse, fine = (Coordinates(grid).of(torch.zeros(1, 1, n)) for n in points)
    assert torch.equal(fine[..., ::2], coarse)


def test_none_and_an_unknown_grid():
    x = torch.randn(2, 3, 8)
    assert torch.equal(Coordinates(None)(x), x)
    assert [Coordinates(grid).channels(2) for grid in (None, "closed")] == [0, 2]
    assert Coordinates("closed")(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="periodic"):
        Coordinates("open")
