"""Windows of trajectories, as a network sees them: fewer points and frames, noisy, normalised."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.errors import DataError
from datamodules.pde.counts import check_count
from datamodules.pde.layouts import TrajectoryFiles
from datamodules.pde.torus import resample

BLOCK_VALUES = 2**22
"""Of a trajectory so many values are read at once where all of them are needed: it may not fit."""


@dataclass(frozen=True)
class Window:
    """Which frames of a trajectory a sample has.

    Attributes:
        history: frames that are given.
        horizon: frames that follow in training; None for all.
        rollout: frames that follow in validation and test; None for all.

    Raises:
        DataError: a count that is none.
    """

    history: int = 1
    horizon: int | None = 1
    rollout: int | None = None

    def __post_init__(self) -> None:
        check_count("data.window.history", self.history)
        check_count("data.window.horizon", self.horizon, optional=True)
        check_count("data.window.rollout", self.rollout, optional=True)

    @property
    def least(self) -> int:
        """How many frames trajectories need."""
        return self.history + max(self.horizon or 1, self.rollout or 1)


@dataclass(frozen=True)
class Sampling:
    """Which points and frames are left of what the files hold.

    Attributes:
        space_stride: one of so many points along every axis is left.
        time_stride: one of so many frames.
        method: `point` keeps the values at the points that are left; `spectral`, for periodic
            fields, first takes away the modes that these points cannot tell apart.
        refinements: divisors of `space_stride`: test trajectories are also seen at so many times
            the points of an axis, as networks that work at any resolution can.

    Raises:
        DataError: a stride that is no count, an unknown method, a refinement that does not divide.
    """

    space_stride: int = 1
    time_stride: int = 1
    method: Literal["point", "spectral"] = "point"
    refinements: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_count("data.sampling.space_stride", self.space_stride)
        check_count("data.sampling.time_stride", self.time_stride)
        if self.method not in ("point", "spectral"):
            raise DataError(f"data.sampling.method is point or spectral, got {self.method!r}.")
        several = isinstance(self.refinements, Sequence) and all(
            isinstance(n, int) and n > 1 and self.space_stride % n == 0 for n in self.refinements
        )
        if not several:
            raise DataError(
                "data.sampling.refinements are divisors of data.sampling.space_stride above 1, got "
                f"{self.refinements} and {self.space_stride}."
            )
        object.__setattr__(self, "refinements", tuple(self.refinements))

    @property
    def finer(self) -> dict[str, "Sampling"]:
        """At more points, by how many times as many: `2x`."""
        return {
            f"{n}x": replace(self, space_stride=self.space_stride // n, refinements=())
            for n in self.refinements
        }

    def frames(self, frames: int) -> int:
        """How many are left."""
        return math.ceil(frames / self.time_stride)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Points of every axis that are left."""
        return tuple(math.ceil(n / self.space_stride) for n in shape)

    def states(self, files: TrajectoryFiles, sample: int, first: int, count: int) -> Tensor:
        """float32 [count, C, *points], `first` counted in frames that are left."""
        step = self.time_stride
        frames = slice(first * step, (first + count - 1) * step + 1, step)
        return self._sampled(files.read(sample, frames, self._stride), files.shape)

    def given(self, files: TrajectoryFiles, sample: int) -> Tensor:
        """float32 [1, len(inputs), *points]: what a steady problem's solution depends on."""
        return self._sampled(files.read_input(sample, self._stride)[None], files.shape)

    def blocks(self, files: TrajectoryFiles, sample: int) -> Iterator[Tensor]:
        """All that is left of a sample's states, some consecutive frames at a time."""
        frames = self.frames(files.frames)
        count = max(1, BLOCK_VALUES // (len(files.channels) * math.prod(files.shape)))
        for first in range(0, frames, count):
            yield self.states(files, sample, first, min(count, frames - first))

    def coordinates(self, points: Tensor) -> Tensor:
        """Where the points are that are left of equally spaced ones along an axis."""
        if self.method == "point":
            return points[:: self.space_stride]
        (left,) = self.shape(points.shape)
        width = (points[1] - points[0]) * len(points) / left
        return points[0] + width * torch.arange(left, dtype=points.dtype)

    @property
    def _stride(self) -> int:
        return self.space_stride if self.method == "point" else 1

    def _sampled(self, field: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        if self.method == "point":
            return torch.from_numpy(field).float()
        return resample(torch.from_numpy(field).double(), self.shape(shape)).float()


@dataclass(frozen=True)
class Normaliser:
    """Mean and standard deviation of every channel over training samples, points and frames.

    Attributes:
        mean, std: float32 [C].
        axes: number of spatial axes.
    """

    mean: Tensor
    std: Tensor
    axes: int

    def __call__(self, field: Tensor) -> Tensor:
        """Fields [..., C, *points] to mean 0 and standard deviation 1."""
        return (field - self.along(self.mean, field)) / self.along(self.std, field)

    def inverse(self, field: Tensor) -> Tensor:
        """Normalised fields [..., C, *points] back to the equation's units."""
        return field * self.along(self.std, field) + self.along(self.mean, field)

    def along(self, values: Tensor, field: Tensor) -> Tensor:
        """[C] shaped to broadcast to [..., C, *points]."""
        return values.to(field.device).reshape(-1, *[1] * self.axes)


class Statistics:
    """Mean and variance, taken in one pass in float64.

    Args:
        axes: number of spatial axes.
    """

    def __init__(self, axes: int):
        self.axes = axes
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self.shift: Tensor | None = None

    def add(self, field: Tensor) -> None:
        """Count [T, C, *points]."""
        rows = field.double().movedim(1, 0).flatten(1)
        if self.shift is None:  # near the mean, so that squares do not cancel
            self.shift = rows.mean(dim=1, keepdim=True)
        rows = rows - self.shift
        self.count += rows.shape[1]
        self.sum = self.sum + rows.sum(dim=1)
        self.squares = self.squares + rows.square().sum(dim=1)

    def normaliser(self) -> Normaliser:
        """Of what was counted; a channel that never changes keeps its scale."""
        assert self.shift is not None
        assert isinstance(self.sum, Tensor)
        assert isinstance(self.squares, Tensor)
        mean = self.sum / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 0, std, 1.0)
        return Normaliser((mean + self.shift[:, 0]).float(), std.float(), self.axes)


NoiseAt = Literal["never", "training", "always"]


@dataclass(frozen=True)
class ObservationNoise:
    """White Gaussian noise on what is observed; a frame of a sample always bears the same.

    Attributes:
        std: standard deviation, in units of the training data's own in each channel; of several
            every sample bears one, in turn.
        given: when frames that are given, or inputs, bear it: `never`, in `training` alone, so
            that tests are of true fields, or `always`.
        target: when what is to be predicted does.
        seed: of the noise.
    """

    std: float | Sequence[float]
    given: str = "always"
    target: str = "never"
    seed: int = 0

    def __post_init__(self) -> None:
        several = tuple(self.std) if isinstance(self.std, Sequence) else (self.std,)
        if not several or not all(std >= 0 for std in several) or self.seed < 0:
            raise DataError(
                f"data.noise has a std and a seed of 0 or more, got {self.std} and {self.seed}."
            )
        object.__setattr__(self, "std", several)
        for name in ("given", "target"):
            if getattr(self, name) not in get_args(NoiseAt):
                raise DataError(
                    f"data.noise.{name} is {', '.join(get_args(NoiseAt))}, got "
                    f"{getattr(self, name)!r}."
                )

    def on(self, what: Literal["given", "target"], training: bool) -> bool:
        """Whether given frames or targets bear it."""
        return getattr(self, what) in (("training", "always") if training else ("always",))

    def __call__(self, field: Tensor, normaliser: Normaliser, sample: int, first: int) -> Tensor:
        """[T, C, *points] with noise, its frames numbered from `first`."""
        noise = [
            np.random.default_rng([self.seed, sample, first + i]).standard_normal(
                field.shape[1:], np.float32
            )
            for i in range(len(field))
        ]
        assert isinstance(self.std, Sequence)  # since it was checked
        std = self.std[sample % len(self.std)]
        scale = std * normaliser.along(normaliser.std, field)
        return field + scale * torch.from_numpy(np.stack(noise))


class Windows(Dataset):
    """Windows of `history` frames that are given and `horizon` frames that follow.

    An item is {"input": [history, C, *points], "target": [horizon, C, *points], "sample": its
    number in the files, "first": the first frame's number}, float32. Of a steady problem it is
    {"input": [1, len(inputs), *points], "target": [1, C, *points], …}.

    Args:
        files: where the trajectories are.
        samples: which of them.
        sampling: which of their points and frames.
        history: frames that are given.
        horizon: frames that follow; None for all, and then a sample has one window.
        states: normaliser of the states.
        given: normaliser of a steady problem's inputs.
        normalise: items are normalised.
        noise: on what is observed.
        training: whether these are for training, for `noise`.
    """

    def __init__(
        self,
        files: TrajectoryFiles,
        samples: Sequence[int],
        sampling: Sampling,
        history: int,
        horizon: int | None,
        states: Normaliser,
        given: Normaliser | None,
        normalise: bool,
        noise: ObservationNoise | None,
        training: bool,
    ):
        self.files, self.samples, self.sampling = files, samples, sampling
        frames = sampling.frames(files.frames)
        self.history, self.horizon = history, horizon or frames - history
        self.windows = 1 if horizon is None or files.inputs else frames - history - horizon + 1
        self.states, self.given = states, given
        self.normalise, self.noise, self.training = normalise, noise, training

    def __len__(self) -> int:
        return len(self.samples) * self.windows

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        place, first = divmod(index, self.windows)
        sample = self.samples[place]
        if self.files.inputs:
            assert self.given is not None
            source, wanted = self.given, self.sampling.states(self.files, sample, 0, 1)
            given = self.sampling.given(self.files, sample)
        else:
            count = self.history + self.horizon
            frames = self.sampling.states(self.files, sample, first, count)
            given, wanted = frames[: self.history], frames[self.history :]
            source = self.states
        if self.noise is not None:
            if self.noise.on("given", self.training):
                given = self.noise(given, source, sample, first)
            if self.noise.on("target", self.training):
                wanted = self.noise(wanted, self.states, sample, first + self.history)
        if self.normalise:
            given, wanted = source(given), self.states(wanted)
        return {"input": given, "target": wanted, "sample": sample, "first": first}
