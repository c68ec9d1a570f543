"""The Gray–Scott equations, verified."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import solve_ivp

from datamodules.errors import DataError
from datamodules.pde.gray_scott import GrayScott
from tests.datamodules.pde.solving import orders_in_time, start

EQUATION = GrayScott(sizes=(64, 64), length=0.5, width=0.08, blobs=3)


def test_without_space_it_is_two_rate_equations():
    f, k = EQUATION.feed, EQUATION.kill
    u0, v0, until = 0.5, 0.3, 60.0
    exact = solve_ivp(
        lambda _, s: [-s[0] * s[1] ** 2 + f * (1 - s[0]), s[0] * s[1] ** 2 - (f + k) * s[1]],
        (0, until),
        [u0, v0],
        rtol=1e-11,
        atol=1e-12,
    ).y[:, -1]
    state = torch.tensor([u0, v0], dtype=torch.float64)[None, :, None, None].expand(1, 2, 64, 64)
    end = replace(EQUATION, step=0.25).solve(state.contiguous(), [until])[0, 0]
    torch.testing.assert_close(end[:, 0, 0], torch.from_numpy(exact), atol=1e-8, rtol=0)
    assert (end - end[:, :1, :1]).abs().max() < 1e-12


def test_small_changes_of_the_empty_state_decay():
    """About (1, 0): u at the rate −F − D_u k², v at −F − k − D_v k²."""
    x, _ = EQUATION.torus().points
    k = 2 * math.pi * 3 / EQUATION.length
    wave = 1e-9 * torch.cos(k * x).expand(64, 64)
    end = EQUATION.solve(torch.stack([1 + wave, wave])[None], [20.0])[0, 0]
    u, v = EQUATION.diffusion_u, EQUATION.diffusion_v
    rates = [-EQUATION.feed - u * k**2, -EQUATION.feed - EQUATION.kill - v * k**2]
    want = torch.stack([1 + math.exp(20 * rates[0]) * wave, math.exp(20 * rates[1]) * wave])
    torch.testing.assert_close(end, want, atol=1e-14, rtol=0)


def test_fourth_order_in_time():
    assert min(orders_in_time(EQUATION, 20.0, 10)) > 3.8


def test_finer_points_change_less_and_less():
    ends = []
    for oversample in (1, 2, 3):
        equation = replace(EQUATION, oversample=oversample)
        ends.append(equation.solve(start(equation), [50.0]))
    errors = [(end - ends[2]).abs().max() for end in ends[:2]]
    assert 1e-5 < errors[0] < 1e-2
    assert errors[1] < errors[0] / 10


def test_what_flows_in_and_out_balances():
    """d/dt ⟨u + v⟩ = F (1 − ⟨u + v⟩) − k ⟨v⟩: reactions only turn u into v."""
    h = 1e-3
    states = EQUATION.solve(start(EQUATION), [30 - h, 30, 30 + h])
    u, v = states.mean(dim=(-2, -1)).unbind(dim=-1)
    change = ((u + v)[:, 2] - (u + v)[:, 0]) / (2 * h)
    want = EQUATION.feed * (1 - (u + v)[:, 1]) - EQUATION.kill * v[:, 1]
    torch.testing.assert_close(change, want, rtol=1e-6, atol=1e-10)


def test_moved_and_turned_starts_end_so():
    u0 = start(EQUATION)
    end = EQUATION.solve(u0, [40.0])
    moved = EQUATION.solve(u0.roll((3, 7), (-2, -1)), [40.0])
    torch.testing.assert_close(moved, end.roll((3, 7), (-2, -1)))
    turned = EQUATION.solve(u0.rot90(dims=(-2, -1)).contiguous(), [40.0])
    torch.testing.assert_close(turned, end.rot90(dims=(-2, -1)))


def test_starts_are_blobs_of_the_second_species_in_the_first():
    u, v = start(EQUATION, 8).unbind(dim=1)
    torch.testing.assert_close(1 - u, 2 * v)
    assert v.min() > -1e-9
    assert 0.2 < v.max() <= 0.5
    assert u.mean() > 0.5


@pytest.mark.parametrize("change", [{"sizes": (64,)}, {"diffusion_v": 0.0}])
def test_parameters_without_sense_are_refused(change):
    with pytest.raises(DataError, match="two axes, and positive diffusion"):
        replace(EQUATION, **change)


def test_small_changes_of_a_mixed_state_follow_its_jacobian():
    """About the state u = .4, v = .3 of F = k = .06, where both species act on each other."""
    equation = GrayScott(
        sizes=(24, 24),
        length=2.5,
        feed=0.06,
        kill=0.06,
        diffusion_u=2e-3,
        diffusion_v=1e-3,
        step=0.5,
    )
    state = torch.tensor([0.4, 0.3], dtype=torch.float64)
    x, y = equation.torus().points
    k = 2 * math.pi / equation.length
    jacobian = torch.tensor([[-0.09 - 0.06, -0.24], [0.09, 0.24 - 0.12]], dtype=torch.float64)
    jacobian -= 5 * k**2 * torch.diag(torch.tensor([2e-3, 1e-3], dtype=torch.float64))
    shape = torch.cos(k * x - 2 * k * y)
    tiny = torch.tensor([1.0, -0.5], dtype=torch.float64)
    fields = state[:, None, None] + 1e-7 * tiny[:, None, None] * shape
    got = (equation.solve(fields[None], [20.0])[0, 0] - state[:, None, None]) / 1e-7
    want = (torch.linalg.matrix_exp(20 * jacobian) @ tiny)[:, None, None] * shape
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
