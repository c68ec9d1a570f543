"""Linear advection is exact."""

import math

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.advection import Advection
from datamodules.pde.random_fields import SineState
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
    equation = Advection(size=64, speed=0.4, start=SineState(folded=0, windowed=0))
    u0 = start(equation, 3)
    states = equation.solve(u0, [0.7, 2.5])
    torch.testing.assert_close(states[:, 1], u0)
    torch.testing.assert_close(states.square().mean(dim=-1)[:, 0], u0.square().mean(dim=-1))
    assert (states[:, 0] - u0).abs().max() > 0.1


def test_too_few_points_for_a_wave_are_refused():
    with pytest.raises(DataError, match="more than two a wave"):
        Advection(size=16, start=SineState(band=(1, 8)))


@pytest.mark.parametrize("chances", [{"folded": 1, "windowed": 0}, {"folded": 0, "windowed": 1}])
def test_more_points_move_kinks_and_windows_as_they_are(chances):
    """Between 64 points a window of an edge of .01 is not known; between 1024 it is."""
    equation = Advection(size=64, speed=0.5, start=SineState(**chances), oversample=16)
    u0 = start(equation, 8)
    (x,) = equation.coordinates
    assert x.tolist() == [i / 64 for i in range(64)]
    got = equation.solve(u0, [0.0, 0.5 + 1 / 128 / 8])
    torch.testing.assert_close(got[:, 0], u0[..., ::16])
    # 0.25 + 1 / 2048 of the length is 256½ of 1024 points: the mean of its neighbours, nearly.
    moved = (u0.roll(256, -1) + u0.roll(257, -1)) / 2
    torch.testing.assert_close(got[:, 1], moved[..., ::16], atol=0.02, rtol=0)
