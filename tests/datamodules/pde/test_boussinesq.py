"""Boussinesq: linear waves and instabilities, balances, symmetries, order, Navier–Stokes within."""

import cmath
import math
from itertools import pairwise

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.boussinesq import Boussinesq
from datamodules.pde.equation import SolverError
from datamodules.pde.navier_stokes import NavierStokes, PeakedVorticity, velocity

TURN = 2 * math.pi


def flow(**options) -> Boussinesq:
    defaults = {"sizes": (32, 32), "viscosity": 5e-3, "diffusivity": 3e-3, "thickness": 0.1}
    return Boussinesq(**(defaults | {"displacement": 0.05, "step": 0.02} | options))


def layers(equation: Boussinesq, seed: int = 0):
    return equation.initial(torch.Generator().manual_seed(seed))[None]


def final(equation, initial, time: float):
    return equation.solve(initial, [time])[:, 0]


def error(got, want) -> float:
    return ((got - want).norm() / want.norm()).item()


def mean(field):
    return field.mean(dim=(-2, -1))


def dot(a, b):
    return mean((a * b).sum(dim=-3))


def grid(equation):
    return torch.meshgrid(*equation.coordinates, indexing="ij")


def stirred(equation: Boussinesq):
    """A state with both channels, of kept modes."""
    torus = equation.torus()
    vorticity = PeakedVorticity(2.0, 1.0).draw(torus, torch.Generator().manual_seed(1))
    state = torch.stack([vorticity, layers(equation)[0, 1:]], dim=1)
    return torus.inverse(torus.forward(state) * torus.kept)


@pytest.mark.parametrize("stratification", [2.0, -2.0])
def test_a_plane_wave_has_the_frequency_or_growth_rate_of_its_direction(stratification):
    """A plane wave does not carry itself, so that the linear solution is one of any amplitude."""
    equation = flow(
        sizes=(16, 24),
        length=3.0,
        stratification=stratification,
        viscosity=0.01,
        diffusivity=0.01,
        step=0.01,
    )
    kx, ky = TURN / 3 * 2, TURN / 3
    k = math.hypot(kx, ky)
    frequency = cmath.sqrt(stratification) * kx / k
    x, y = grid(equation)
    phase = kx * x + ky * y
    start = torch.stack([torch.cos(phase), torch.zeros_like(phase)])[None]
    for time in (0.5, 2.0):
        decay = math.exp(-0.01 * k**2 * time)
        vorticity = decay * cmath.cos(frequency * time).real
        buoyancy = -decay * (frequency * cmath.sin(frequency * time)).real / kx
        got = final(equation, start, time)[0]
        torch.testing.assert_close(got[0], vorticity * torch.cos(phase), rtol=0, atol=1e-8)
        torch.testing.assert_close(got[1], buoyancy * torch.sin(phase), rtol=0, atol=1e-8)


def test_viscosity_and_diffusivity_act_on_their_own_channels():
    equation = flow(length=TURN, viscosity=0.3, diffusivity=0.2, step=0.1)
    _, y = grid(equation)
    start = torch.stack([torch.sin(2 * y), torch.cos(3 * y)])[None]
    got = final(equation, start, 1.0)
    rates = torch.tensor([0.3 * 4, 0.2 * 9], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(got, start * torch.exp(-rates), rtol=0, atol=1e-12)


def test_an_interface_of_heavy_over_light_grows_at_the_rate_of_the_linear_stability_problem():
    """The eigenproblem is solved densely, in y alone, without the solver's transforms."""
    n, viscosity, thickness, tiny = 64, 2e-3, 0.08, 1e-6
    equation = flow(
        sizes=(8, n),
        viscosity=viscosity,
        diffusivity=0.0,
        thickness=thickness,
        displacement=0.0,
        step=0.01,
    )
    k = TURN
    y = torch.arange(n, dtype=torch.float64) / n
    numbers = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    matrix = torch.exp(1j * TURN * y[:, None] * numbers)
    square = matrix @ torch.diag(((TURN * numbers) ** 2 + k**2) + 0j) @ matrix.mH / n
    still = torch.tanh(torch.sin(TURN * y) / (TURN * thickness)) / 2
    slope = torch.cos(TURN * y) / thickness * (1 - (2 * still) ** 2) / 2
    identity = torch.eye(n, dtype=square.dtype)
    rise = -1j * k * torch.linalg.inv(square)  # v of ω
    growth = torch.cat(
        [
            torch.cat([-viscosity * square, 1j * k * identity], dim=1),
            torch.cat([-slope[:, None] * rise, 0 * identity], dim=1),
        ]
    )
    rates, shapes = torch.linalg.eig(growth)
    fastest = rates.real.argmax()
    rate, shape = rates[fastest], shapes[:, fastest].reshape(2, 1, n)
    # The sharp, inviscid interface is the fastest of all.
    assert 0.5 * math.sqrt(k / 2) < rate.real < math.sqrt(k / 2)
    x = torch.arange(8, dtype=torch.float64)[:, None] / 8
    wave = (shape * torch.exp(1j * k * x)).real
    base = torch.stack([torch.zeros(8, n, dtype=torch.float64), still.expand(8, n)])
    torch.testing.assert_close(layers(equation)[0], base)
    got = final(equation, (base + tiny * wave)[None], 1.0)[0] / tiny
    got -= got.mean(dim=1, keepdim=True)  # the layers themselves
    want = (torch.exp(rate) * shape * torch.exp(1j * k * x)).real
    assert error(got, want) < 1e-5


def test_light_fluid_rises():
    """From rest, energy comes from buoyancy alone, and from the interface at half height."""
    equation = flow(
        sizes=(48, 48), viscosity=2e-3, diffusivity=1e-3, band=(3, 3), displacement=0.01
    )
    later = final(equation, layers(equation), 1.6)
    _, v = velocity(later[0, 0], 1.0)
    assert mean(v * later[0, 1]) > 1e-3
    speed = v.square().mean(dim=0).sqrt()
    assert speed[24] > 0.05
    assert speed[24] > 5 * speed[0]


def test_buoyancy_and_vorticity_keep_their_means():
    equation = flow(stratification=1.5)
    start = stirred(equation) + torch.tensor([0.3, 0.7], dtype=torch.float64)[:, None, None]
    later = final(equation, start, 0.6)
    assert error(later, start) > 0.1
    torch.testing.assert_close(mean(later), mean(start), rtol=0, atol=1e-13)


@pytest.mark.parametrize("stratification", [0.0, 1.5])
def test_energies_change_by_what_acts_on_them(stratification):
    equation = flow(stratification=stratification)
    torus, state = equation.torus(), stirred(equation)
    v = torus.forward(state)
    change = torus.inverse(equation.linear(torus) * v + equation.nonlinear(torus)(v))
    wind = velocity(state[:, 0], 1.0)
    lifted = mean(wind[:, 1] * state[:, 1])
    kinetic = lifted - 5e-3 * mean(state[:, 0] ** 2)
    torch.testing.assert_close(dot(wind, velocity(change[:, 0], 1.0)), kinetic, rtol=1e-11, atol=0)
    slopes = torus.inverse(v[:, 1:] * torus.slopes)
    potential = -stratification * lifted - 3e-3 * dot(slopes, slopes)
    torch.testing.assert_close(mean(state[:, 1] * change[:, 1]), potential, rtol=1e-11, atol=0)


def test_without_diffusion_a_stratified_flow_keeps_its_energy():
    equation = flow(
        sizes=(64, 64),
        viscosity=0.0,
        diffusivity=0.0,
        stratification=4.0,
        thickness=0.15,
        step=5e-3,
    )
    start = stirred(equation)
    later = final(equation, start, 0.1)

    def parts(state):
        kinetic = velocity(state[0, 0], 1.0).square().sum(dim=0).mean() / 2
        return kinetic.item(), (state[0, 1].square().mean() / 2 / 4.0).item()

    before, after = parts(start), parts(later)
    assert abs(after[0] - before[0]) > 0.01 * sum(before)
    assert sum(after) == pytest.approx(sum(before), rel=1e-8)


def test_without_buoyancy_it_is_navier_stokes():
    equation = flow(length=2.0)
    plain = NavierStokes(sizes=(32, 32), length=2.0, viscosity=5e-3, amplitude=0.0, step=0.02)
    start = stirred(equation)
    start[:, 1] = 0
    later = final(equation, start, 0.5)
    assert error(later[:, :1], final(plain, start[:, :1], 0.5)) < 1e-13
    assert later[:, 1].abs().max() == 0


def test_buoyancy_is_carried_like_vorticity_in_a_flow_without_its_force():
    """A buoyancy of y alone has no torque, until the flow, here of x alone, has bent it."""
    equation = flow(length=TURN)
    torus = equation.torus()
    x, y = grid(equation)
    # v = −∂_x ψ of ω = 2 cos 2x, ψ = ½ cos 2x.
    state = torch.stack([2 * torch.cos(2 * x), torch.sin(3 * y)])[None]
    got = torus.inverse(equation.nonlinear(torus)(torus.forward(state)))[0]
    assert got[0].abs().max() < 1e-13
    torch.testing.assert_close(got[1], -torch.sin(2 * x) * 3 * torch.cos(3 * y), rtol=0, atol=1e-13)


def test_a_moved_or_mirrored_flow_stays_so():
    equation = flow(stratification=0.5)
    start = stirred(equation)
    later = final(equation, start, 0.5)
    assert error(later, start) > 0.1

    def signed(*signs):
        return torch.tensor(signs, dtype=torch.float64)[:, None, None]

    moves = {
        "moved": lambda w: w.roll((5, -3), (-2, -1)),
        "mirrored": lambda w: signed(-1, 1) * w.flip(-2),
        "upside down": lambda w: signed(-1, -1) * w.flip(-1),
    }
    for name, move in moves.items():
        assert error(final(equation, move(start), 0.5), move(later)) < 1e-12, name


def test_the_error_falls_with_the_fourth_power_of_the_step():
    options = {"viscosity": 0.02, "diffusivity": 0.01, "stratification": 1.0}
    start = stirred(flow())
    exact = final(flow(step=0.0025, **options), start, 0.64)
    errors = [error(final(flow(step=h, **options), start, 0.64), exact) for h in (0.04, 0.02, 0.01)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 3.8, (errors, orders)


def test_initial_states_are_two_layers_at_rest():
    equation = flow(sizes=(64, 64), thickness=0.03, jump=3.0, band=(2, 2), waves=1)
    state = layers(equation)[0]
    assert state[0].abs().max() == 0
    assert state[1].mean().abs() < 1e-3
    assert state[1, :, 16].min() > 1.49  # the lower layer is light
    assert state[1, :, 48].max() < -1.49
    # Along the interface b = 0, whose height is a wave of wavenumber 2, both are displaced alike.
    heights = []
    for middle in (0, 32):
        near = state[1].roll(32 - middle, -1)[:, 29:36] * (-1 if middle else 1)
        heights.append(torch.atanh(near / 1.5).mean(dim=1))
    torch.testing.assert_close(heights[0], heights[1], rtol=0, atol=1e-6)
    power = torch.fft.rfft(heights[0]).abs()
    assert power[[0, 1, 3, 4]].max() < 1e-6 * power[2]
    assert not torch.equal(state, layers(equation, seed=1)[0])


def test_initial_states_are_the_same_at_the_saved_points_of_a_finer_solver():
    got = layers(flow(oversample=3))
    assert got.shape == (1, 2, 96, 96)
    torch.testing.assert_close(got[..., ::3, ::3], layers(flow()), rtol=0, atol=1e-14)


def test_too_long_a_step_is_refused():
    equation = flow(step=1.0)
    with pytest.raises(SolverError, match="blew up before t = 20: lower step"):
        final(equation, 30 * stirred(equation), 20.0)


def test_too_thin_an_interface_is_refused():
    equation = flow(thickness=0.005, viscosity=1e-4, diffusivity=1e-5)
    with pytest.raises(SolverError, match="not resolved by 32×32 points"):
        final(equation, layers(equation), 1.0)


def test_impossible_parameters_are_refused():
    with pytest.raises(DataError, match="thickness"):
        flow(thickness=0.0)
