"""Burgers' equation, verified against Cole's and Hopf's solution."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ive

from datamodules.errors import DataError
from datamodules.pde.advection import Advection
from datamodules.pde.burgers import Burgers, GaussianState
from datamodules.pde.equation import SolverError
from datamodules.pde.fisher import Fisher
from datamodules.pde.generation import generator
from datamodules.pde.gray_scott import GrayScott
from datamodules.pde.random_fields import SineState, gaussian, sines
from datamodules.pde.torus import Torus, resample
from tests.datamodules.pde.solving import mean_of, orders_in_time, slope, start

WAVES = SineState(band=(1, 2), folded=0, windowed=0)
SMOOTH = Burgers(sizes=(128,), viscosity=0.02, start=WAVES, step=2e-3)


def cole_hopf(x: np.ndarray, time: float, viscosity: float) -> np.ndarray:
    """u from u0 = sin 2πx: −2 ν φ_x / φ, φ = I_0(z) + 2 Σ_n I_n(z) e^{−ν (2πn)² t} cos 2πn(x), of z
    = 1 / (4πν), for exp of −∫u0 / 2ν = cos(2πx) / (4πν), but for a constant."""
    z, n = 1 / (4 * math.pi * viscosity), np.arange(1, 400)[:, None]
    k = 2 * math.pi * n
    terms = 2 * ive(n, z) * np.exp(-viscosity * k**2 * time)
    phi = ive(0, z) + (terms * np.cos(k * x)).sum(axis=0)
    slope_of_phi = -(terms * k * np.sin(k * x)).sum(axis=0)
    return -2 * viscosity * slope_of_phi / phi


@pytest.mark.parametrize("viscosity", [0.1, 0.01])
def test_cole_s_and_hopf_s_solution(viscosity):
    equation = Burgers(sizes=(256,), viscosity=viscosity, step=1e-3)
    (x,) = equation.coordinates
    times = [0.1, 0.25, 0.6]
    got = equation.solve(torch.sin(2 * math.pi * x)[None, None], times)[0, :, 0]
    for state, time in zip(got, times, strict=True):
        want = cole_hopf(x.numpy(), time, viscosity)
        np.testing.assert_allclose(state.numpy(), want, atol=2e-8)


def test_points_bring_spectral_accuracy():
    errors = []
    for n in (32, 64, 128):
        equation = Burgers(sizes=(n,), viscosity=0.02, step=5e-4)
        (x,) = equation.coordinates
        got = equation.solve(torch.sin(2 * math.pi * x)[None, None], [0.2])[0, 0, 0]
        errors.append(np.abs(got.numpy() - cole_hopf(x.numpy(), 0.2, 0.02)).max())
    assert errors[1] < errors[0] / 50
    assert errors[2] < errors[1] / 500


def test_fourth_order_in_time():
    equation = replace(SMOOTH, sizes=(32,), viscosity=0.05)
    assert min(orders_in_time(equation, 0.5, 32)) > 3.8


def test_small_states_only_diffuse():
    u0 = 1e-8 * start(SMOOTH)
    k = 2 * math.pi * torch.fft.rfftfreq(128, 1 / 128, dtype=torch.float64)
    heat = torch.fft.irfft(torch.fft.rfft(u0) * torch.exp(-SMOOTH.viscosity * k**2 * 0.5))
    torch.testing.assert_close(SMOOTH.solve(u0, [0.5])[:, 0], heat, atol=1e-14, rtol=0)


def test_mean_is_kept_and_the_energy_balances():
    """d/dt ½⟨u²⟩ = −ν ⟨u_x²⟩."""
    u0, h = start(SMOOTH) + 0.2, 1e-4
    u = SMOOTH.solve(u0, [0.2 - h, 0.2, 0.2 + h])[:, :, 0]
    torch.testing.assert_close(u.mean(dim=-1), u0.mean(dim=-1).expand(2, 3))
    energy = mean_of(u, u) / 2
    change = (energy[:, 2] - energy[:, 0]) / (2 * h)
    first = slope(u[:, 1], 1.0)
    torch.testing.assert_close(
        change, -SMOOTH.viscosity * mean_of(first, first), rtol=1e-5, atol=1e-9
    )


def test_moved_mirrored_and_boosted_starts_end_so():
    u0, until, points = start(SMOOTH), 0.5, 16
    end = SMOOTH.solve(u0, [until])
    torch.testing.assert_close(SMOOTH.solve(u0.roll(5, -1), [until]), end.roll(5, -1))
    torch.testing.assert_close(SMOOTH.solve(-u0.flip(-1), [until]), -end.flip(-1))
    speed = points / 128 / until
    boosted = SMOOTH.solve(u0 + speed, [until])
    torch.testing.assert_close(boosted, end.roll(points, -1) + speed, atol=1e-7, rtol=0)


def test_a_front_needs_points_and_oversampling_gives_them():
    sharp = Burgers(sizes=(64,), viscosity=1e-3, start=WAVES)
    with pytest.raises(SolverError, match="raise oversample"):
        sharp.solve(start(sharp), [0.5])
    fine, finer = replace(sharp, oversample=16), replace(sharp, oversample=32, step=5e-4)
    ends = [equation.solve(start(equation), [0.5]) for equation in (fine, finer)]
    assert ends[0].shape == (2, 1, 1, 64)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


def test_the_law_of_fno_s_starts():
    """σ² (4π²n² + τ²)^−α: 625 (−Δ + 25)^−2."""
    equation = Burgers(sizes=(64,))
    states = start(equation, 2000)[:, 0]
    power = (torch.fft.rfft(states) / 64).abs().square().mean(dim=0)[1:6]
    n = torch.arange(1, 6, dtype=torch.float64)
    want = 625 / (4 * math.pi**2 * n**2 + 25) ** 2
    torch.testing.assert_close(power, want, rtol=0.1, atol=0)
    torus = equation.saved_torus()
    assert GaussianState().draw(torus, torch.Generator().manual_seed(0)).shape == (1, 64)
    flat = gaussian(torus, torch.Generator().manual_seed(0), torch.ones_like(torus.laplacian), 1)
    assert flat.std() > 3


@pytest.mark.parametrize("change", [{"sizes": (32, 32)}, {"viscosity": 0.0}])
def test_parameters_without_sense_are_refused(change):
    with pytest.raises(DataError, match="one axis and a positive viscosity"):
        replace(SMOOTH, **change)


@pytest.mark.parametrize(
    "equation",
    [
        Advection(size=64, start=SineState(1, (3, 5), folded=0, windowed=0)),
        Burgers(sizes=(64,), start=SineState(1, (3, 5), folded=0, windowed=0)),
    ],
)
def test_pdebench_s_waves_have_their_band_and_amplitudes(equation):
    """Of one wave U(0, 1): no more than 1, on average ½; the signs ± make no other law."""
    v = torch.fft.rfft(start(equation, 300)[:, 0]).abs() / 32
    assert v[:, [*range(3), *range(6, 33)]].max() < 1e-13
    assert (v[:, 3:6].amax(dim=0) > 0.9).all()
    assert v.sum(dim=1).max() <= 1
    signs = set()
    for sample, state in enumerate(start(equation, 20)):
        drawn = sines(Torus((64,), (1.0,)), generator(0, sample), 1, (3, 5), (0.0, 1.0))
        signs.add((state / drawn).mean().round().item())
        torch.testing.assert_close(state.abs(), drawn.abs())
    assert signs == {-1, 1}


def test_the_law_of_gaussian_states_follows_its_parameters():
    torus = Torus((64,), (1.0,))
    law = GaussianState(variance=30.0, shift=9.0, power=1.5)
    rng = torch.Generator().manual_seed(0)
    states = torch.stack([law.draw(torus, rng)[0] for _ in range(3000)])
    power = (torch.fft.rfft(states) / 64).abs().square().mean(dim=0)[:6]
    n = torch.arange(6, dtype=torch.float64)
    want = 30 * ((2 * math.pi) ** 2 * n**2 + 81) ** -1.5
    torch.testing.assert_close(power, want, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    "equation",
    [Burgers(sizes=(32,)), Fisher(sizes=(32,)), GrayScott(sizes=(16, 16))],
    ids=lambda e: type(e).__name__,
)
def test_nonlinear_terms_leave_aliased_modes_empty_and_the_others_exact(equation):
    """They are those of the kept modes, which on three times the points have no alias at all."""
    torus, fine = equation.torus(), replace(equation, oversample=3).torus()
    u = torch.randn(2, len(equation.channels), *torus.sizes, dtype=torch.float64)
    v = torus.forward(u) * torus.kept
    got = equation.nonlinear(torus)(v)
    assert got[:, :, ~torus.kept].abs().max() == 0
    many = fine.forward(resample(torus.inverse(v), fine.sizes))
    want = torus.forward(resample(fine.inverse(equation.nonlinear(fine)(many)), torus.sizes))
    torch.testing.assert_close(got, want * torus.kept, rtol=0, atol=1e-11)
