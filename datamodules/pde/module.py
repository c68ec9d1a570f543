"""Trajectories of a differential equation, solved here or read from files, as windows."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from datamodules.base import SPLITS, DataModule
from datamodules.batching import BudgetLoader
from datamodules.cache_folder import ensure
from datamodules.errors import DataError
from datamodules.pde.counts import check_count
from datamodules.pde.equation import Equation, Steady, either
from datamodules.pde.generation import Generation, Recipe
from datamodules.pde.layouts import TrajectoryFiles
from datamodules.pde.releases import check_official
from datamodules.pde.views import (
    Normaliser,
    ObservationNoise,
    Sampling,
    Statistics,
    Window,
    Windows,
)

FIRST_BYTES = 2**20

SOURCES = ("generated", "official", "file")

Group = TypeVar("Group", Generation, Window, Sampling)


class PDEDataModule(DataModule):
    """Windows of trajectories: of `history` frames that are given and `horizon` that follow.

    Test trajectories come first in the files, then those for validation, then those for training,
    so that more of the latter leave the others as they are.

    Args:
        equation: what is solved where `source` is `generated`.
        samples: trajectories for training, validation and test.
        source: `generated`; `official` for files that PDEBench or The Well published, see
            `check_official`; `file` for any others in one of their layouts.
        data_dir: where files are.
        file: name below `data_dir` of a file, or of a folder of them. All three splits are cut from
            it; The Well's own are three folders.
        cache_dir: folder to write to.
        generate: when states are saved, from which seed, and on what they are solved; like the next
            two, None for its defaults.
        window: how many frames are given and follow.
        sampling: which points and frames are left of what files hold.
        noise: on what is observed, in training, validation and test; None for none.
        normalise: windows are normalised; `normaliser.inverse` takes them back.
        limit: at most so many trajectories a split, evenly spaced; for smoke runs.
        batch_size, num_workers, shuffle_seed: see DataModule.

    Attributes:
        normaliser: of the states, from training trajectories; known after `setup()`.
        input_normaliser: of a steady problem's inputs, else None.
        channels, inputs: names of the fields.
        coordinates: float64, one per axis: where the points are, as far as the equation says.

    Raises:
        DataError: arguments that do not fit each other or the equation, files that cannot be read,
            hold too few samples or numbers that are not finite, a solution that is not to be
            trusted.
    """

    def __init__(
        self,
        equation: Equation | None = None,
        samples: Sequence[int] = (64, 16, 16),
        source: str = "generated",
        data_dir: str | Path | None = None,
        file: str | None = None,
        cache_dir: str | Path = "data",
        generate: Generation | None = None,
        window: Window | None = None,
        sampling: Sampling | None = None,
        noise: ObservationNoise | None = None,
        normalise: bool = True,
        limit: int | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        shuffle_seed: int = 0,
    ):
        super().__init__(batch_size, num_workers, shuffle_seed)
        if source not in SOURCES or (source == "generated" and equation is None):
            raise DataError(
                "data.source is generated, with an equation, or official or file, with a file; got "
                f"{source!r}."
            )
        if (source == "generated") is (file is not None) or (file and data_dir is None):
            raise DataError(
                f"data.source={source if source != 'generated' else 'file'} needs data.data_dir "
                "and data.file, generated data have none."
            )
        several = isinstance(samples, Sequence) and len(samples) == len(SPLITS)
        if not several or not all(isinstance(n, int) and n >= 1 for n in samples):
            raise DataError(
                f"data.samples are three positive numbers (train, validation, test), got {samples}."
            )
        check_count("data.limit", limit, optional=True)
        self.generate = _group("data.generate", generate, Generation)
        self.window = _group("data.window", window, Window)
        self.sampling = _group("data.sampling", sampling, Sampling)
        if noise is not None and not isinstance(noise, ObservationNoise):
            raise DataError(
                "data.noise is null or a datamodules.pde.views.ObservationNoise with its std, got "
                f"{noise!r}."
            )
        spectral = self.sampling.method == "spectral"
        if spectral and equation is not None and not equation.periodic:
            raise DataError(
                f"data.sampling.method=spectral is for periodic fields, {type(equation).__name__}'s"
                " are not: set data.sampling.method=point."
            )
        self.equation, self.samples, self.limit = equation, tuple(samples), limit
        self.source_used, self.file = source, file
        self.cache_dir = Path(cache_dir).expanduser()
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.noise, self.normalise = noise, normalise
        self.refined: dict[str, Windows] = {}
        if source == "generated":
            assert equation is not None  # as was checked above
            self._check_points(equation.shape)
        self._paths: list[Path] | None = None
        self._files: TrajectoryFiles | None = None
        self.normaliser: Normaliser | None = None
        self.input_normaliser: Normaliser | None = None

    @property
    def task(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The equation's name, or the file's."""
        return type(self.equation).__name__ if self.file is None else Path(self.file).stem

    @property
    def times(self) -> tuple[float, ...]:
        """When states of the equation are saved; a steady problem has no time."""
        return () if isinstance(self.equation, Steady) else self.generate.times

    @property
    def recipe(self) -> Recipe:
        """What is generated."""
        assert self.equation is not None
        return Recipe(self.equation, self.times, sum(self.samples), self.generate.seed)

    def prepare_data(self) -> None:
        """Solve what is not solved yet; called by one process a machine."""
        if self.times:
            self._check_frames(len(self.times))
        self.paths()

    def paths(self) -> list[Path]:
        """The files with the trajectories; those of `generated` are made where they are missing."""
        if self._paths is None:  # checking a large file takes as long as reading it
            self._paths = self._find()
        return self._paths

    def _find(self) -> list[Path]:
        if self.source_used == "generated":
            how = self.generate
            plan = self.recipe.plan(self.cache_dir, how.processes, how.device)
            return [ensure(plan) / "data.hdf5"]
        assert self.data_dir is not None
        assert self.file is not None
        path = self.data_dir / self.file
        found = sorted(path.glob("*.h*5")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise DataError(f"There is no HDF5 file at {path}: set data.data_dir and data.file.")
        if self.source_used == "official":
            check_official(found, self.cache_dir / "pde" / "checked")
        return found

    def setup(self, stage: str | None = None) -> None:
        """Open the files, check what is used of them, and take the training data's statistics.

        Raises:
            DataError: as the class says; of values that are not finite, before any training.
        """
        if self._files is not None:
            return
        files = TrajectoryFiles(self.paths())
        if sum(self.samples) > len(files):
            raise DataError(
                f"{self.task} has {len(files)} trajectories, data.samples asks for {self.samples}."
            )
        self._check_points(files.shape)
        if not files.inputs:
            self._check_frames(files.frames)
        chosen = self._split()
        axes = len(files.shape)
        states, given = Statistics(axes), Statistics(axes)
        finer = self.sampling.finer
        for split, samples in chosen.items():
            seen = [self.sampling, *(finer.values() if split == "test" else ())]
            for sample, sampling in itertools.product(samples, seen):
                for block in sampling.blocks(files, sample):
                    _check_finite(block, files, sample, split)
                    if split == "train":
                        states.add(block)
                if files.inputs:
                    field = sampling.given(files, sample)
                    _check_finite(field, files, sample, split)
                    if split == "train":
                        given.add(field)
        normaliser = self.normaliser = states.normaliser()
        self.input_normaliser = given.normaliser() if files.inputs else None

        def windows(split: str, sampling: Sampling) -> Windows:
            return Windows(
                files,
                chosen[split],
                sampling,
                self.window.history,
                self.window.horizon if split == "train" else self.window.rollout,
                normaliser,
                self.input_normaliser,
                self.normalise,
                self.noise,
                training=split == "train",
            )

        for split in SPLITS:
            setattr(self, f"{split}_dataset", windows(split, self.sampling))
        self.refined = {name: windows("test", sampling) for name, sampling in finer.items()}
        self.channels, self.inputs, self._files = files.channels, files.inputs, files

    def test_dataloader(self) -> BudgetLoader | list[BudgetLoader]:
        """Test batches; with refinements a list, those at more points after those like training."""
        loader = self._loader(self.test_dataset, shuffle=False)
        if not self.refined:
            return loader
        return [loader, *(self._loader(x, shuffle=False) for x in self.refined.values())]

    @property
    def coordinates(self) -> list[Tensor]:
        """float64, one per axis: where the points are that are left."""
        if self.source_used != "generated":
            raise DataError(
                f"data.source={self.source_used} does not say where points are: the file's "
                "documentation does."
            )
        assert self.equation is not None
        return [self.sampling.coordinates(x) for x in self.equation.coordinates]

    @property
    def fingerprint(self) -> str:
        """12 hex digits, equal for equal trajectories seen in the same way."""
        digest = hashlib.sha256()
        for path in self.paths():
            if self.source_used == "generated":
                meta = json.loads((path.parent / "meta.json").read_text())
                digest.update(meta["sha256"][path.name].encode())
                continue
            with path.open("rb") as file:  # whole, a large set would take minutes
                digest.update(f"{path.stat().st_size}".encode() + file.read(FIRST_BYTES))
        points = asdict(self.sampling)
        seen = [self.samples, self.limit, *asdict(self.window).values(), points.pop("refinements")]
        seen += [points, self.noise and asdict(self.noise), self.normalise]
        digest.update(json.dumps(seen).encode())
        return digest.hexdigest()[:12]

    def _check_frames(self, frames: int) -> None:
        frames = self.sampling.frames(frames)
        if self.window.least > frames:
            raise DataError(
                f"{self.task} has {frames} frames after the time stride, windows need "
                f"{self.window.least}: lower data.window.history, data.window.horizon or "
                "data.window.rollout."
            )

    def _check_points(self, shape: Sequence[int]) -> None:
        stride, points = self.sampling.space_stride, "×".join(map(str, shape))
        if min(self.sampling.shape(shape)) < 2:
            raise DataError(
                f"data.sampling.space_stride={stride} leaves a single point of {points}: lower it."
            )
        periodic = self.equation is not None and self.equation.periodic
        if periodic and self.sampling.method == "point" and any(n % stride for n in shape):
            raise DataError(
                f"data.sampling.space_stride={stride} does not divide {points} points, so those "
                "left would not be equally spaced around a periodic axis: choose a divisor, or "
                "data.sampling.method=spectral."
            )

    def _split(self) -> dict[str, list[int]]:
        chosen, first = {}, 0
        for split, count in zip(reversed(SPLITS), reversed(self.samples), strict=True):
            kept = min(count, self.limit or count)
            chosen[split] = [first + i * count // kept for i in range(kept)]
            first += count
        return chosen


def _group(option: str, given: object, kind: type[Group]) -> Group:
    """A group of options, by default with its defaults."""
    if given is None:
        return kind()
    if not isinstance(given, kind):
        parts = either([f"{option}.{field.name}" for field in fields(kind)])
        raise DataError(f"{option} is a group of options, got {given!r}: set {parts}.")
    return given


def _check_finite(field: Tensor, files: TrajectoryFiles, sample: int, split: str) -> None:
    if not field.isfinite().all():
        file, number = files.place(sample)
        what = {"train": "Training", "val": "Validation", "test": "Test"}[split]
        raise DataError(
            f"{what} trajectory {number} of {files.paths[file]} has NaN or infinite values: remove "
            "it from the file, or make the file again."
        )
