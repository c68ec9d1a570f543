"""The time stepper by itself."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from datamodules.pde.etdrk4 import ETDRK4

RATES = torch.tensor([-1e6, -300.0, -1.0, -1e-9, 0.0, 0.7], dtype=torch.float64)


def march(linear, nonlinear, v, until, steps):
    stepper = ETDRK4(linear, nonlinear, until / steps)
    for _ in range(steps):
        v = stepper(v)
    return v


@pytest.mark.parametrize("turn", [1, 1j])
def test_linear_and_constant_terms_are_exact(turn):
    """v' = L v + c has v = e^{Lt} v0 + c (e^{Lt} − 1) / L, c t where L = 0."""
    linear = RATES if turn == 1 else RATES.clamp(min=-300) * 1j
    v0 = torch.linspace(1, 2, len(RATES), dtype=torch.float64).to(torch.complex128)
    c = (3 - 1j) * torch.ones_like(v0)
    got = march(linear, lambda v: c.clone(), v0, 0.5, 3)
    lt = (0.5 * linear).to(torch.complex128)
    # expm1 without cancellation: a series where the exponent is small
    small = lt.abs() < 1e-3
    series = 1 + lt / 2 + lt**2 / 6
    share = torch.where(small, series, (lt.exp() - 1) / torch.where(small, 1, lt))
    torch.testing.assert_close(got, lt.exp() * v0 + 0.5 * c * share, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("linear", [-5.0, 0.5, 20j])
def test_fourth_order(linear):
    """v' = L v + v² / (1 + |v|²) + sin-like coupling, against scipy at a tight tolerance."""
    rate = torch.tensor([linear], dtype=torch.complex128 if linear == 20j else torch.float64)

    def nonlinear(v):
        return v * v / (1 + v.abs() ** 2) + 1

    v0 = torch.tensor([0.4 + 0.2j], dtype=torch.complex128)
    exact = solve_ivp(
        lambda _, v: linear * v + nonlinear(torch.from_numpy(v)).numpy(),
        (0, 1),
        v0.numpy(),
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    ).y[0, -1]
    errors = [
        abs(march(rate, nonlinear, v0, 1.0, steps).item() - exact) for steps in (80, 160, 320)
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders.min() > 3.8
    assert errors[-1] < 1e-8


def test_real_and_complex_arithmetic_agree():
    v0 = torch.randn(3, len(RATES), dtype=torch.complex128)

    def nonlinear(v):
        return torch.sin(v.real) - 1j * v.imag**2

    ends = [march(rates, nonlinear, v0, 0.1, 7) for rates in (RATES, RATES.to(torch.complex128))]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_the_state_is_left_as_it_was():
    v = torch.randn(2, len(RATES), dtype=torch.complex128)
    before = v.clone()
    ETDRK4(RATES, lambda v: v * v, 0.01)(v)
    assert torch.equal(v, before)
    assert math.isfinite(v.abs().sum())
