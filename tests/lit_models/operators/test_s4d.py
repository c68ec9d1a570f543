"""The diagonal state-space layer: closed forms, and one sequence cut anywhere."""

import math

import pytest
import torch

from lit_models.operators import s4d
from lit_models.operators.s4d import S4D

kinds = pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])


def make(discretisation="zoh", poles="lin", channels=3, state=8, **options) -> S4D:
    return S4D(channels, state, discretisation=discretisation, poles=poles, **options)


@kinds
@pytest.mark.parametrize("steps", [1, 2, 25, 200])
@pytest.mark.parametrize("piece", [1, 3])
def test_a_sequence_in_pieces_gives_the_same_in_float32(discretisation, steps, piece):
    """Convolved as a whole; recurrently, a step or a few at a time, with the state alone."""
    layer, u = make(discretisation, step_range=(1e-2, 1.0)), torch.randn(4, steps, 3)
    whole, last = layer(u)
    state, parts = None, []
    for part in u.split(piece, dim=1):
        y, state = layer(part, state)
        parts.append(y)
    scale = whole.abs().max()
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-5 * scale
    assert (state - last).abs().max() <= 1e-5 * last.abs().max()


@kinds
@pytest.mark.parametrize("poles", ["lin", "inv"])
def test_the_response_to_an_impulse_is_the_recursion_in_complex_numbers(discretisation, poles):
    layer = make(discretisation, poles, channels=1, state=6, step_range=(0.05, 0.06)).double()
    a = torch.complex(-layer.log_decay.exp(), layer.frequency)[0]
    C, step = torch.view_as_complex(layer.C)[0], layer.log_step.exp()
    if discretisation == "zoh":
        A_bar = (step * a).exp()
        B_bar = (A_bar - 1) / a
    else:
        A_bar = (1 + step * a / 2) / (1 - step * a / 2)
        B_bar = step / (1 - step * a / 2)
    impulse = torch.zeros(1, 12, 1, dtype=torch.float64)
    impulse[0, 0, 0] = 1
    y = layer(impulse)[0][0, :, 0] - layer.D * impulse[0, :, 0]
    want = torch.stack([2 * (C * A_bar**t * B_bar).sum().real for t in range(12)])
    torch.testing.assert_close(y, want)


def test_a_held_input_is_followed_exactly():
    """x' = a x + 1 from rest: x(t) = (e^{at} − 1) / a."""
    layer = make(channels=1, state=2, step_range=(0.1, 0.11)).double()
    a = complex(-layer.log_decay.exp(), layer.frequency)
    step, C = float(layer.log_step.exp()), complex(*layer.C.flatten())
    y = layer(torch.ones(1, 20, 1, dtype=torch.float64))[0].flatten() - layer.D
    t = step * torch.arange(1, 21, dtype=torch.float64)
    want = [2 * (C * (torch.exp(torch.tensor(a * s)) - 1) / a).real.item() for s in t.tolist()]
    torch.testing.assert_close(y, torch.tensor(want, dtype=torch.float64))


def test_where_poles_begin():
    """Gu et al., table 1."""
    torch.testing.assert_close(make().frequency[0], math.pi * torch.arange(4.0))
    n = torch.arange(4)
    inverse = 8 / math.pi * (8 / (2 * n + 1) - 1)
    torch.testing.assert_close(make(poles="inv").frequency[1], inverse)
    assert (make().log_decay.exp() == 0.5).all()


@kinds
def test_outputs_know_no_later_input(discretisation):
    layer, u = make(discretisation), torch.randn(2, 10, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(u)[0][:, 4].sum(), u)
    assert (gradient[:, :5] != 0).all()
    assert (gradient[:, 5:] == 0).all()


@kinds
def test_no_pole_leaves_the_unit_circle(discretisation):
    layer = make(discretisation, step_range=(1.0, 100.0))
    with torch.no_grad():
        layer.log_decay.add_(3 * torch.randn_like(layer.log_decay))
        layer.frequency.add_(100 * torch.randn_like(layer.frequency))
    assert layer(torch.randn(2, 100, 3))[0].isfinite().all()
    assert (layer._sampled()[0] < 0).all()


@kinds
def test_gradients(discretisation):
    layer = make(discretisation, channels=2, state=4).double()
    u, state = torch.randn(2, 3, 2).double(), torch.randn(2, 2, 2, 2).double()
    tensors = [u, state, *layer.parameters()]

    def function(u, state, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (u, state))

    assert torch.autograd.gradcheck(function, [t.detach().requires_grad_() for t in tensors])


def test_short_and_long_convolutions_agree(monkeypatch):
    layer, u = make(), torch.randn(2, 40, 3)
    short = layer(u)[0]
    monkeypatch.setattr(s4d, "LONGEST_PRODUCT", 0)
    torch.testing.assert_close(layer(u)[0], short)


@pytest.mark.parametrize(
    "options", [{"state": 3}, {"state": 0}, {"discretisation": "euler"}, {"poles": "legs"}]
)
def test_options_that_do_not_exist_are_refused(options):
    with pytest.raises(ValueError, match="Expected"):
        make(**options)
