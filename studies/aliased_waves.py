"""Two waves that a grid cannot tell apart: what one frame leaves unknown, and two frames do not.

A linear counter-example to operators of the last frame alone, after Buitrago Ruiz, Marwah, Gu and
Risteski, "On the Benefits of Memory for Modeling Time-Dependent PDEs", arXiv:2409.02313; the system
and the bound are ours. The Airy equation u_t = −u_xxx on [0, 2π) turns e^{ikx} by e^{ik³t}. Of

    u(x, t) = Re[a e^{i(kx + k³t)} + b e^{i((N + k)x + (N + k)³t)}]

a grid of N points shows Re[y_t e^{ikx}] alone: y_t = g₁^t a + g₂^t b after t frames of length τ,
with g₁ = e^{ik³τ} and g₂ = e^{i(N + k)³τ}. Let a and b be independent circular complex Gaussians of
variance p and 1 − p. Then (y_t, y_{t+1}) is jointly circular Gaussian, alike for all t:
E|y|² = 1 and E[y_{t+1} ȳ_t] = m = g₁p + g₂(1 − p). Its conditional mean, the best of all functions
of the last frame, is m y_t, and what is left is

    E|y_{t+1} − m y_t|² = 1 − |m|² = p(1 − p) |g₁ − g₂|².

Two frames leave nothing: both waves obey y_{t+2} = (g₁ + g₂) y_{t+1} − g₁g₂ y_t.

Shapes: B trajectories, T frames, N points.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 32  # trajectories a training step
VALIDATION, TEST = 1024, 8192  # trajectories
TAPS = {"one_frame": 1, "two_frames": 2, "three_frames": 3}


def factors(points: int, wavenumber: int, interval: float) -> tuple[complex, complex]:
    """g₁ and g₂: by what a frame of length `interval` turns either wave's coefficient."""
    waves = np.array([wavenumber, points + wavenumber])
    g1, g2 = np.exp(1j * interval * waves.astype(float) ** 3)
    return complex(g1), complex(g2)


def markov_bound(points: int, wavenumber: int, interval: float, share: float) -> float:
    """√(p(1 − p)) |g₁ − g₂|, p = `share`: root mean square error of the best prediction from one
    frame over the root mean square of the fields, the same at every frame.
    """
    g1, g2 = factors(points, wavenumber, interval)
    return math.sqrt(share * (1 - share)) * abs(g1 - g2)


def amplitudes(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Of both waves, complex [B, 2], of variance `share` and 1 − `share`."""
    normal = rng.standard_normal((count, 2, 2)) @ [1, 1j] / math.sqrt(2)
    return normal * np.sqrt([share, 1 - share])


def trajectories(
    drawn: np.ndarray, *, points: int, wavenumber: int, interval: float, frames: int, grid: int
) -> np.ndarray:
    """Both waves together, exact: [B, T, grid], float64.

    Args:
        drawn: amplitudes [B, 2].
        points: N; the waves have the wavenumbers `wavenumber` and N + `wavenumber`.
        interval: time τ between frames.
        frames: T.
        grid: equidistant points that see them; N of them see one wave.
    """
    x, t = 2 * np.pi * np.arange(grid) / grid, np.arange(frames)
    waves = np.array([wavenumber, points + wavenumber])
    turned = np.array(factors(points, wavenumber, interval)) ** t[:, None]
    return np.einsum("bw,tw,wx->btx", drawn, turned, np.exp(1j * waves[:, None] * x)).real


def windows(fields: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """All runs of `frames` frames, [rows, frames·N], and what follows each, [rows, N]."""
    seen = np.lib.stride_tricks.sliding_window_view(fields[:, :-1], frames, axis=1)
    rows = seen.swapaxes(-1, -2).reshape(-1, frames * fields.shape[-1])
    return rows, fields[:, frames:].reshape(len(rows), -1)


def linear_error(train: np.ndarray, test: np.ndarray, frames: int) -> float:
    """Relative error on `test` of the linear predictor of the last frames that fits `train` best.

    Fields are [B, T, N]; of the many predictors that fit alike, the smallest is taken.
    """
    # Fields of one wave have rank two: what is below that is rounding, and no direction to fit.
    weight, *_ = np.linalg.lstsq(*windows(train, frames), rcond=1e-9)
    given, following = windows(test, frames)
    return float(relative_error(given @ weight, following))


def relative_error(
    predicted: np.ndarray, true: np.ndarray, axis: tuple[int, ...] | None = None
) -> np.ndarray:
    """√(Σ|u − v|² / Σ|v|²), sums over `axis`: pooled over trajectories, as the bound is."""
    return np.sqrt(np.square(predicted - true).sum(axis) / np.square(true).sum(axis))


def fit(net: nn.Module, fields: Tensor, *, steps: int, lr: float) -> None:
    """Train a network of frames [B, T, 1, N] to predict each one's successor from the true past.

    Mean squared error, AdamW and a cosine to zero; batches are drawn from torch's global generator.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = fields[torch.randint(len(fields), (BATCH,))]
        loss = F.mse_loss(net(batch[:, :-1])[0], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def predict(net: nn.Module, fields: np.ndarray) -> np.ndarray:
    """The successors that a network expects of all frames but the last, [B, T − 1, N]."""
    parts = torch.from_numpy(fields[:, :-1]).float().unsqueeze(2).split(1024)
    return torch.cat([net(part)[0] for part in parts]).squeeze(2).double().numpy()


def markov_gap(
    net: Mapping[str, Any],
    memory: Mapping[str, Any] | None,
    *,
    points: int,
    wavenumber: int,
    interval: float,
    share: float,
    frames: int,
    train: int,
    steps: int,
    lr: float,
    seed: int,
) -> dict[str, Any]:
    """Train a network on aliased waves, and set its error against the bound of the last frame.

    All errors are root mean squares over those of the true fields, of one step from true frames.

    Args:
        net: `_target_` and arguments of a network that maps frames [B, T, 1, N] to those that
            follow each and a state; made here, after the seed is set.
        memory: its argument `memory`, a config likewise; None for a network of the last frame.
        points: N.
        wavenumber: k, with 0 < k < N/2.
        interval: τ.
        share: p, the slow wave's share of the variance, between 0 and 1.
        frames: T of a trajectory, the predicted last included, at least 4.
        train: trajectories to train on.
        steps: of the optimiser.
        lr: its first learning rate.
        seed: of data, weights and batches.

    Returns:
        "test", floats: bound; error (of the network where two frames or more were given),
        over_bound (that over the bound), first_over_bound (where one frame was given);
        one_frame_over_bound, two_frames_error, three_frames_error (of least squares from so many
        frames); parameters. "selected": the network's error on other trajectories. "curves": lists
        by number of frames given. The same seed gives the same numbers on the same machine.

    Raises:
        ValueError: there is no such wave on the grid, no two waves, or too few frames.
    """
    if not (0 < wavenumber < points / 2 and 0 < share < 1 and frames >= 4):
        raise ValueError(
            f"expected 0 < wavenumber < points / 2, 0 < share < 1 and at least 4 frames, got "
            f"{wavenumber}, {points}, {share} and {frames}: change what is out of range"
        )
    shape = {"points": points, "wavenumber": wavenumber, "interval": interval}
    counts = {"train": train, "validation": VALIDATION, "test": TEST}
    fields = {
        split: trajectories(
            amplitudes(count, share, np.random.default_rng([seed, index])),
            **shape,
            frames=frames,
            grid=points,
        )
        for index, (split, count) in enumerate(counts.items())
    }
    bound = markov_bound(**shape, share=share)

    torch.manual_seed(seed)
    model = instantiate({**net, "memory": memory})
    fit(model, torch.from_numpy(fields["train"]).float().unsqueeze(2), steps=steps, lr=lr)
    # The successor of the first frame is nobody's: even a memory has seen one frame there.
    after = {split: predict(model, fields[split]) for split in ("validation", "test")}
    errors = {s: float(relative_error(p[:, 1:], fields[s][:, 2:])) for s, p in after.items()}
    by_frame = relative_error(after["test"], fields["test"][:, 1:], axis=(0, 2)).tolist()

    linear = {
        name: linear_error(fields["train"], fields["test"], count) for name, count in TAPS.items()
    }
    test = {
        "bound": bound,
        "error": errors["test"],
        "over_bound": errors["test"] / bound,
        "first_over_bound": by_frame[0] / bound,
        "one_frame_over_bound": linear["one_frame"] / bound,
        "two_frames_error": linear["two_frames"],
        "three_frames_error": linear["three_frames"],
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }
    return {
        "test": test,
        "selected": {"metric": "error", "value": errors["validation"]},
        "lr": lr,
        "curves": {
            "frames given": list(range(1, frames)),
            "error": by_frame,
            "bound of the last frame alone": [bound] * (frames - 1),
        },
    }
