"""The Kuramoto–Sivashinsky solver, verified."""

import math
from dataclasses import replace

import pytest
import torch

from datamodules.pde.equation import SolverError
from datamodules.pde.kuramoto_sivashinsky import KuramotoSivashinsky
from tests.datamodules.pde.solving import mean_of, orders_in_time, slope, start

LINE = KuramotoSivashinsky(sizes=(128,), length=32.0, viscosity=0.5, band=(1, 4), step=0.02)
SQUARE = KuramotoSivashinsky(sizes=(32, 32), length=16.0, viscosity=1.0, band=(0, 3), step=0.02)


@pytest.mark.parametrize("number", [1, 4, 7])
@pytest.mark.parametrize("equation", [LINE, SQUARE])
def test_small_waves_grow_at_the_linear_rate(equation, number):
    """e^{(k² − ν k⁴) t}."""
    torus = equation.torus()
    k = 2 * math.pi * number / equation.length
    wave = (1e-9 * torch.cos(k * torus.points[0])).expand(torus.sizes)
    end = equation.solve(wave[None, None], [2.0])[0, 0, 0]
    rate = k**2 - equation.viscosity * k**4
    torch.testing.assert_close(end, math.exp(2 * rate) * wave, rtol=0, atol=1e-15)


def test_the_fastest_wave_grows_at_a_quarter_over_the_viscosity():
    viscosity = 0.3
    length = 2 * math.pi * 5 * math.sqrt(2 * viscosity)  # 5 waves of k = 1 / √(2ν)
    equation = replace(LINE, viscosity=viscosity, length=length)
    rates = {}
    for number in (4, 5, 6):
        wave = 1e-9 * torch.cos(2 * math.pi * number / length * equation.torus().points[0])
        end = equation.solve(wave[None, None], [1.0])
        rates[number] = math.log(end.abs().max() / 1e-9)
    assert rates[5] == pytest.approx(1 / (4 * viscosity), rel=1e-6)
    assert rates[5] > max(rates[4], rates[6])


@pytest.mark.parametrize(
    "equation", [replace(LINE, sizes=(48,), viscosity=1.0), replace(SQUARE, sizes=(16, 16))]
)
def test_fourth_order_in_time(equation):
    assert min(orders_in_time(equation, 2.0, 64)) > 3.8


def test_more_points_change_nothing_once_the_solution_is_resolved():
    u0 = start(replace(LINE, sizes=(256,)))
    ends = {n: replace(LINE, sizes=(n,)).solve(u0[..., :: 256 // n], [4.0]) for n in (64, 128, 256)}
    errors = [(ends[n] - ends[256][..., :: 256 // n]).abs().max().item() for n in (64, 128)]
    assert errors[1] < 1e-6 < 1e-3 < errors[0] < 1e-2
    finer = replace(LINE, oversample=2)
    assert torch.equal(finer.solve(u0, [4.0]), ends[256][..., ::2])


def test_mean_is_kept_and_the_energy_balances():
    """d/dt ½⟨u²⟩ = ⟨u_x²⟩ − ν ⟨u_xx²⟩."""
    u0, h = start(LINE) + 0.3, 1e-3
    u = LINE.solve(u0, [3 - h, 3, 3 + h])[:, :, 0]
    torch.testing.assert_close(u.mean(dim=-1), u0.mean(dim=-1).expand(2, 3))
    energy = mean_of(u, u) / 2
    change = (energy[:, 2] - energy[:, 0]) / (2 * h)
    first, second = (slope(u[:, 1], LINE.length, order) for order in (1, 2))
    balance = mean_of(first, first) - LINE.viscosity * mean_of(second, second)
    torch.testing.assert_close(change, balance, rtol=1e-5, atol=1e-8)


def test_a_moving_frame_sees_the_same_solution():
    """u(x − c t, t) + c, with c t a whole number of points."""
    u0, points, until = start(LINE), 12, 2.0
    speed = points * LINE.length / LINE.sizes[0] / until
    equation = replace(LINE, step=2e-3)
    still, moving = (equation.solve(u, [until]) for u in (u0, u0 + speed))
    torch.testing.assert_close(moving, still.roll(points, -1) + speed, atol=1e-7, rtol=0)


@pytest.mark.parametrize("equation", [LINE, SQUARE])
def test_a_shifted_or_mirrored_start_ends_so(equation):
    u0 = start(equation)
    end = equation.solve(u0, [2.0])
    torch.testing.assert_close(equation.solve(u0.roll(5, -1), [2.0]), end.roll(5, -1))
    if equation is SQUARE:
        turned = equation.solve(u0.transpose(-1, -2).contiguous(), [2.0])
        torch.testing.assert_close(turned, end.transpose(-1, -2))
    else:
        mirrored = equation.solve(-u0.flip(-1), [2.0])
        torch.testing.assert_close(mirrored, -end.flip(-1))


def test_a_square_without_change_along_y_is_the_integrated_line():
    """u = φ_x of φ_t = −½ φ_x² − φ_xx − ν φ_xxxx."""
    line = replace(LINE, sizes=(32,), length=16.0, viscosity=1.0)
    potential = start(line)
    wide = potential.unsqueeze(-1).expand(-1, -1, -1, 32).contiguous()
    end = SQUARE.solve(wide, [3.0])[:, 0, 0]
    assert (end - end[..., :1]).abs().max() < 1e-10
    want = line.solve(slope(potential, 16.0), [3.0])[:, 0, 0]
    torch.testing.assert_close(slope(end[..., 0], 16.0), want, atol=1e-7, rtol=0)


@pytest.mark.parametrize("viscosity", [0.075, 0.15])
def test_half_the_default_step_changes_less_than_1e_5(viscosity):
    equation = KuramotoSivashinsky(viscosity=viscosity, band=(1, 8))
    u0 = start(equation)
    half = replace(equation, step=equation.step / 2)
    difference = equation.solve(u0, [2.5]) - half.solve(u0, [2.5])
    assert difference.abs().max() < 1e-5


def test_the_states_are_saved_when_they_are_asked_for():
    u0 = start(LINE)
    times = [0.0, 0.05, 0.3, 1.0]
    together = LINE.solve(u0, times)
    torch.testing.assert_close(together[:, 0], u0)
    for i, time in enumerate(times[1:], start=1):
        torch.testing.assert_close(
            together[:, i : i + 1], LINE.solve(u0, [time]), atol=1e-6, rtol=0
        )


def test_too_few_points_and_too_long_a_step_are_refused():
    coarse = KuramotoSivashinsky(sizes=(32,), length=64.0, viscosity=0.075)
    with pytest.raises(SolverError, match=r"2 of 2 trajectories are not resolved by 32 points"):
        coarse.solve(start(coarse), [10.0])
    wild = replace(LINE, step=2.0)
    with pytest.raises(SolverError, match=r"blew up before t = 60: lower step \(now 2\)"):
        wild.solve(30 * start(wild), [60.0])


def test_the_mean_of_a_square_is_kept():
    equation = KuramotoSivashinsky(sizes=(32, 32), length=16.0, viscosity=1.0, step=0.05)
    u0 = start(equation) + 0.3
    later = equation.solve(u0, [4.0])[:, 0]
    torch.testing.assert_close(later.mean(dim=(-2, -1)), u0.mean(dim=(-2, -1)))
    assert (later - u0).abs().max() > 0.1
