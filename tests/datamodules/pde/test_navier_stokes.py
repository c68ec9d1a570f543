"""Navier–Stokes: closed forms, balances, symmetries, orders, and the laws of its initial states."""

import math
from itertools import pairwise

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.equation import SolverError
from datamodules.pde.navier_stokes import (
    GaussianVorticity,
    NavierStokes,
    PeakedVorticity,
    velocity,
    with_speed,
)

TURN = 2 * math.pi
DECAYING = {"length": TURN, "amplitude": 0.0, "start": PeakedVorticity(peak=2.0, speed=1.0)}


def flow(**options) -> NavierStokes:
    return NavierStokes(
        **({"sizes": (32, 32), "viscosity": 1e-2, "step": 0.05} | DECAYING) | options
    )


def vortices(equation: NavierStokes, count: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([equation.initial(generator) for _ in range(count)])


def final(equation: NavierStokes, initial, time: float):
    return equation.solve(initial, [time])[:, 0]


def error(got, want) -> float:
    return ((got - want).norm() / want.norm()).item()


def mean(field):
    return field.mean(dim=(-2, -1))


def grid(equation):
    return torch.meshgrid(*equation.coordinates, indexing="ij")


@pytest.mark.parametrize("drag", [0.0, 0.3])
def test_a_taylor_green_vortex_decays_at_its_rate(drag):
    equation = flow(sizes=(16, 24), length=3.0, viscosity=0.02, drag=drag, step=0.1)
    k = TURN / 3
    x, y = grid(equation)
    vortex = 2 * k * (torch.cos(k * x) * torch.cos(k * y))[None, None]
    rate = 2 * 0.02 * k**2 + drag
    got = equation.solve(vortex, [0, 0.5, 1.7])
    for state, time in zip(got.unbind(dim=1), [0, 0.5, 1.7], strict=True):
        torch.testing.assert_close(state, vortex * math.exp(-rate * time), rtol=0, atol=1e-12)


@pytest.mark.parametrize("forcing", ["fno", "kolmogorov"])
def test_a_forced_flow_from_rest_tends_to_its_laminar_state(forcing):
    """What one phase forces carries no vorticity, so that ω = f (1 − e^{−λt}) / λ at all times."""
    equation = flow(
        forcing=forcing, amplitude=0.7, wavenumber=2, drag=0.1, viscosity=0.05, length=3.0, step=0.1
    )
    x, y = grid(equation)
    k = 2 * TURN / 3
    if forcing == "fno":
        force, rate = 0.7 * (torch.sin(k * (x + y)) + torch.cos(k * (x + y))), 0.1 + 0.1 * k**2
    else:  # the curl of (0.7 sin ky, 0)
        force, rate = -0.7 * k * torch.cos(k * y), 0.1 + 0.05 * k**2
    got = equation.solve(torch.zeros(1, 1, 32, 32, dtype=torch.float64), [0.4, 50])
    torch.testing.assert_close(
        got[0, 0, 0], force * (1 - math.exp(-rate * 0.4)) / rate, rtol=0, atol=1e-11
    )
    torch.testing.assert_close(got[0, 1, 0], force / rate, rtol=0, atol=1e-11)


def test_the_default_forcing_is_that_of_the_fno_data():
    equation = NavierStokes(sizes=(16, 16))
    x, y = grid(equation)
    phase = TURN * (x + y)
    torch.testing.assert_close(
        equation.force(equation.torus()), 0.1 * (torch.sin(phase) + torch.cos(phase))
    )


def test_advection_is_that_of_the_stream_function():
    equation = flow(sizes=(16, 24))
    torus = equation.torus()
    x, y = grid(equation)
    # ψ = ⅕ sin 2x cos y + ⅑ cos 3y
    vorticity = torch.sin(2 * x) * torch.cos(y) + torch.cos(3 * y)
    u = -torch.sin(2 * x) * torch.sin(y) / 5 - torch.sin(3 * y) / 3
    v = -2 * torch.cos(2 * x) * torch.cos(y) / 5
    along = 2 * torch.cos(2 * x) * torch.cos(y)
    across = -torch.sin(2 * x) * torch.sin(y) - 3 * torch.sin(3 * y)
    got = torus.inverse(equation.nonlinear(torus)(torus.forward(vorticity[None, None])))
    torch.testing.assert_close(got[0, 0], -(u * along + v * across), rtol=0, atol=1e-13)
    torch.testing.assert_close(velocity(vorticity, TURN), torch.stack([u, v]), rtol=0, atol=1e-13)


def test_velocity_has_no_divergence_and_the_curl_that_is_asked_for():
    equation = flow(sizes=(24, 32), length=1.7)
    torus = equation.torus()
    vorticity = torus.inverse(torus.forward(vortices(equation, 3)) * torus.kept)[:, 0]
    field = torus.forward(velocity(vorticity, 1.7))
    x, y = torus.gradient
    assert torus.inverse(x * field[:, 0] + y * field[:, 1]).abs().max() < 1e-12
    curl = torus.inverse(x * field[:, 1] - y * field[:, 0])
    torch.testing.assert_close(curl, vorticity, rtol=0, atol=1e-11)


@pytest.mark.parametrize("forcing", ["fno", "kolmogorov"])
def test_energy_and_enstrophy_change_by_what_acts_on_them(forcing):
    equation = flow(viscosity=0.03, drag=0.2, forcing=forcing, amplitude=0.5, wavenumber=3)
    torus = equation.torus()
    v = torus.forward(vortices(equation)) * torus.kept
    change = torus.inverse(equation.linear(torus) * v + equation.nonlinear(torus)(v))[:, 0]
    vorticity, slopes = torus.inverse(v)[:, 0], torus.inverse(v * torus.slopes)
    force = equation.force(torus)
    wind = velocity(vorticity, TURN)

    def dot(a, b):
        return mean((a * b).sum(dim=-3))

    energy = -0.03 * mean(vorticity**2) - 0.2 * dot(wind, wind) + dot(wind, velocity(force, TURN))
    torch.testing.assert_close(dot(wind, velocity(change, TURN)), energy, rtol=1e-11, atol=0)
    enstrophy = -0.03 * dot(slopes, slopes) - 0.2 * mean(vorticity**2) + mean(vorticity * force)
    torch.testing.assert_close(mean(vorticity * change), enstrophy, rtol=1e-11, atol=0)


def test_without_viscosity_a_flow_keeps_energy_enstrophy_and_mean_vorticity():
    equation = flow(viscosity=0.0, step=0.01, start=PeakedVorticity(peak=1.0, speed=1.0))
    start = vortices(equation) + 0.3
    later = final(equation, start, 0.5)
    torus = equation.torus()
    start = torus.inverse(torus.forward(start) * torus.kept)
    assert error(later, start) > 0.1
    assert mean(later).item() == pytest.approx(0.3, abs=1e-13)
    assert mean(later**2).item() == pytest.approx(mean(start**2).item(), rel=1e-7)
    energies = [velocity(w, TURN).square().mean().item() for w in (start, later)]
    assert energies[1] == pytest.approx(energies[0], rel=1e-7)


def test_a_moved_turned_or_mirrored_flow_stays_so():
    equation = flow()
    start = vortices(equation)
    later = final(equation, start, 1.0)
    assert error(later, start) > 0.1
    moves = {
        "moved": lambda w: w.roll((5, -3), (-2, -1)),
        "turned": lambda w: w.rot90(1, (-2, -1)),
        "mirrored": lambda w: -w.flip(-2),
    }
    for name, move in moves.items():
        assert error(final(equation, move(start), 1.0), move(later)) < 1e-12, name


@pytest.mark.parametrize(("forcing", "shift"), [("fno", (5, -5)), ("kolmogorov", (5, 0))])
def test_a_forced_flow_may_be_moved_along_the_forcing_s_phase(forcing, shift):
    equation = flow(forcing=forcing, amplitude=1.0, wavenumber=2)
    start = vortices(equation)
    later = final(equation, start, 1.0)
    assert error(final(equation, start.roll(shift, (-2, -1)), 1.0), later.roll(shift, (-2, -1))) < (
        1e-12
    )
    other = (shift[0], 5)
    assert error(final(equation, start.roll(other, (-2, -1)), 1.0), later.roll(other, (-2, -1))) > (
        1e-3
    )


def test_a_trajectory_does_not_depend_on_its_batch_nor_on_what_else_is_saved():
    equation = flow(viscosity=0.03, forcing="kolmogorov", amplitude=1.0)
    start = vortices(equation, 3)
    together = equation.solve(start, [0, 0.5, 1.0])
    torch.testing.assert_close(together[1:2, 2], final(equation, start[1:2], 1.0))
    assert not torch.allclose(together[0], together[1])


def test_the_error_falls_with_the_fourth_power_of_the_step():
    start = vortices(flow(viscosity=0.05))
    options = {"viscosity": 0.05, "forcing": "kolmogorov", "amplitude": 1.0, "drag": 0.1}
    exact = final(flow(step=0.0125, **options), start, 1.6)
    errors = [error(final(flow(step=h, **options), start, 1.6), exact) for h in (0.2, 0.1, 0.05)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 3.8, (errors, orders)


def test_the_error_falls_with_the_points_faster_than_any_power():
    def solved(oversample: int):
        equation = flow(sizes=(8, 8), oversample=oversample, viscosity=0.1, step=0.05)
        x, y = equation.torus().points
        start = torch.exp(torch.sin(x) + torch.cos(y)) * torch.cos(y + 1) + torch.sin(x - y)
        return final(equation, start[None, None], 1.0)

    exact = solved(10)
    errors = {n: error(solved(n), exact) for n in (2, 4, 6)}
    orders = [math.log(errors[2] / errors[4], 2), math.log(errors[4] / errors[6], 1.5)]
    assert orders[0] > 8, errors
    assert orders[1] > orders[0] + 3, errors
    assert errors[6] < 1e-8


def test_too_long_a_step_is_refused():
    equation = flow(step=0.5, start=PeakedVorticity(peak=2.0, speed=50.0))
    with pytest.raises(SolverError, match="blew up before t = 10: lower step"):
        final(equation, vortices(equation), 10.0)


def test_too_few_points_are_refused():
    equation = flow(viscosity=1e-4, step=0.02)
    with pytest.raises(SolverError, match="not resolved by 32×32 points"):
        final(equation, vortices(equation), 5.0)


def test_the_default_initial_states_have_the_law_of_the_fno_data():
    equation = NavierStokes(sizes=(16, 16))
    w = vortices(equation, 500)[:, 0]
    assert mean(w).abs().max() < 1e-16
    power = (torch.fft.fft2(w) / 256).abs().square().mean(dim=0)
    n = torch.fft.fftfreq(16, 1 / 16, dtype=torch.float64)
    square = n[:, None] ** 2 + n**2
    ratio = power / (7**1.5 * (TURN**2 * square + 49) ** -2.5)
    for low, high in [(1, 1), (2, 4), (5, 9), (10, 49)]:
        shell = (square >= low) & (square <= high) & (n[:, None] != -8) & (n != -8)
        assert ratio[shell].mean().item() == pytest.approx(1, abs=0.1), (low, high)


def test_the_law_of_gaussian_vorticity_follows_its_parameters():
    def deviations(**options):
        return vortices(flow(length=1.0, start=GaussianVorticity(**options)), 20).std().item()

    assert deviations(variance=4 * 7**1.5) == pytest.approx(2 * deviations(), rel=1e-9)
    assert deviations(shift=20.0) < 0.5 * deviations()
    assert deviations(power=3.0) < 0.5 * deviations()


def test_peaked_vorticity_has_its_speed_and_its_peak():
    equation = flow(sizes=(64, 64), length=3.0, start=PeakedVorticity(peak=4.0, speed=7.0))
    wind = velocity(vortices(equation, 100)[:, 0], 3.0)
    # The Nyquist modes of what was drawn are left out.
    assert (wind.norm(dim=1).amax(dim=(1, 2)) / 7 - 1).abs().max() < 1e-3
    n = torch.fft.fftfreq(64, 1 / 64, dtype=torch.float64)
    k = (n[:, None] ** 2 + n**2).sqrt()
    power = torch.fft.fft2(wind).abs().square().sum(dim=1).mean(dim=0)
    density = [
        (power[(k - shell).abs() < 0.5].mean().sqrt() * shell).item() for shell in range(1, 16)
    ]
    assert density.index(max(density)) + 1 == 4
    # The log-normal density of mode 4 and of variance ¼ in log k, at twice and four times its mode.
    for shell in (8, 15):
        want = math.exp(-2 * (math.log(shell / 4) - 0.25) ** 2 + 1 / 8) * 4 / shell
        assert density[shell - 1] / density[3] == pytest.approx(want, rel=0.1)


def test_every_vorticity_of_a_batch_is_brought_to_the_speed():
    vorticity = torch.tensor([1.0, -4.0], dtype=torch.float64)[:, None, None] * vortices(flow())[0]
    got = velocity(with_speed(vorticity, TURN, 3.0), TURN).norm(dim=1).amax(dim=(1, 2))
    torch.testing.assert_close(got, torch.full((2,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("start", [GaussianVorticity(), PeakedVorticity()])
def test_initial_states_are_the_same_at_the_saved_points_of_a_finer_solver(start):
    coarse, fine = flow(start=start), flow(start=start, oversample=3)
    got = vortices(fine)
    assert got.shape == (1, 1, 96, 96)
    torch.testing.assert_close(got[..., ::3, ::3], vortices(coarse), rtol=0, atol=1e-12)
    assert not torch.equal(vortices(coarse, seed=0), vortices(coarse, seed=1))


def test_the_key_holds_what_initial_states_are_of():
    assert flow().key["start"] == {"peak": 2.0, "speed": 1.0}
    assert NavierStokes().key["start"]["shift"] == 7.0


@pytest.mark.parametrize(
    "options",
    [
        {"forcing": "none"},
        {"wavenumber": 1.5},
        {"wavenumber": 0},
        {"wavenumber": 11},
        {"step": 0.0},
    ],
)
def test_impossible_parameters_are_refused(options):
    with pytest.raises(DataError, match="NavierStokes"):
        flow(**options)
