"""Steady Navier–Stokes: its pairs are solutions, by closed form, by residual and by marching."""

import math

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.equation import SolverError
from datamodules.pde.etdrk4 import ETDRK4
from datamodules.pde.navier_stokes import velocity
from datamodules.pde.steady_navier_stokes import SteadyNavierStokes
from datamodules.pde.torus import Torus, smooth_resample

TURN = 2 * math.pi


def drawn(equation: SteadyNavierStokes, count: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([equation.initial(generator) for _ in range(count)])


@pytest.mark.parametrize("viscosity", [1e-2, 1e-3])
def test_drawn_pairs_are_solutions_between_the_points_too(viscosity):
    equation = SteadyNavierStokes(sizes=(64, 48), viscosity=viscosity)
    start = drawn(equation, 3)
    forcing, vorticity = equation.solve(start)
    assert forcing.shape == vorticity.shape == (3, 1, 64, 48)
    assert torch.equal(vorticity, start)
    assert equation.residual(forcing, vorticity).max() < 1e-12
    assert equation.residual(forcing * (1 + 1e-6), vorticity).min() > 5e-7
    assert equation.residual(forcing, vorticity.roll(1, -1)).min() > 1e-2
    assert forcing.mean(dim=(-2, -1)).abs().max() < 1e-13


def test_the_forcing_of_a_stream_function_is_that_of_its_closed_form():
    equation = SteadyNavierStokes(sizes=(32, 24), viscosity=0.07)
    x, y = torch.meshgrid(*equation.coordinates, indexing="ij")
    # ψ = ⅕ sin 2x cos y + ⅑ cos 3y
    first, second = torch.sin(2 * x) * torch.cos(y), torch.cos(3 * y)
    u = -torch.sin(2 * x) * torch.sin(y) / 5 - torch.sin(3 * y) / 3
    v = -2 * torch.cos(2 * x) * torch.cos(y) / 5
    along = 2 * torch.cos(2 * x) * torch.cos(y)
    across = -torch.sin(2 * x) * torch.sin(y) - 3 * torch.sin(3 * y)
    want = u * along + v * across + 0.07 * (5 * first + 9 * second)
    forcing, _ = equation.solve((first + second)[None, None])
    torch.testing.assert_close(forcing[0, 0], want, rtol=0, atol=1e-13)


def test_a_marched_flow_stays_at_the_vorticity_of_its_forcing():
    equation = SteadyNavierStokes(sizes=(48, 48), viscosity=1e-2, speed=2.0)
    forcing, vorticity = equation.solve(drawn(equation))
    torus = Torus((48, 48), (TURN, TURN))

    def carried(v):
        slopes = torus.inverse(v[:, None] * torus.slopes)
        wind = velocity(torus.inverse(v), TURN)
        return torus.forward(forcing[:, 0] - (wind * slopes).sum(dim=1)) * torus.kept

    march = ETDRK4(1e-2 * torus.laplacian, carried, 0.01)

    def marched(v):
        for _ in range(40):
            v = march(v)
        return v

    steady = torus.forward(vorticity[:, 0])
    assert (marched(steady) - steady).norm() < 1e-10 * steady.norm()
    assert (marched(-steady) + steady).norm() > 1e-3 * steady.norm()


def test_a_moved_turned_or_mirrored_vorticity_has_such_a_forcing():
    equation = SteadyNavierStokes(sizes=(32, 32))
    start = drawn(equation)
    forcing, _ = equation.solve(start)
    for move in (
        lambda w: w.roll((5, -3), (-2, -1)),
        lambda w: w.rot90(1, (-2, -1)),
        lambda w: -w.flip(-2),
    ):
        moved, _ = equation.solve(move(start))
        torch.testing.assert_close(moved, move(forcing), rtol=0, atol=1e-11)


def test_drawn_vorticities_have_the_speed_the_peak_and_no_more_than_a_quarter_of_the_modes():
    equation = SteadyNavierStokes(peak=3.0, sizes=(64, 64))
    start = drawn(equation, 40)[:, 0]
    wind = velocity(start, TURN)
    torch.testing.assert_close(
        wind.norm(dim=1).amax(dim=(1, 2)), torch.full((40,), 5.0, dtype=torch.float64)
    )
    n = torch.fft.fftfreq(64, 1 / 64, dtype=torch.float64)
    k = (n[:, None] ** 2 + n**2).sqrt()
    power = torch.fft.fft2(wind).abs().square().sum(dim=1).mean(dim=0)
    density = [power[(k - s).abs() < 0.5].mean().sqrt() * s for s in range(1, 12)]
    assert density.index(max(density)) + 1 == 3
    beyond = (n[:, None].abs() >= 16) | (n.abs() >= 16)
    assert power[beyond].max() < 1e-20 * power.max()
    assert not torch.equal(start[0], start[1])


def test_only_the_viscous_part_of_the_forcing_tells_a_vorticity_from_its_negative():
    equation = SteadyNavierStokes(sizes=(32, 32), viscosity=1e-2)
    torus, start = Torus((32, 32), (TURN, TURN)), drawn(equation)
    difference = equation.solve(start)[0] - equation.solve(-start)[0]
    viscous = -2e-2 * torus.inverse(torus.forward(start) * torus.laplacian)
    torch.testing.assert_close(difference, viscous, rtol=0, atol=1e-11)


def test_the_residual_is_that_between_the_points():
    """Fields of every wavenumber, whose residual is found again on four times the points."""
    equation = SteadyNavierStokes(sizes=(16, 20), viscosity=0.3)
    forcing, vorticity = torch.randn(
        2, 1, 1, 16, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    got = equation.residual(forcing, vorticity)
    forcing, vorticity = smooth_resample(forcing, (64, 80)), smooth_resample(vorticity, (64, 80))
    torus = Torus((64, 80), (TURN, TURN))
    v = torus.forward(vorticity)
    carried = (velocity(vorticity[:, 0], TURN) * torus.inverse(v * torus.slopes)).sum(dim=1)
    rest = carried - 0.3 * torus.inverse(v * torus.laplacian)[:, 0] - forcing[:, 0]
    assert got.item() == pytest.approx((rest.norm() / forcing.norm()).item(), rel=1e-12)


def test_a_vorticity_that_the_points_do_not_resolve_is_refused():
    equation = SteadyNavierStokes(sizes=(32, 32))
    start = drawn(equation, 2)
    start[1] += 1e-3 * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SolverError, match=r"1 of 2 pairs have a residual .* raise sizes"):
        equation.solve(start)


def test_what_is_no_vorticity_or_no_equation_is_refused():
    with pytest.raises(DataError, match=r"expects vorticities \[B, 1, 32, 32\] in float64"):
        SteadyNavierStokes(sizes=(32, 32)).solve(torch.zeros(1, 1, 32, 32))
    with pytest.raises(DataError, match="at least 16 points"):
        SteadyNavierStokes(sizes=(8, 32))
    with pytest.raises(DataError, match="positive length"):
        SteadyNavierStokes(speed=0.0)
