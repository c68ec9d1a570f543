"""Compressible flow: the Riemann problem, conservation, orders, symmetries, linear theory."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from datamodules.errors import DataError
from datamodules.pde.compressible import CompressibleNavierStokes, RandomSines, RandomTube
from datamodules.pde.equation import SolverError

SOD = ((1.0, 0.0, 1.0), (0.125, 0.0, 0.1))
BLAST = ((1.0, 0.0, 1000.0), (1.0, 0.0, 0.01))
RECEDING = ((1.0, -2.0, 0.4), (1.0, 2.0, 0.4))


def inviscid(size: int, **kwargs) -> CompressibleNavierStokes:
    return CompressibleNavierStokes(
        **{"size": size, "length": 1.0, "gamma": 1.4, "shear": 0.0, "bulk": 0.0, **kwargs}
    )


def tube(eq: CompressibleNavierStokes, left: tuple, right: tuple) -> torch.Tensor:
    """A jump in the middle, [1, 3, cells]."""
    sides = torch.tensor([left, right], dtype=torch.float64).repeat_interleave(eq.cells // 2, 0)
    return sides.T[None]


def random_states(eq: CompressibleNavierStokes, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([eq.initial(generator) for _ in range(count)])


def riemann(left: tuple, right: tuple, speed: np.ndarray, gamma: float) -> np.ndarray:
    """The exact solution of a Riemann problem at x / t = speed, [3, *speed.shape].

    Source: Toro, Riemann Solvers and Numerical Methods for Fluid Dynamics, ch. 4.
    """
    sides = [(*side, math.sqrt(gamma * side[2] / side[0])) for side in (left, right)]

    def velocity_change(p: float, side: tuple) -> float:
        density, _, pressure, sound = side
        if p > pressure:
            a, b = 2 / (gamma + 1) / density, (gamma - 1) / (gamma + 1) * pressure
            return (p - pressure) * math.sqrt(a / (p + b))
        power = (gamma - 1) / (2 * gamma)
        return 2 * sound / (gamma - 1) * ((p / pressure) ** power - 1)

    def mismatch(p: float) -> float:
        return sum(velocity_change(p, side) for side in sides) + right[1] - left[1]

    p = brentq(mismatch, 1e-10, 1e5, xtol=1e-14, rtol=1e-14)
    u = (left[1] + right[1] + velocity_change(p, sides[1]) - velocity_change(p, sides[0])) / 2
    out = np.empty((3, *speed.shape))
    for (density, velocity, pressure, sound), sign in zip(sides, (-1, 1), strict=True):
        # Seen so that the wave goes to the right of the contact; on the left all is mirrored.
        s, v, contact = sign * speed, sign * velocity, sign * u
        ratio = p / pressure
        if ratio > 1:
            g = (gamma - 1) / (gamma + 1)
            inner = density * (ratio + g) / (g * ratio + 1)
            front = v + sound * math.sqrt((gamma + 1) / (2 * gamma) * (ratio - 1) + 1)
            parts = [(s > front, (density, v, pressure)), (s <= front, (inner, contact, p))]
        else:
            inner = density * ratio ** (1 / gamma)
            tail = contact + sound * ratio ** ((gamma - 1) / (2 * gamma))
            c = (2 * sound + (gamma - 1) * (s - v)) / (gamma + 1)
            c = np.clip(c, 1e-300, None)
            fan = (
                density * (c / sound) ** (2 / (gamma - 1)),
                s - c,
                pressure * (c / sound) ** (2 * gamma / (gamma - 1)),
            )
            parts = [
                (s > v + sound, (density, v, pressure)),
                ((s <= v + sound) & (s > tail), fan),
                (s <= tail, (inner, contact, p)),
            ]
        for where, (a, b, d) in parts:
            here = where & (s > contact)
            for field, value in enumerate((a, sign * b, d)):
                out[field] = np.where(here, value, out[field])
    return out


def tube_errors(size: int, problem: tuple, time: float) -> np.ndarray:
    """Mean absolute errors of the three fields, of which density and pressure are positive."""
    eq = inviscid(size, boundary="outflow")
    solution = eq.solve(tube(eq, *problem), [time])[0, 0].numpy()
    assert solution[[0, 2]].min() > 0
    # Means over cells, as is what the solver has.
    fine = (np.arange(20 * size) + 0.5) / (20 * size)
    exact = riemann(*problem, (fine - 0.5) / time, 1.4).reshape(3, size, 20).mean(axis=2)
    return np.abs(solution - exact).mean(axis=1)


def test_the_exact_riemann_solution_is_that_of_the_textbook():
    """Toro's table 4.3, the first test: what is between the waves."""
    left, right = riemann(*SOD, np.array([0.9, 1.0]), 1.4).T
    np.testing.assert_allclose(left, [0.42632, 0.92745, 0.30313], rtol=2e-5)
    np.testing.assert_allclose(right, [0.26557, 0.92745, 0.30313], rtol=2e-5)


def test_sods_tube_converges_to_the_exact_solution():
    errors = np.array([tube_errors(n, SOD, 0.2) for n in (100, 200, 400)])
    assert (errors[1] < [3e-3, 5.5e-3, 2.2e-3]).all()
    orders = np.log2(errors[0] / errors[2]) / 2
    assert (orders > [0.78, 0.95, 0.95]).all()  # a contact smears, which only density shows


@pytest.mark.parametrize(
    ("problem", "time", "bounds"),
    [(BLAST, 0.012, (0.1, 0.25, 4.5)), (RECEDING, 0.15, (6e-3, 2e-2, 3e-3))],
    ids=["blast", "receding"],
)
def test_strong_waves_leave_density_and_pressure_positive(problem, time, bounds):
    """A shock of pressure 10⁵ : 1, and a near vacuum between two rarefactions."""
    assert (tube_errors(200, problem, time) < bounds).all()


def density_wave_error(size: int) -> float:
    eq = inviscid(size)
    x = eq.coordinates[0]
    wave = torch.stack([1 + 0.3 * torch.sin(2 * math.pi * x), *torch.ones(2, size).double()])[None]
    end = eq.solve(wave, [1.0])[0, 0]
    assert (end[1:] - 1).abs().max() < 1e-13
    return (end[0] - wave[0, 0]).abs().mean().item()


def test_a_density_wave_is_carried_with_second_order():
    coarse, fine = density_wave_error(64), density_wave_error(128)
    assert fine < 7e-4
    assert math.log2(coarse / fine) > 1.9


@pytest.mark.parametrize("kinematic", [False, True])
def test_mass_momentum_and_energy_are_conserved(kinematic):
    eq = CompressibleNavierStokes(size=64, kinematic=kinematic)
    states = eq.solve(random_states(eq, 4), [0.0, 0.05, 0.1])
    totals = eq.conserved(states).sum(dim=-1)
    scale = eq.conserved(states).abs().sum(dim=-1)
    assert ((totals - totals[:, :1]).abs() < 1e-13 * scale).all()
    assert (states[:, 2] - states[:, 0]).abs().amax() > 1


def test_a_contact_at_rest_is_kept_to_the_bit():
    eq = inviscid(64, boundary="outflow")
    contact = tube(eq, (1.0, 0.0, 1.0), (0.2, 0.0, 1.0))
    out = eq.solve(contact, [0.0, 0.5])[0]
    assert torch.equal(out[1], out[0])
    assert torch.equal(out[1, 0], contact[0, 0])


def test_a_moving_contact_keeps_velocity_and_pressure():
    eq = inviscid(128)
    contact = tube(eq, (1.0, 0.7, 1.0), (0.2, 0.7, 1.0))
    out = eq.solve(contact, [1 / 0.7])[0, 0]
    assert (out[1] - 0.7).abs().max() < 1e-12
    assert (out[2] - 1).abs().max() < 1e-12
    assert (out[0] - contact[0, 0]).abs().mean() < 0.033


def boost_error(size: int) -> float:
    """What a frame that crosses the box once makes of a sound wave of finite amplitude."""
    eq = inviscid(size, shear=1e-2)
    x = 2 * math.pi * eq.coordinates[0]
    wave = torch.stack([1 + 0.2 * torch.sin(x), 0.1 * torch.cos(x), 1 + 0.2 * torch.cos(x)])[None]
    boost = torch.tensor([0.0, 2.0, 0.0]).double()[:, None]
    at_rest = eq.solve(wave, [0.5])[0, 0]
    return (eq.solve(wave + boost, [0.5])[0, 0] - boost - at_rest).abs().mean().item()


def test_a_moving_frame_sees_the_same_flow():
    coarse, fine = boost_error(32), boost_error(64)
    assert fine < 2e-3
    assert math.log2(coarse / fine) > 1.7


@pytest.mark.parametrize("boundary", ["periodic", "outflow"])
def test_a_mirrored_state_has_the_mirrored_solution(boundary):
    eq = CompressibleNavierStokes(size=64, boundary=boundary)
    states = random_states(eq, 3)
    mirror = torch.tensor([1.0, -1.0, 1.0]).double()[:, None]
    mirrored = eq.solve(mirror * states.flip(-1), [0.1])
    assert (mirror * mirrored.flip(-1) - eq.solve(states, [0.1])).abs().max() < 1e-10


def test_a_periodic_solution_moves_with_its_start():
    eq = CompressibleNavierStokes(size=64)
    states = random_states(eq, 2)
    assert torch.equal(eq.solve(states.roll(5, -1), [0.1]), eq.solve(states, [0.1]).roll(5, -1))


def test_outflow_lets_waves_leave():
    """A pulse in a gas at rest leaves the gas behind it; in a periodic box it comes back."""
    rest = {}
    for boundary in ("periodic", "outflow"):
        eq = inviscid(64, boundary=boundary)
        pulse = 0.1 * torch.exp(-200 * (eq.coordinates[0] - 0.5) ** 2)
        start = torch.stack([1 + pulse, torch.zeros(64).double(), (1 + pulse) ** 1.4])[None]
        rest[boundary] = (eq.solve(start, [1.5])[0, 0, 2] - 1).abs().max()
    assert rest["outflow"] < 1e-3 < 1e-2 < rest["periodic"]


@pytest.mark.parametrize("kinematic", [False, True])
def test_a_sound_wave_decays_as_linear_theory_says(kinematic):
    """u of a standing wave is sin kx e^(−νk²t/2) (cos Ωt − νk²/2Ω sin Ωt), Ω² = c²k² − ν²k⁴/4."""
    density, pressure, amplitude, k = 2.0, 1.2, 1e-6, 2 * math.pi
    eq = CompressibleNavierStokes(size=48, length=1.0, shear=6e-2, bulk=4e-2, kinematic=kinematic)
    x = torch.sin(k * eq.coordinates[0])
    ones = torch.ones_like(x)
    start = torch.stack([density * ones, amplitude * x, pressure * ones])[None]
    half_decay = (4e-2 + 4 / 3 * 6e-2) / (1 if kinematic else density) * k**2 / 2
    turn = math.sqrt(5 / 3 * pressure / density * k**2 - half_decay**2)
    times = [0.25, 2 * math.pi / turn]
    out = eq.solve(start, times)[0]
    for t, state in zip(times, out, strict=True):
        swing = math.cos(turn * t) - half_decay / turn * math.sin(turn * t)
        measured = 2 * (state[1] * x).mean().item() / amplitude
        assert measured == pytest.approx(math.exp(-half_decay * t) * swing, abs=3e-3)
    rate = -math.log(2 * (out[1, 1] * x).mean().item() / amplitude) / times[1]
    assert rate == pytest.approx(half_decay, rel=1e-2)


def test_a_trajectory_is_the_same_in_every_batch():
    eq = CompressibleNavierStokes(size=37, oversample=3, start=RandomTube(), boundary="outflow")
    states, times = random_states(eq, 5), [0.0, 0.03, 0.1]
    states[3] *= torch.tensor([1.0, 1.0, 30.0])[:, None]  # another's steps are many more
    together = eq.solve(states, times)
    for i, state in enumerate(states):
        assert torch.equal(eq.solve(state[None], times)[0], together[i])
    assert torch.equal(eq.solve(states[[4, 2]], times), together[[4, 2]])


def test_saved_states_are_those_of_their_times():
    """A sound wave of small amplitude is where it was after each of its periods."""
    eq = inviscid(128)
    x = 2 * math.pi * eq.coordinates[0]
    sound = math.sqrt(1.4)
    right = torch.stack([torch.sin(x), sound * torch.sin(x), 1.4 * torch.sin(x)])
    base = torch.tensor([1.0, 0.0, 1.0]).double()[:, None]
    out = eq.solve((base + 1e-6 * right)[None], [0.37 / sound, 1 / sound])[0]
    phase = torch.fft.rfft(out[:, 2])[:, 1].angle() - torch.fft.rfft(right[2])[1].angle()
    assert math.cos(phase[0] + 2 * math.pi * 0.37) > 1 - 1e-5
    assert math.cos(phase[1]) > 1 - 1e-5


def test_saved_cells_are_means_of_the_solvers():
    fine = CompressibleNavierStokes(size=64)
    coarse = CompressibleNavierStokes(size=16, oversample=4)
    states = random_states(fine, 2)
    assert torch.equal(random_states(coarse, 2), states)
    assert coarse.coordinates[0][0] == pytest.approx(fine.coordinates[0][:4].mean().item())
    means = fine.conserved(fine.solve(states, [0.1])).unflatten(-1, (16, 4)).mean(dim=-1)
    saved = coarse.conserved(coarse.solve(states, [0.1]))
    assert (saved / means - 1).abs().max() < 1e-10


def test_a_negative_pressure_is_an_error():
    """Gas that is torn apart, in steps that are too long for it; and states that begin so."""
    eq = inviscid(64, boundary="outflow", cfl=1.0)
    torn = tube(eq, (1.0, -1000.0, 0.4), (1.0, 1000.0, 0.4))
    good = tube(eq, *SOD)
    with pytest.raises(SolverError, match=r"1 of 2 .* not positive before t = 0.0002: lower cfl"):
        eq.solve(torch.cat([good, torn]), [2e-4])
    assert inviscid(64, boundary="outflow").solve(torn, [2e-4]).isfinite().all()
    for value in (-1.0, 0.0, torch.nan):
        for field in (0, 2):
            wrong = good.clone()
            wrong[0, field, 3] = value
            with pytest.raises(SolverError, match="1 of 1"):
                eq.solve(wrong, [0.1])


@pytest.mark.parametrize(
    "start", [RandomSines(windowed=1.0), RandomSines(folded=1.0, windowed=0.0), RandomTube()]
)
def test_initial_states_are_functions_of_the_generator_in_their_intervals(start):
    eq = CompressibleNavierStokes(size=256, start=start)
    states = random_states(eq, 32)
    assert torch.equal(states, random_states(eq, 32))
    highest = 2 if isinstance(start, RandomSines) else 1
    for field, low, high in ((0, 1, 10), (2, 10, 100)):
        assert states[:, field].min() >= low
        assert states[:, field].max() <= highest * high
        assert states[:, field].max() > 0.5 * highest * high
    assert states[:, 1].abs().max() <= (2 if isinstance(start, RandomSines) else 0.5)
    assert states[:, 1].min() < 0 < states[:, 1].max()


@pytest.mark.parametrize("start", [RandomSines(), RandomTube()])
def test_initial_states_are_the_same_functions_on_finer_cells(start):
    """The middle of a cell is that of the second of its thirds."""
    coarse, fine = (random_states(inviscid(n, start=start), 4) for n in (64, 192))
    torch.testing.assert_close(fine[:, 1, 1::3], coarse[:, 1], rtol=0, atol=1e-12)


def test_a_window_leaves_the_rest_constant_and_a_fold_one_sign():
    windowed = CompressibleNavierStokes(size=256, start=RandomSines(windowed=1.0, folded=0.0))
    assert random_states(windowed, 8)[:, :, :128].std(dim=-1).max() < 1e-6
    folded = CompressibleNavierStokes(size=256, start=RandomSines(windowed=0.0, folded=1.0))
    velocity = random_states(folded, 8)[:, 1]
    assert (velocity.amin(dim=1) * velocity.amax(dim=1)).min() >= 0


def test_the_key_holds_every_parameter():
    eq = CompressibleNavierStokes(boundary="outflow")
    assert not eq.periodic
    assert CompressibleNavierStokes().periodic
    assert eq.key["boundary"] == "outflow"
    assert eq.key["start"]["waves"] == 2


@pytest.mark.parametrize(
    "wrong",
    [{"size": 4}, {"cfl": 1.5}, {"gamma": 1.0}, {"shear": -1.0}, {"boundary": "wall"}],
    ids=str,
)
def test_wrong_parameters_are_errors(wrong):
    with pytest.raises(DataError, match="CompressibleNavierStokes needs"):
        CompressibleNavierStokes(**wrong)


def test_wrong_states_are_errors():
    with pytest.raises(DataError, match=r"\[B, 3, 64\] in float64, got \[1, 3, 32\]"):
        inviscid(64).solve(torch.ones(1, 3, 32).double(), [1.0])
