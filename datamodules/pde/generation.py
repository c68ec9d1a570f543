"""Generate trajectories chunk by chunk into one HDF5 file; what was interrupted goes on."""

import json
import math
import multiprocessing
import os
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch
from tqdm import tqdm

from datamodules.cache_folder import CachePlan, sync
from datamodules.cores import cores
from datamodules.errors import DataError, one_line
from datamodules.pde.counts import check_count
from datamodules.pde.equation import Equation, Evolution, Steady
from datamodules.processes import end_with_parent

AT_ONCE = {1: 16, 2: 4, 3: 1}
"""Trajectories of a chunk, by the number of axes. A chunk is always solved whole, so that neither
the number of trajectories nor of processes changes a bit of any of them."""

PATIENCE_SECONDS = 3
"""How long one process solves alone before others are started."""

STORAGE_CHUNK = 2**20
"""Bytes of a chunk of the file: consecutive frames of one trajectory."""


@dataclass(frozen=True)
class Generation:
    """How trajectories are made: when they are saved, from which seed, and on what.

    Attributes:
        first_time, last_time, frames: `frames` equally spaced times at which states are saved, both
            ends included; a steady problem has none.
        seed: of the initial states.
        processes: that solve; None for as many as there are cores.
        device: where to solve.

    Raises:
        DataError: a count that is none, a negative seed, times that do not increase from 0 or more.
    """

    first_time: float = 0.0
    last_time: float = 1.0
    frames: int = 2
    seed: int = 0
    processes: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_count("data.generate.frames", self.frames)
        check_count("data.generate.processes", self.processes, optional=True)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise DataError(f"data.generate.seed is 0 or more, got {self.seed}.")
        ends = self.first_time, self.last_time
        known = all(isinstance(time, int | float) for time in ends)
        if not known or not 0 <= ends[0] < math.inf or (self.frames > 1 and ends[1] <= ends[0]):
            raise DataError(
                "data.generate.first_time is 0 or more and data.generate.last_time later, got "
                f"{ends[0]} and {ends[1]}."
            )

    @property
    def times(self) -> tuple[float, ...]:
        """When states are saved."""
        times = torch.linspace(self.first_time, self.last_time, self.frames, dtype=torch.float64)
        return tuple(times.tolist())


@dataclass(frozen=True)
class Recipe:
    """A set of trajectories, all that its file depends on.

    Attributes:
        equation: whose solutions.
        times: when they are saved; empty for a steady problem.
        samples: how many.
        seed: with a sample's number the seed of its initial state.
    """

    equation: Equation
    times: tuple[float, ...]
    samples: int
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """All of it, for JSON."""
        rest = {"times": self.times, "samples": self.samples, "seed": self.seed}
        return {**self.equation.key, **rest}

    @property
    def chunks(self) -> list[range]:
        """The samples of every chunk; the last may reach beyond `samples`."""
        size = AT_ONCE[len(self.equation.shape)]
        return [range(i, i + size) for i in range(0, self.samples, size)]

    def draw(self, samples: Sequence[int]) -> torch.Tensor:
        """Initial states of some samples, float64 [B, C, *points of the solver]."""
        return torch.stack([self.equation.initial(generator(self.seed, i)) for i in samples])

    def solve(self, samples: Sequence[int], device: str = "cpu") -> dict[str, np.ndarray]:
        """Solutions of some samples by dataset of the file, float32 [B, T, *shape]."""
        with one_thread():
            fields = self._solve(samples, device)
        return {name: field.float().cpu().numpy() for name, field in fields.items()}

    def _solve(self, samples: Sequence[int], device: str) -> dict[str, torch.Tensor]:
        equation, start = self.equation, self.draw(samples).to(device)
        if not isinstance(equation, Steady):
            assert isinstance(equation, Evolution)
            return _by_name(equation, equation.solve(start, self.times))
        given, states = equation.solve(start)
        return {"nu": given[:, 0], **_by_name(equation, states.unsqueeze(1))}

    def plan(self, cache_dir: Path, processes: int | None = None, device: str = "cpu") -> CachePlan:
        """The cached folder with its file, `data.hdf5`.

        Args:
            cache_dir: folder of all caches.
            processes: how many solve; None for as many as there are cores.
            device: where; a GPU has one process.
        """

        def fill(ready: Path, parts: Path) -> dict[str, Any]:
            check_device(device)
            check_seeds(self)
            solve_chunks(self, parts, processes, device)
            assemble(self, parts, ready / "data.hdf5", device)
            return {"samples": self.samples, "solved_on": torch.device(device).type}

        name, about = type(self.equation).__name__, {"source": "generated"}
        return CachePlan(cache_dir / "pde", name, self.key, about, fill, resumable=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order; and more threads are slower: what a step works on is small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def generator(seed: int, sample: int) -> torch.Generator:
    """The random numbers of one sample, which no other sample's depend on."""
    return torch.Generator().manual_seed(_start(seed, sample))


def _start(seed: int, sample: int) -> int:
    state = np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def check_seeds(recipe: Recipe) -> None:
    """Refuse a seed that gives two samples one initial state, of which one might be for testing.

    PyTorch's generator starts from the lower 32 bits alone: of 10,000 samples this has a chance of
    about one in a hundred.
    """
    starts = {_start(recipe.seed, i) % 2**32 for i in range(recipe.samples)}
    if len(starts) < recipe.samples:
        raise DataError(
            f"{recipe.samples - len(starts)} of {recipe.samples} trajectories of "
            f"data.generate.seed={recipe.seed} would repeat others' random numbers: choose another."
        )


def check_device(device: str) -> None:
    """Refuse a device that is not there or has no float64."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise DataError(
            f"data.generate.device={device} cannot solve in float64 here ({one_line(error)}): use "
            "cpu, or cuda where PyTorch sees a GPU."
        ) from error


def solve_chunks(recipe: Recipe, parts: Path, processes: int | None, device: str) -> None:
    """Leave one file for every chunk in a folder, but for those that are there."""
    missing = [c for c in recipe.chunks if not _part(parts, c, device).is_file()]
    size = len(recipe.chunks[0])
    with tqdm(
        total=len(recipe.chunks) * size,
        initial=(len(recipe.chunks) - len(missing)) * size,
        desc=f"Solving {type(recipe.equation).__name__}",
        unit="trajectory",
        disable=None,
    ) as progress:
        for _ in _solved(recipe, parts, missing, processes, device):
            progress.update(size)


def _solved(
    recipe: Recipe, parts: Path, chunks: list[range], processes: int | None, device: str
) -> Iterator[None]:
    workers = processes or cores()
    began = time.monotonic()
    while chunks:
        yield _solve_chunk(recipe, parts, chunks[0], device)
        chunks = chunks[1:]
        # Processes take seconds to start.
        if (
            workers > 1
            and torch.device(device).type == "cpu"
            and time.monotonic() - began > PATIENCE_SECONDS
        ):
            break
    if not chunks:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(workers, len(chunks)), context, end_with_parent) as pool:
        futures = [pool.submit(_solve_chunk, recipe, parts, chunk, device) for chunk in chunks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"A process that solved {type(recipe.equation).__name__} was killed, perhaps for "
                f"want of memory: lower data.generate.processes (now {workers}) and start again, "
                "what is solved is kept."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _solve_chunk(recipe: Recipe, parts: Path, chunk: range, device: str) -> None:
    fields = recipe.solve(chunk, device)
    path = _part(parts, chunk, device)
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, **cast("dict[str, Any]", fields))  # none of them is an option
        sync(file)
    partial.replace(path)


def _part(parts: Path, chunk: range, device: str) -> Path:
    # Kinds of devices round differently: what one has begun no other goes on with.
    return parts / f"{chunk.start:08d}-{torch.device(device).type}.npz"


def _load(recipe: Recipe, parts: Path, chunk: range, device: str) -> dict[str, np.ndarray]:
    """A chunk's fields, solved again if its file has been damaged since."""
    path = _part(parts, chunk, device)
    try:
        with np.load(path) as fields:
            return dict(fields)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        warnings.warn(f"{path} is damaged: its trajectories are solved again.", stacklevel=2)
    _solve_chunk(recipe, parts, chunk, device)
    with np.load(path) as fields:
        return dict(fields)


def assemble(recipe: Recipe, parts: Path, path: Path, device: str) -> None:
    """One file in PDEBench's layout from the chunks, the same bytes whenever and wherever made."""
    equation = recipe.equation
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["channels"] = list(equation.channels)
        file.attrs["inputs"] = list(getattr(equation, "inputs", ()))
        file.attrs["recipe"] = json.dumps(recipe.key, sort_keys=True)
        for axis, points in zip("xyz", equation.coordinates, strict=False):
            file[f"{axis}-coordinate"] = points.numpy()
        if recipe.times:
            file["t-coordinate"] = np.array(recipe.times)
        for chunk in recipe.chunks:
            kept = min(chunk.stop, recipe.samples)
            for name, field in _load(recipe, parts, chunk, device).items():
                if name not in file:
                    _create(file, name, recipe.samples, field)
                stored = cast(h5py.Dataset, file[name])
                stored[chunk.start : kept] = field[: kept - chunk.start]
    with path.open("rb") as file:
        sync(file)


def _create(file: h5py.File, name: str, samples: int, field: np.ndarray) -> None:
    frames = min(field.shape[1], max(1, STORAGE_CHUNK // field[0, 0].nbytes))
    chunk = (1, frames, *field.shape[2:])
    file.create_dataset(name, (samples, *field.shape[1:]), field.dtype, chunks=chunk)


def _by_name(equation: Equation, states: torch.Tensor) -> dict[str, torch.Tensor]:
    """States [B, T, C, *shape] as datasets of the file."""
    if len(equation.channels) == 1:
        return {"tensor": states[:, :, 0]}
    return {name: states[:, :, i] for i, name in enumerate(equation.channels)}
