"""Linear advection is exact."""

import math

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.advection import Advection
from tests.datamodules.pde.solving import start


@pytest.mark.parametrize("speed", [0.1, -4.0])
@pytest.mark.parametrize("length", [1.0, 3.0])
def test_a_wave_is_moved(speed, length):
    equation = Advection(size=64, length=length, speed=speed)
    (x,) = equation.coordinates
    times = [0.0, 0.37, 5.0]

    def wave(y):
        return torch.sin(2 * math.pi * 3 * y / length) + 0.5 * torch.cos(2 * math.pi * y / length)

    got = equation.solve(wave(x)[None, None], times)[0, :, 0]
    want = torch.stack([wave(x - speed * time) for time in times])
    torch.testing.assert_close(got, want, atol=1e-11, rtol=0)


def test_a_start_comes_back_after_a_period_and_keeps_its_norm():
    equation = Advection(size=64, speed=0.4)
    u0 = start(equation, 3)
    states = equation.solve(u0, [0.7, 2.5])
    torch.testing.assert_close(states[:, 1], u0)
    torch.testing.assert_close(states.square().mean(dim=-1)[:, 0], u0.square().mean(dim=-1))
    assert (states[:, 0] - u0).abs().max() > 0.1


def test_too_few_points_for_a_wave_are_refused():
    with pytest.raises(DataError, match="more than two a wave"):
        Advection(size=16, band=(1, 8))
