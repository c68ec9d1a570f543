"""Random fields have the law they are said to have."""

import math

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.random_fields import SineState, gaussian, sines, uniform
from datamodules.pde.torus import Torus, resample


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gaussian_modes_have_their_deviation():
    """Coefficients along 1, √2 cos kx and √2 sin kx are independent, of the given deviation."""
    torus = Torus((16,), (1.0,))
    deviation = 1 / (1 + torus.modes[0])
    fields = gaussian(torus, rng(), deviation, 20000)
    v = torus.forward(fields) / 16
    constant, cosine, sine = v[:, 0].real, math.sqrt(2) * v.real, -math.sqrt(2) * v.imag
    torch.testing.assert_close(constant.std(), deviation[0], rtol=0.03, atol=0)
    for parts in (cosine[:, 1:8], sine[:, 1:8]):
        torch.testing.assert_close(parts.std(dim=0), deviation[1:8], rtol=0.03, atol=0)
    assert (
        torch.corrcoef(torch.stack([cosine[:, 1], sine[:, 1], cosine[:, 2]])).triu(1).abs().max()
        < 0.03
    )
    variance = deviation[0] ** 2 + 2 * deviation[1:8].square().sum() + deviation[8] ** 2
    torch.testing.assert_close(fields.var(dim=0).mean(), variance, rtol=0.03, atol=0)


def test_gaussian_fields_in_two_dimensions_are_isotropic():
    torus = Torus((16, 16), (1.0, 1.0))
    deviation = 1 / (1 - torus.laplacian / (4 * math.pi**2))
    v = torus.forward(gaussian(torus, rng(), deviation, 4000)) / 256
    for place in ((0, 3), (3, 0), (-3, 0)):
        power = v[(slice(None), *place)].abs().square().mean().sqrt()
        torch.testing.assert_close(power, deviation[place], rtol=0.05, atol=0)


def test_sines_have_their_band_and_amplitudes():
    torus = Torus((32,), (5.0,))
    for seed in range(5):
        v = torus.forward(sines(torus, rng(seed), 4, (2, 6), (0.0, 1.0)))[0] / 32
        assert v[:2].abs().max() < 1e-14
        assert v[7:].abs().max() < 1e-14
        assert 0 < v.abs().sum() <= 2
    one = sines(Torus((64,), (1.0,)), rng(), 1, (1, 1), (0.3, 0.3))
    torch.testing.assert_close(one.max(), torch.tensor(0.3).double(), rtol=0.01, atol=0)


def test_the_same_numbers_give_the_same_field_on_other_points():
    coarse, fine = Torus((16, 12), (2.0, 1.0)), Torus((32, 36), (2.0, 1.0))
    fields = [sines(torus, rng(3), 5, (0, 4)) for torus in (coarse, fine)]
    torch.testing.assert_close(fields[0], fields[1][:, ::2, ::3])
    torch.testing.assert_close(resample(fields[0], fine.sizes), fields[1])
    assert torch.equal(sines(coarse, rng(3), 5, (0, 4)), fields[0])


def test_uniform_is_in_its_interval():
    numbers = uniform(rng(), -2, 3, 1000)
    assert numbers.dtype == torch.float64
    assert -2 <= numbers.min() < -1.9
    assert 2.9 < numbers.max() < 3


def test_the_phases_of_sines_fill_a_turn():
    """Of positive amplitudes, so that half a turn would leave all imaginary parts of one sign."""
    rng = torch.Generator().manual_seed(0)
    torus = Torus((16,), (1.0,))
    v = torch.stack([sines(torus, rng, 1, (1, 1), (1.0, 1.0))[0] for _ in range(2000)])
    phase = torch.angle(torch.fft.rfft(v)[:, 1])
    counts = torch.histc(phase, 8, -math.pi, math.pi)
    assert (counts / 250 - 1).abs().max() < 0.25


def test_pdebench_s_states_are_folded_and_cut_as_often_as_is_said():
    """A fold leaves one sign where waves have a mean of zero, a window zeros at both ends."""
    torus, generator = Torus((256,), (3.0,)), rng()
    states = torch.cat([SineState().draw(torus, generator) for _ in range(2000)])
    cut = (states[:, :10].abs().amax(dim=1) < 1e-3) & (states[:, -10:].abs().amax(dim=1) < 1e-3)
    folded = states.amin(dim=1) * states.amax(dim=1) > -1e-9
    for chance in (cut, folded):
        assert 0.08 < chance.double().mean() < 0.12
    signs = states[folded].mean(dim=1).sign()
    assert abs(signs.mean()) < 0.25
    assert 0.2 < (cut[folded].double().mean() / cut.double().mean()) < 2  # independent


def test_a_window_is_where_it_is_said_to_be():
    torus = Torus((1000,), (5.0,))
    law = SineState(1, (1, 1), folded=0, windowed=1, left=(0.2, 0.2), right=(0.7, 0.7), edge=0.01)
    state = law.draw(torus, rng())[0]
    x = torus.points[0] / 5
    drawn = sines(torus, rng(), 1, (1, 1), (0.0, 1.0))[0]
    window = (torch.tanh((x - 0.2) / 0.01) - torch.tanh((x - 0.7) / 0.01)) / 2
    torch.testing.assert_close(state.abs(), (drawn * window).abs())
    fine = law.draw(Torus((3000,), (5.0,)), rng())[0]
    torch.testing.assert_close(fine[::3], state)


@pytest.mark.parametrize(
    "wrong", [{"waves": 0}, {"band": (3, 1)}, {"band": (1,)}, {"folded": 1.1}, {"edge": 0.0}]
)
def test_laws_without_sense_are_refused(wrong):
    with pytest.raises(DataError, match="SineState needs"):
        SineState(**wrong)
