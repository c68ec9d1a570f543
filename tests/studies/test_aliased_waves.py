"""The bound of one frame is right, two frames know all, and no trained network passes the bound."""

import json
import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ledger.claim import Planner, load_claim
from studies import aliased_waves
from studies.aliased_waves import (
    amplitudes,
    factors,
    linear_error,
    markov_bound,
    markov_gap,
    predict,
    relative_error,
    trajectories,
)

SYSTEM = {"points": 16, "wavenumber": 5, "interval": 1.5e-4}
NET = {
    "_target_": "lit_models.operators.memno.MemNO",
    "in_channels": 1,
    "out_channels": 1,
    "modes": [8],
    "width": 8,
    "before": 1,
    "after": 1,
    "expansion": 1.0,
    "coordinates": None,
}
S4D = {
    "_target_": "lit_models.operators.s4d.S4D",
    "channels": 8,
    "state": 8,
    "step_range": [0.1, 1.0],
}


def drawn(count, share=0.5, seed=0):
    return amplitudes(count, share, np.random.default_rng(seed))


def coefficients(waves, frames):
    """y [B, T], from the factors alone."""
    return waves @ (np.array(factors(**SYSTEM))[:, None] ** np.arange(frames))


def gap(memory, **changes):
    given = {"share": 0.5, "frames": 6, "train": 512, "steps": 100, "lr": 1e-2, "seed": 0}
    return markov_gap(NET, memory, **SYSTEM | given | changes)


def test_the_factors_solve_the_airy_equation():
    """u_t = −u_xxx, by finite differences in time and the spectral derivative in space."""
    grid, step, points, wavenumber = 64, 1e-7, 8, 3
    fields = trajectories(
        drawn(3), points=points, wavenumber=wavenumber, interval=step, frames=3, grid=grid
    )
    rate = (fields[:, 2] - fields[:, 0]) / (2 * step)
    waves = 1j * np.arange(grid // 2 + 1)
    third = np.fft.irfft(waves**3 * np.fft.rfft(fields[:, 1]), n=grid)
    assert rate == pytest.approx(-third, rel=1e-5, abs=1e-3)
    assert np.abs(third).max() > 100


def test_only_a_finer_grid_tells_the_waves_apart():
    slow, fast = (
        [
            trajectories(np.array([wave]), **SYSTEM, frames=1, grid=grid)[0, 0]
            for wave in ([1.0, 0.0], [0.0, 1.0])
        ]
        for grid in (16, 32)
    )
    assert slow[0] == pytest.approx(slow[1], abs=1e-12)
    assert np.abs(fast[0] - fast[1]).max() > 1


def test_fields_are_what_the_coefficients_say():
    x = 2 * np.pi * np.arange(16) / 16
    y = coefficients(drawn(5), 4)
    fields = trajectories(drawn(5), **SYSTEM, frames=4, grid=16)
    assert fields == pytest.approx((y[..., None] * np.exp(5j * x)).real, abs=1e-12)


def test_amplitudes_are_circular_and_share_the_variance():
    a, b = drawn(200_000, share=0.3).T
    assert np.mean(abs(a) ** 2) == pytest.approx(0.3, rel=0.01)
    assert np.mean(abs(b) ** 2) == pytest.approx(0.7, rel=0.01)
    for product in (a * a, b * b, a * b, a * b.conj()):
        assert abs(product.mean()) < 0.01


def test_the_bound_by_hand():
    # Phases of 1³ and (2 + 1)³ times π/26 differ by π: |g₁ − g₂| = 2.
    assert markov_bound(2, 1, math.pi / 26, 0.5) == pytest.approx(1)
    assert markov_bound(2, 1, math.pi / 26, 0.2) == pytest.approx(0.8)
    assert markov_bound(2, 1, math.pi / 26, 1.0) == 0
    # By π/3: 1 apart.
    assert markov_bound(2, 1, math.pi / 78, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_bound_is_the_error_of_the_best_multiplier_at_every_frame(share):
    y = coefficients(drawn(100_000, share), 6)
    g1, g2 = factors(**SYSTEM)
    best, bound = g1 * share + g2 * (1 - share), markov_bound(**SYSTEM, share=share)
    for now, following in zip(y.T, y.T[1:], strict=False):
        error = np.sqrt(np.mean(abs(following - best * now) ** 2) / np.mean(abs(following) ** 2))
        assert error == pytest.approx(bound, rel=0.01)
        fitted = np.vdot(now, following) / np.vdot(now, now)
        assert fitted == pytest.approx(best, abs=0.01)
        # Nor does the size of the last frame help: what is left does not depend on it.
        for part in (abs(now) > 1, abs(now) < 0.5):
            left = np.mean(abs(following - best * now)[part] ** 2)
            assert left == pytest.approx(bound**2, rel=0.03)


def test_two_frames_tell_the_third():
    g1, g2 = factors(**SYSTEM)
    y = coefficients(drawn(50), 8)
    assert y[:, 2:] == pytest.approx((g1 + g2) * y[:, 1:-1] - g1 * g2 * y[:, :-2], abs=1e-12)


def test_least_squares_meets_the_bound_and_passes_it_with_two_frames():
    train, test = (
        trajectories(drawn(2000, 0.3, seed), **SYSTEM, frames=6, grid=16) for seed in (1, 2)
    )
    bound = markov_bound(**SYSTEM, share=0.3)
    assert linear_error(train, test, 1) == pytest.approx(bound, rel=0.02)
    assert linear_error(train, test, 2) < 1e-10
    assert linear_error(train, test, 3) < 1e-10


def test_relative_error_is_pooled():
    true = np.array([[3.0], [4.0]])
    assert relative_error(np.array([[3.0], [3.0]]), true) == pytest.approx(1 / 5)
    assert relative_error(np.zeros((2, 1)), true, axis=(1,)).tolist() == [1, 1]


def test_predictions_are_of_the_frames_that_follow():
    fields = trajectories(drawn(3), **SYSTEM, frames=4, grid=16)
    double = lambda frames: (2 * frames, None)  # noqa: E731
    assert predict(double, fields) == pytest.approx(2 * fields[:, :-1], abs=1e-6)


@pytest.fixture(scope="module")
def reports():
    return {"no memory": gap(None), "memory": gap(S4D)}


def test_a_network_of_the_last_frame_meets_the_bound_and_does_not_pass_it(reports):
    test = reports["no memory"]["test"]
    assert 0.98 < test["over_bound"] < 1.2
    assert 0.97 < test["first_over_bound"] < 1.2


def test_a_memory_passes_it_from_the_second_frame_on(reports):
    test = reports["memory"]["test"]
    assert test["over_bound"] < 0.6
    assert 0.97 < test["first_over_bound"] < 1.2


def test_a_network_that_sees_the_answer_is_found_out(monkeypatch):
    """Were what follows among what is given, the error would lie below the bound."""
    monkeypatch.setattr(aliased_waves, "predict", lambda net, fields: fields[:, 1:, :])
    assert gap(None, steps=1)["test"]["over_bound"] < 0.98


def test_report(reports):
    for report in reports.values():
        assert report == json.loads(json.dumps(report))
        assert list(report) == ["test", "selected", "lr", "curves"]
        test, curves = report["test"], report["curves"]
        assert all(type(value) is float for value in test.values())
        bound = markov_bound(**SYSTEM, share=0.5)
        assert test["bound"] == bound
        assert test["over_bound"] == test["error"] / bound
        assert test["one_frame_over_bound"] == pytest.approx(1, abs=0.02)
        assert max(test["two_frames_error"], test["three_frames_error"]) < 1e-10
        assert list(curves) == ["frames given", "error", "bound of the last frame alone"]
        assert curves["frames given"] == [1, 2, 3, 4, 5]
        assert curves["bound of the last frame alone"] == [bound] * 5
        # Pooled over frames, the error lies between those of the frames, the first not counted.
        assert min(curves["error"][1:]) <= test["error"] <= max(curves["error"][1:])
        assert curves["error"][0] == pytest.approx(test["first_over_bound"] * bound)
        validated = report["selected"]["value"]
        assert validated == pytest.approx(test["error"], rel=0.2)
        assert validated != test["error"]
    assert reports["memory"]["test"]["parameters"] > reports["no memory"]["test"]["parameters"]


def test_a_seed_is_data_weights_and_batches():
    state = torch.get_rng_state()
    first = gap(S4D, steps=2)
    torch.manual_seed(99)
    assert gap(S4D, steps=2) == first != gap(S4D, steps=2, seed=1)
    torch.set_rng_state(state)


def test_the_claim_calls_the_study(monkeypatch):
    """Its nets come as configs, so that weights are drawn after the seed."""
    claim = load_claim("memno_linear", "smoke")
    runs = Planner(claim).test_runs((0,))
    assert len({run.key for run in runs}) == len(runs) == 6
    monkeypatch.setattr(aliased_waves, "TEST", 64)
    for arm, memory in (("no memory", None), ("memory", "S4D")):
        run = next(run for run in runs if run.arm == arm)
        study = OmegaConf.merge(run.config.study, {"steps": 1, "train": 64})
        report = instantiate(study, _convert_="all")
        assert report["lr"] == claim.select["lr"][0]
        built = instantiate(OmegaConf.merge(study.net, {"memory": study.memory}))
        found = built.memory and type(built.memory.memory).__name__
        assert found == memory


@pytest.mark.parametrize(
    "change", [{"wavenumber": 8}, {"wavenumber": 0}, {"share": 1.0}, {"frames": 3}]
)
def test_what_cannot_be_is_refused(change):
    with pytest.raises(ValueError, match=r"0 < wavenumber < points / 2"):
        gap(None, **change)
