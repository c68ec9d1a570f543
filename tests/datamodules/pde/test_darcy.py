"""Darcy flow: closed forms, orders of convergence, what an elliptic operator has to keep."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.fft import idctn

from datamodules.errors import DataError
from datamodules.pde.darcy import Darcy, pressure, stiffness
from datamodules.pde.equation import SolverError


def random_coefficients(eq: Darcy, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([eq.initial(generator) for _ in range(count)])


def solution(a: torch.Tensor, **kwargs) -> torch.Tensor:
    """u at all points, [B, 1, n, n]."""
    return Darcy(size=a.shape[-1], solver_size=a.shape[-1], **kwargs).solve(a)[1]


def orders(error, sizes: tuple[int, ...]) -> tuple[list[float], list[float]]:
    errors = [error(n) for n in sizes]
    found = [math.log2(a / b) for a, b in pairwise(errors)]
    return errors, found


def manufactured_error(n: int) -> float:
    """u = sin πx sin 2πy (1 + x) of a = 2 + sin(2x + 3y)."""
    x, y = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    p = math.pi
    sx, cx, sy, cy = np.sin(p * x), np.cos(p * x), np.sin(2 * p * y), np.cos(2 * p * y)
    u = sx * sy * (1 + x)
    ux, uy = (p * cx * (1 + x) + sx) * sy, 2 * p * sx * cy * (1 + x)
    laplacian = (2 * p * cx - p**2 * sx * (1 + x)) * sy - 4 * p**2 * u
    a, slope = 2 + np.sin(2 * x + 3 * y), np.cos(2 * x + 3 * y)
    forcing = -(a * laplacian + slope * (2 * ux + 3 * uy))
    return np.abs(pressure(a, forcing) - u).max()


def test_a_manufactured_solution_is_met_with_second_order():
    errors, found = orders(manufactured_error, (17, 33, 65))
    assert errors[-1] < 1.3e-3
    assert min(found) > 1.9


def layered(x: torch.Tensor, y: torch.Tensor, left: float, right: float) -> torch.Tensor:
    """u of f = 1 where a is `left` for x < ½ and `right` beyond, [*x, *y].

    A Fourier series in y. With w = 1 / (a m²), d the distance from the nearer end and V the value
    in the middle, a term is w (1 − sinh m(½ − d) / sinh m/2) + (V − w) sinh md / sinh m/2 in x.
    That the fluxes a u_x from both sides cancel in the middle gives V.
    """
    u = torch.zeros(len(x), len(y), dtype=torch.float64)
    for odd in range(1, 120, 2):
        m = math.pi * odd
        weights = [1 / (a * m**2) for a in (left, right)]
        middle = (2 - 2 / math.cosh(m / 2)) / sum(1 / w for w in weights)
        for side, weight in zip((x < 0.5, x >= 0.5), weights, strict=True):
            d = torch.minimum(x, 1 - x)[side]
            away = torch.sinh(m * (0.5 - d)) / math.sinh(m / 2)
            near = torch.sinh(m * d) / math.sinh(m / 2)
            part = weight * (1 - away) + (middle - weight) * near
            u[side] += 4 / m * part[:, None] * torch.sin(m * y)
    return u


def layered_error(n: int, left: float, right: float) -> float:
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    a = torch.where(x < 0.5, left, right).double()[:, None].expand(n, n).contiguous()
    u = solution(a[None, None])[0, 0]
    return (u - layered(x, x, left, right)).abs().max().item()


def test_a_constant_coefficient_agrees_with_the_fourier_series():
    errors, found = orders(lambda n: layered_error(n, 3.0, 3.0), (17, 33, 65))
    assert errors[-1] < 1e-5
    assert min(found) > 1.9


def test_two_layers_agree_with_the_closed_form_to_first_order():
    errors, found = orders(lambda n: layered_error(n, 12.0, 3.0), (17, 33, 65, 129))
    assert errors[-1] < 2e-4
    assert all(0.8 < order < 1.4 for order in found)


def test_cells_agree_with_the_fourier_series_at_their_middles():
    def error(n: int) -> float:
        eq = Darcy(size=n, solver_size=n, grid="cells")
        u = eq.solve(torch.full((1, 1, n, n), 3.0).double())[1][0, 0]
        return (u - layered(eq.points, eq.points, 3.0, 3.0)).abs().max().item()

    errors, found = orders(error, (17, 33, 65))
    assert errors[-1] < 1e-5
    assert min(found) > 1.9


def test_splines_between_cells_and_nodes_keep_cubics():
    eq = Darcy(size=5, solver_size=9, grid="cells")
    points, nodes = eq.points.numpy(), np.linspace(0, 1, 9)
    to, back = eq.splines
    np.testing.assert_allclose(to @ (points**3 - points), nodes**3 - nodes, atol=1e-13)
    np.testing.assert_allclose(back @ (nodes**3 - nodes), points**3 - points, atol=1e-13)


def test_the_operator_is_symmetric_and_positive_definite():
    a = random_coefficients(Darcy(size=17, solver_size=17), 1)[0, 0].numpy()
    matrix = stiffness(a)
    assert abs(matrix - matrix.T).max() == 0
    assert np.linalg.eigvalsh(matrix.toarray()).min() > 0


def test_the_operator_is_the_five_point_formula():
    """Of points 4 × 4 the four inner ones, by hand."""
    a = np.random.default_rng(0).uniform(1, 2, (4, 4))
    u = np.zeros((4, 4))
    u[1:3, 1:3] = np.random.default_rng(1).normal(size=(2, 2))
    expected = [
        sum((a[i, j] + a[p, q]) / 2 * (u[i, j] - u[p, q]) for p, q in neighbours)
        for i in (1, 2)
        for j in (1, 2)
        for neighbours in [((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))]
    ]
    np.testing.assert_allclose(stiffness(a) @ u[1:3, 1:3].ravel(), expected)


@pytest.mark.parametrize("law", ["threshold", "lognormal"])
def test_a_positive_forcing_has_its_lowest_pressure_on_the_boundary(law):
    eq = Darcy(size=33, solver_size=33, law=law)
    u = eq.solve(random_coefficients(eq, 3))[1]
    inner = u[..., 1:-1, 1:-1]
    assert inner.min() > 0
    assert torch.equal(torch.nn.functional.pad(inner, (1, 1, 1, 1)), u)
    assert (solution(random_coefficients(eq, 1), forcing=-1.0) <= 0).all()


def test_more_permeable_is_less_work():
    """∫ f u, the least energy, falls as a rises anywhere (Dirichlet's principle)."""
    a = random_coefficients(Darcy(size=33, solver_size=33), 3)
    u = solution(a).sum(dim=(1, 2, 3))
    bounds = [solution(torch.full_like(a, value)).sum(dim=(1, 2, 3)) for value in (12.0, 3.0)]
    assert (bounds[0] < u).all()
    assert (u < bounds[1]).all()


def test_pressure_scales_with_forcing_and_against_the_coefficient():
    a = random_coefficients(Darcy(size=33, solver_size=33), 2)
    u = solution(a)
    torch.testing.assert_close(solution(7 * a), u / 7, rtol=1e-12, atol=0)
    torch.testing.assert_close(solution(a, forcing=-5.0), -5 * u, rtol=1e-12, atol=0)


def test_what_the_forcing_brings_leaves_through_the_boundary():
    n = 33
    a = random_coefficients(Darcy(size=n, solver_size=n), 1)
    u, a = solution(a)[0, 0], a[0, 0]
    outflow = 0.0
    for turns in range(4):
        v, b = u.rot90(turns), a.rot90(turns)
        outflow += ((b[0, 1:-1] + b[1, 1:-1]) / 2 * v[1, 1:-1]).sum().item()
    assert outflow == pytest.approx(((n - 2) / (n - 1)) ** 2, rel=1e-12)


@pytest.mark.parametrize("grid", ["nodes", "cells"])
@pytest.mark.parametrize(
    "turn",
    [lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.mT, lambda t: t.rot90(1, (-2, -1))],
    ids=["left-right", "up-down", "transposed", "turned"],
)
def test_a_turned_coefficient_has_the_turned_solution(grid, turn):
    a = random_coefficients(Darcy(size=33, solver_size=33), 2)
    torch.testing.assert_close(
        solution(turn(a), grid=grid), turn(solution(a, grid=grid)), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("grid", ["nodes", "cells"])
def test_saved_points_are_points_of_the_solver(grid):
    fine, coarse = Darcy(33, 33, grid=grid), Darcy(9, 33, grid=grid)
    a = random_coefficients(fine, 2)
    assert torch.equal(random_coefficients(coarse, 2), a)
    saved, u = coarse.solve(a)
    assert torch.equal(saved, a[..., ::4, ::4])
    assert torch.equal(u, fine.solve(a)[1][..., ::4, ::4])
    assert torch.equal(coarse.coordinates[1], fine.coordinates[0][::4])
    assert saved.shape == u.shape == (2, 1, *coarse.shape)


def test_a_sample_is_the_same_in_every_batch():
    eq = Darcy(size=17, solver_size=33)
    a = random_coefficients(eq, 3)
    assert torch.equal(eq.solve(a[1:2])[1], eq.solve(a)[1][1:2])


def test_initial_fields_are_the_cosine_series_of_the_published_script():
    """On cells the series is the inverse of scipy's orthonormal cosine transform."""
    n, power, shift = 16, 2.5, 4.0
    eq = Darcy(size=n, solver_size=n, law="lognormal", power=power, shift=shift, grid="cells")
    drawn = random_coefficients(eq, 1)[0, 0].log().numpy()
    noise = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = np.arange(n)
    square = math.pi**2 * (k[:, None] ** 2 + k**2)
    coefficients = n * shift ** (power - 1) * (square + shift**2) ** (-power / 2) * noise.numpy()
    coefficients[0, 0] = 0
    np.testing.assert_allclose(drawn, idctn(coefficients, norm="ortho"), atol=1e-13)


def test_initial_fields_have_the_variance_of_their_covariance():
    """In the corner of the nodes every cosine is √2 or 1."""
    eq = Darcy(size=9, solver_size=9, law="lognormal")
    g = random_coefficients(eq, 2000).log()[:, 0]
    k = torch.arange(9, dtype=torch.float64)
    weight = torch.where(k == 0, 1, 2)
    spectrum = 9 * (math.pi**2 * (k[:, None] ** 2 + k**2) + 9) ** -2
    spectrum[0, 0] = 0
    expected = (weight[:, None] * weight * spectrum).sum().item()
    assert g[:, 0, 0].var().item() == pytest.approx(expected, rel=0.1)
    assert g[:, 8, 0].var().item() == pytest.approx(expected, rel=0.1)
    assert g.mean(dim=0).abs().max() < 0.05


def test_threshold_coefficients_have_both_values_equally_often():
    eq = Darcy(size=33, solver_size=33, high=5.0, low=2.0)
    a = random_coefficients(eq, 200)
    assert a.unique().tolist() == [2.0, 5.0]
    assert (a == 5).double().mean().item() == pytest.approx(0.5, abs=0.03)
    signs = random_coefficients(Darcy(size=33, solver_size=33, law="lognormal"), 200) >= 1
    assert torch.equal(signs, a == 5)


def test_the_defaults_are_the_published_sizes():
    eq = Darcy()
    assert (eq.every, eq.shape, eq.periodic) == (5, (85, 85), False)
    assert len(eq.coordinates[0]) == 85
    assert eq.key["grid"] == "nodes"


def test_a_coefficient_without_solution_is_an_error():
    a = torch.ones(1, 1, 9, 9).double()
    a[0, 0, 4, 4] = -1
    with pytest.raises(SolverError, match="down to -1"):
        solution(a)


@pytest.mark.parametrize(
    "wrong",
    [{"size": 80}, {"law": "normal"}, {"grid": "faces"}, {"low": 0.0}, {"power": 1.0}],
    ids=str,
)
def test_wrong_parameters_are_errors(wrong):
    with pytest.raises(DataError, match="Darcy needs"):
        Darcy(**wrong)


def test_wrong_coefficients_are_errors():
    with pytest.raises(DataError, match=r"\[B, 1, 9, 9\] in float64, got \[1, 1, 8, 8\]"):
        Darcy(size=5, solver_size=9).solve(torch.ones(1, 1, 8, 8).double())
