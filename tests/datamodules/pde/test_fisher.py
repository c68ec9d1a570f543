"""Fisher's equation, verified against its fronts."""

import math
from dataclasses import replace

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.equation import SolverError
from datamodules.pde.fisher import Fisher
from datamodules.pde.generation import generator
from datamodules.pde.random_fields import sines
from tests.datamodules.pde.solving import orders_in_time, start

EQUATION = Fisher(sizes=(64,), viscosity=0.01, smoothing=0.02, step=1e-2)


def test_without_space_it_is_the_logistic_equation():
    u0, rate, time = 0.2, 1.7, 2.0
    equation = replace(EQUATION, rate=rate)
    end = equation.solve(torch.full((1, 1, 64), u0, dtype=torch.float64), [time])
    grown = u0 * math.exp(rate * time)
    torch.testing.assert_close(
        end, torch.full_like(end, grown / (1 - u0 + grown)), atol=1e-7, rtol=0
    )


def test_ablowitz_s_and_zeppetella_s_front():
    """u = (1 + e^{(x − ct)/√6})^−2 with c = 5/√6, one towards each side, ν = ρ = 1."""
    length, time = 200.0, 4.0
    equation = Fisher(sizes=(1024,), length=length, viscosity=1.0, rate=1.0, step=1e-2)
    (x,) = equation.coordinates

    def fronts(t):
        ahead = (x - length / 2).abs() - 30 - 5 / math.sqrt(6) * t
        return (1 + torch.exp(ahead / math.sqrt(6))).pow(-2)

    end = equation.solve(fronts(0.0)[None, None], [time])[0, 0, 0]
    assert (end - fronts(0.0)).abs().max() > 0.5
    torch.testing.assert_close(end, fronts(time), atol=1e-6, rtol=0)


def test_a_front_from_a_spot_has_the_speed_of_kolmogorov_and_others():
    """2 √(νρ), from below: − 3 / (2 t) of it is missing."""
    equation = Fisher(sizes=(512,), length=120.0, viscosity=1.0, rate=1.0, step=2e-2)
    (x,) = equation.coordinates
    spot = torch.exp(-((x - 60) ** 2) / 4)
    states = equation.solve(spot[None, None], [18.0, 22.0])[0, :, 0]
    width = (states > 0.5).double().sum(dim=1) * (120 / 512)
    speed = (width[1] - width[0]) / 2 / 4
    assert float(speed) == pytest.approx(2 - 1.5 / 20, abs=0.06)


def test_fourth_order_in_time():
    equation = replace(EQUATION, sizes=(32,), viscosity=0.05, rate=4.0, smoothing=0.05)
    assert min(orders_in_time(equation, 1.0, 16)) > 3.8


def test_states_stay_between_0_and_1_and_where_they_are():
    u0 = start(EQUATION, 4)
    states = EQUATION.solve(u0, [0.0, 0.5, 1.0])
    assert states.min() > -1e-3
    assert states.max() < 1 + 1e-3
    torch.testing.assert_close(
        EQUATION.solve(u0.roll(7, -1), [1.0])[:, 0], states[:, 2].roll(7, -1)
    )
    torch.testing.assert_close(EQUATION.solve(u0.flip(-1), [1.0])[:, 0], states[:, 2].flip(-1))


def test_what_is_not_resolved_is_told_what_smooths_it():
    torus = EQUATION.torus()
    v = torus.forward(torch.cos(torus.points[0] * 2 * math.pi * 20)[None, None])
    with pytest.raises(SolverError, match=r"raise oversample \(now 1\), sizes or viscosity\."):
        EQUATION.check(v, torus, 1.0)


def test_more_axes_are_refused():
    with pytest.raises(DataError, match="one axis"):
        replace(EQUATION, sizes=(16, 16))


def test_starts_are_smoothed_absolute_values_of_height_one():
    equation = Fisher(sizes=(256,), waves=2, band=(1, 4), smoothing=0.01)
    (x,) = equation.coordinates
    distance = torch.remainder(x - x[:, None] + 0.5, 1) - 0.5
    kernel = torch.exp(-distance.square() / (2 * 0.01**2))
    for sample, got in enumerate(start(equation, 5)[:, 0]):
        raw = sines(equation.torus(), generator(0, sample), 2, (1, 4), (0.0, 1.0))[0].abs()
        want = (kernel / kernel.sum(dim=1, keepdim=True)) @ (raw / raw.max())
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert got.min() >= 0
        assert 0.8 < got.max() <= 1
