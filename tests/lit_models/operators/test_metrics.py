"""Metrics of trajectories against numpy, Fourier modes, symmetries and broken predictions."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing import start_processes
from torchmetrics import MetricCollection

from lit_models.operators.metrics import (
    RMSE,
    VRMSE,
    ConservationDrift,
    CorrelationTime,
    MaxError,
    RelativeL2,
    SpectralError,
    StabilityTime,
    StepwiseMetric,
    TrajectoryMetric,
)
from tests import loopback

POINTS = ((12,), (11,), (6, 9), (9, 6), (4, 5, 6))
Make = Callable[[], TrajectoryMetric]
METRICS: dict[str, Make] = {
    "relative_l2": RelativeL2,
    "relative_l2_per_step": lambda: RelativeL2(per_step=True),
    "vrmse": VRMSE,
    "vrmse_per_step": lambda: VRMSE(per_step=True),
    "rmse": RMSE,
    "rmse_per_step": lambda: RMSE(per_step=True),
    "max_error": MaxError,
    "max_error_per_step": lambda: MaxError(per_step=True),
    "spectral": lambda: SpectralError(edges=(1, 3)),
    "spectral_per_step": lambda: SpectralError(per_step=True, edges=(1, 3)),
    "drift_of_mean": lambda: ConservationDrift("mean"),
    "drift_of_energy": lambda: ConservationDrift("energy", channels=[1]),
    "stability": lambda: StabilityTime(0.4),
    "correlation": lambda: CorrelationTime(0.9),
}


def trajectories(
    *points: int, samples: int = 7, steps: int = 5, channels: int = 2
) -> tuple[Tensor, Tensor]:
    """float32 predictions whose error grows with time and from sample to sample, and targets."""
    generator = torch.Generator().manual_seed(len(points))
    shape = (samples, steps, channels, *points)
    target = 0.3 + torch.randn(shape, generator=generator)
    growth = torch.linspace(0.1, 1, steps).reshape(-1, *[1] * (1 + len(points)))
    sample = torch.linspace(0.2, 1.5, samples).reshape(-1, *[1] * (2 + len(points)))
    return target + growth * sample * torch.randn(shape, generator=generator), target


def value(make: Make, preds: Tensor, target: Tensor) -> Tensor:
    metric = make()
    metric.update(preds, target)
    return metric.compute()


def by_numpy(name: str, preds: Tensor, target: Tensor) -> np.ndarray:
    """One sample, step and channel at a time, from the definitions; [B, T, ...] or [B]."""
    samples, steps, channels = target.shape[:3]
    rows = []
    for b in range(samples):
        u, v = preds[b].double().numpy(), target[b].double().numpy()
        if name.startswith("drift_of_mean"):
            scale = np.sqrt(sum(np.mean(v[0, c] ** 2) for c in range(channels)))
            moved = [[u[t, c].mean() - v[0, c].mean() for c in range(2)] for t in range(steps)]
            rows.append(max(np.hypot(*m) for m in moved) / scale)
            continue
        if name.startswith("drift_of_energy"):
            start = np.mean(v[0, 1] ** 2)
            rows.append(max(abs(np.mean(u[t, 1] ** 2) - start) for t in range(steps)) / start)
            continue
        every = []
        for t in range(steps):
            x, y = u[t], v[t]
            error, relative = x - y, np.linalg.norm(x - y) / np.linalg.norm(y)
            pairs = [(x[c].ravel(), y[c].ravel()) for c in range(channels)]
            if name.startswith("relative_l2"):
                every.append(relative)
            elif name.startswith("vrmse"):
                scaled = [np.mean((a - d) ** 2) / (np.var(d) + 1e-7) for a, d in pairs]
                every.append(np.mean(np.sqrt(scaled)))
            elif name.startswith("rmse"):
                every.append(np.mean([np.sqrt(np.mean((a - d) ** 2)) for a, d in pairs]))
            elif name.startswith("max_error"):
                every.append(np.abs(error).max())
            elif name.startswith("spectral"):
                sizes = y.shape[1:]
                power = np.abs(np.fft.fftn(error, axes=range(1, error.ndim))) ** 2
                waves = [[min(i, n - i) for i in range(n)] for n in sizes]
                k = np.sqrt(sum(np.square(g) for g in np.meshgrid(*waves, indexing="ij")))
                bands = (k < 1, (k >= 1) & (k < 3), k >= 3)
                total = math.prod(sizes) * np.sum(y**2)
                every.append([np.sqrt(np.sum(power[:, band]) / total) for band in bands])
            elif name == "stability":
                every.append(relative > 0.4)
            else:
                every.append(np.mean([np.corrcoef(a, d)[0, 1] for a, d in pairs]) < 0.9)
        if name in ("stability", "correlation"):
            every = every.index(True) if True in every else steps
        rows.append(every)
    return np.array(rows)


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("name", METRICS)
def test_metrics_equal_numpy(name: str, points: tuple[int, ...]) -> None:
    preds, target = trajectories(*points)
    rows = by_numpy(name, preds, target)
    if name in ("stability", "correlation"):
        assert len(set(rows.tolist())) > 2  # the threshold is met at various steps
    pool = np.max if name.startswith("max_error") else np.mean
    stepwise = isinstance(METRICS[name](), StepwiseMetric)
    keep_steps = name.endswith("per_step") or not stepwise
    expected = pool(rows, axis=0 if keep_steps else (0, 1))
    got = value(METRICS[name], preds, target)
    assert got.dtype == torch.float64
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_unequal_batches_and_merged_metrics_equal_one_batch(name: str) -> None:
    preds, target = trajectories(6, 5)
    parts = [slice(0, 1), slice(1, 5), slice(5, 7)]
    one, several, other = METRICS[name](), METRICS[name](), METRICS[name]()
    one.update(preds, target)
    for metric, part in zip((several, several, other), parts, strict=True):
        of_batch = metric(preds[part], target[part])
        torch.testing.assert_close(of_batch, value(METRICS[name], preds[part], target[part]))
    several.merge_state(other)
    torch.testing.assert_close(several.compute(), one.compute(), rtol=1e-13, atol=0)
    several.reset()
    several.update(preds[:2], target[:2])
    expected = value(METRICS[name], preds[:2], target[:2])
    torch.testing.assert_close(several.compute(), expected, rtol=0, atol=0)


def values_of_one_process(parts: list[slice]) -> list[Tensor]:
    preds, target = trajectories(6, 5)
    values = []
    for make in METRICS.values():
        metric = make()
        for part in parts:
            metric.update(preds[part], target[part])
        values.append(metric.compute())
    return values


def check_process(rank: int, store: str) -> None:
    torch.set_num_threads(1)  # a forked process cannot use its parent's thread pool
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    parts = [slice(0, 1), slice(1, 5), slice(5, 7)]
    both_work = values_of_one_process(parts[rank::2])
    one_idles = values_of_one_process(parts if rank == 0 else [])
    torch.distributed.destroy_process_group()
    expected = values_of_one_process(parts)
    torch.testing.assert_close(both_work, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(one_idles, expected, rtol=1e-13, atol=0)


@loopback.needed
def test_two_processes_equal_one(tmp_path: Path) -> None:
    start_processes(check_process, (str(tmp_path / "store"),), nprocs=2, start_method="fork")


@pytest.mark.parametrize("points", POINTS)
def test_squares_of_the_bands_add_up_to_the_relative_error(points: tuple[int, ...]) -> None:
    preds, target = (u[:1] for u in trajectories(*points))
    bands = value(lambda: SpectralError(per_step=True, edges=(1, 2, 4)), preds, target)
    assert bands.shape == (5, 4)
    whole = value(lambda: RelativeL2(per_step=True), preds, target)
    torch.testing.assert_close(bands.square().sum(1).sqrt(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("points", "wave", "band"),
    [
        ((64,), (0,), 0),
        ((64,), (4,), 0),
        ((64,), (5,), 1),
        ((64,), (12,), 1),
        ((64,), (13,), 2),
        ((64,), (32,), 2),  # Nyquist
        ((49, 8), (5, 0), 1),
        ((49, 8), (-13, 0), 2),
        ((16, 16), (3, 4), 1),  # |k| = 5
        ((16, 16), (3, -3), 0),
        ((16, 16), (-4, 4), 1),
        ((8, 28, 32), (3, 4, -12), 2),  # |k| = 13
        ((8, 28, 32), (3, 4, 11), 1),
    ],
)
def test_a_wave_is_in_one_band(points: tuple[int, ...], wave: tuple[int, ...], band: int) -> None:
    axes = [2 * math.pi / n * torch.arange(n, dtype=torch.float64) for n in points]
    x = torch.meshgrid(*axes, indexing="ij")
    error = torch.cos(sum(n * axis for n, axis in zip(wave, x, strict=True)))
    target = 2 * torch.cos(x[0]).reshape(1, 1, 1, *points)
    share = math.sqrt(error.square().mean() / 2)  # the mean square of the target is 2
    got = value(SpectralError, target + 0.01 * error, target)
    expected = torch.zeros(3, dtype=torch.float64)
    expected[band] = 0.01 * share
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_do_not_change_with_a_shift_of_both_fields(name: str) -> None:
    preds, target = trajectories(6, 5)
    moved = [u.roll((2, 3), dims=(3, 4)) for u in (preds, target)]
    expected = value(METRICS[name], preds, target)
    torch.testing.assert_close(value(METRICS[name], *moved), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", METRICS)
def test_errors_scale_or_do_not(name: str) -> None:
    preds, target = trajectories(6, 5)
    factor = 4 if name.startswith(("rmse", "max_error")) else 1
    # ε of the variance-scaled error does not scale.
    rtol = 1e-6 if name.startswith("vrmse") else 1e-12
    expected = factor * value(METRICS[name], preds, target)
    scaled = value(METRICS[name], -4 * preds, -4 * target)
    torch.testing.assert_close(scaled, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", METRICS)
def test_an_exact_prediction(name: str) -> None:
    _, target = trajectories(6, 5)
    if name.startswith("drift"):
        target = target[:, :1].expand(-1, 5, -1, -1, -1)
    got = value(METRICS[name], target, target)
    best = 5 if name in ("stability", "correlation") else 0
    assert (got == best).all()


def test_the_mean_as_prediction_has_variance_scaled_error_one() -> None:
    _, target = trajectories(6, 5)
    preds = target.double().mean(dim=(3, 4), keepdim=True).expand_as(target)
    assert value(VRMSE, preds, target.double()).item() == pytest.approx(1, rel=1e-6)
    assert value(CorrelationTime, preds, target.double()) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e200])
@pytest.mark.parametrize("name", METRICS)
def test_a_broken_prediction_is_infinitely_wrong(name: str, bad: float) -> None:
    preds, target = trajectories(6, 5)
    preds = preds.double()
    preds[1, 3, 1, 2, 2] = bad  # step 3 of 5, of one sample
    got = value(METRICS[name], preds, target)
    if name in ("stability", "correlation"):
        times = by_numpy(name, *trajectories(6, 5))
        assert times[1] > 3
        times[1] = 3
        assert got.item() == pytest.approx(times.mean())
    elif name.startswith("max_error") and bad == 1e200:
        assert got.max() == 1e200
    elif name.endswith("per_step"):
        others = [0, 1, 2, 4]
        clean = value(METRICS[name], *trajectories(6, 5))
        assert got[3].isposinf().all()
        torch.testing.assert_close(got[others], clean[others], rtol=1e-12, atol=0)
    else:
        assert got.isposinf().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_summed_in_double(dtype: torch.dtype) -> None:
    preds, target = (u.to(dtype) for u in trajectories(30, 40))
    for make in METRICS.values():
        got, expected = value(make, preds, target), value(make, preds.double(), target.double())
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", METRICS)
def test_a_target_of_zero_gives_no_nan(name: str) -> None:
    preds, target = trajectories(6, 5)
    zero = torch.zeros_like(target)
    exact, wrong = value(METRICS[name], zero, zero), value(METRICS[name], preds, zero)
    if name == "stability":
        assert (exact, wrong) == (5, 0)
    elif name == "correlation":
        assert (exact, wrong) == (5, 5)
    else:
        assert (exact == 0).all()
        absolute = name.startswith(("rmse", "max_error", "vrmse"))
        assert (wrong.isfinite() & (wrong > 0) if absolute else wrong.isposinf()).all()


def test_channels_at_rest_do_not_count_in_the_correlation() -> None:
    preds, target = (u.double() for u in trajectories(7, channels=1))
    rest = torch.full_like(target, 0.1)
    assert (rest.mean(dim=3) != 0.1).all()  # rounding must not pass for fluctuations
    alone = value(CorrelationTime, preds, target)
    assert value(CorrelationTime, torch.cat([preds, preds], 2), torch.cat([target, rest], 2)) == (
        alone
    )
    assert value(CorrelationTime, preds, rest) == 5
    assert value(CorrelationTime, rest, target) == 0
    assert value(lambda: CorrelationTime(0.0), rest, target) == 5
    preds[:, 2] = torch.nan
    assert value(CorrelationTime, preds, rest) == 2


def test_correlation_ignores_scale_and_offset_of_a_channel() -> None:
    preds, target = trajectories(6, 5)
    expected = value(CorrelationTime, preds, target)
    assert 0 < expected < 5
    factors = torch.tensor([3.0, 0.01]).reshape(2, 1, 1)
    assert value(CorrelationTime, factors * preds + 7, target) == expected
    assert value(CorrelationTime, -preds, target) == 0


def test_drift_by_hand() -> None:
    target = torch.zeros(1, 3, 2, 4)
    target[:, :, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    preds = target.clone()
    preds[:, 1] += 0.5  # back again at step 2
    mean, energy = ConservationDrift("mean"), ConservationDrift("energy")
    for metric in (mean, energy):
        metric.update(preds, target)
    assert mean.compute().item() == pytest.approx(math.hypot(0.5, 0.5))
    assert energy.compute().item() == pytest.approx(0.25 + 0.25)
    # What the target does later is of no account; what the prediction does at once is.
    target[:, 1:] = 9
    assert value(lambda: ConservationDrift("mean"), preds, target) == mean.compute()
    preds = preds[:, :1] + 0.25
    late = value(lambda: ConservationDrift("mean", channels=(0,)), preds, target[:, :1])
    assert late.item() == pytest.approx(0.25)


def test_recovery_does_not_undo_instability() -> None:
    target = torch.ones(3, 4, 1, 8)
    preds = target.clone()
    preds[0, 1] = 1.5
    preds[1, 3] = torch.nan
    times = [value(lambda: StabilityTime(0.2), preds[i : i + 1], target[:1]) for i in range(3)]
    assert times == [1, 3, 4]
    assert value(lambda: StabilityTime(0.2), preds, target).item() == pytest.approx(8 / 3)
    assert value(lambda: StabilityTime(0.5), preds, target).item() == pytest.approx(11 / 3)


def test_trajectories_of_several_lengths() -> None:
    preds, target = trajectories(8, samples=4, steps=4)
    mean, apart = RelativeL2(), RelativeL2(per_step=True)
    for metric in (mean, apart):
        metric.update(preds[:2], target[:2])
        metric.update(preds[2:, :2], target[2:, :2])
    rows = by_numpy("relative_l2", preds, target)
    expected = np.mean([*rows[:2].mean(1), *rows[2:, :2].mean(1)])
    assert mean.compute().item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="per_step=False"):
        apart.compute()


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_without_data_is_nan(name: str) -> None:
    assert METRICS[name]().compute().isnan()


def test_a_collection_keeps_metrics_apart_that_agree_at_first() -> None:
    metrics = MetricCollection(
        {"lax": StabilityTime(0.9), "strict": StabilityTime(0.1)}, compute_groups=False
    )
    target = torch.ones(1, 4, 1, 8)
    metrics.update(target, target)
    metrics.update(1.5 * target, target)
    assert metrics.compute() == {"lax": 4, "strict": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RMSE().update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 5)), "one shape"),
        (lambda: RMSE().update(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)), "three spatial axes"),
        (lambda: RMSE().update(torch.zeros(0, 2, 1, 4), torch.zeros(0, 2, 1, 4)), "nothing empty"),
        (lambda: RMSE().update(torch.zeros(1, 2, 1, 4) * 1j, torch.zeros(1, 2, 1, 4)), "real"),
        (
            lambda: RMSE().update(torch.zeros(1, 2, 1, 4), torch.full((1, 2, 1, 4), torch.nan)),
            "finite targets",
        ),
        (lambda: SpectralError(edges=(5, 5)), "increase"),
        (lambda: SpectralError(edges=(0, 5)), "above 0"),
        (lambda: ConservationDrift("momentum"), "'mean' or 'energy'"),
        (lambda: ConservationDrift("mean", channels=[]), "at least one channel"),
        (
            lambda: ConservationDrift("mean", channels=[0, 2]).update(
                torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4)
            ),
            r"channels below 2, as fields have, got \[0, 2\]",
        ),
    ],
)
def test_wrong_inputs_are_named(call: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
