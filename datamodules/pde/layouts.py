"""Trajectories in HDF5 files: PDEBench's layouts, which are also ours, and The Well's.

Shapes: S samples, T frames, C channels, then the points of every axis. Nothing is read before it is
asked for, and no more than that.

Sources: Takamoto et al., PDEBench, arXiv:2210.07182; Ohana et al., The Well, arXiv:2412.00568.
"""

import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from datamodules.errors import DataError, one_line


class Field:
    """A dataset as numbers: what is packed by `scale_factor` and `add_offset` is unpacked.

    Args:
        dataset: floating-point or whole numbers.

    Raises:
        DataError: its values are neither, as complex ones.
    """

    def __init__(self, dataset: h5py.Dataset):
        if dataset.dtype.kind not in "fiub":
            kind = "complex numbers" if dataset.dtype.kind == "c" else f"{dataset.dtype}"
            raise DataError(
                f"{dataset.name} of {dataset.file.filename} holds {kind}, which are no fields of "
                "real numbers: save their parts, such as real and imaginary ones, as two datasets."
            )
        attributes = dataset.attrs
        self.dataset, self.shape = dataset, dataset.shape
        self.packed = "scale_factor" in attributes or "add_offset" in attributes
        self.scale = float(np.squeeze(attributes.get("scale_factor", 1.0)))
        self.offset = float(np.squeeze(attributes.get("add_offset", 0.0)))
        marks = [np.ravel(attributes.get(name, [])) for name in ("_FillValue", "missing_value")]
        self.missing = [mark for mark in np.concatenate(marks) if mark == mark]  # but for NaN

    def __getitem__(self, place: Any) -> np.ndarray:
        """The values there, float64 if they were packed or whole numbers; missing ones are NaN."""
        stored = self.dataset[place]
        if stored.dtype.kind == "f" and not self.packed and not self.missing:
            return stored.astype(stored.dtype.newbyteorder("="), copy=False)
        values = stored.astype(np.float64) * self.scale + self.offset
        if self.missing:
            values = np.where(np.isin(stored, self.missing), np.nan, values)
        return values


class Layout(ABC):
    """An open file of one layout.

    Attributes:
        samples: S.
        frames: T; 1 for steady problems.
        channels: names of the fields, C of them.
        inputs: names of the fields that a steady problem's solution depends on; none otherwise.
        shape: points of every axis.
        times: float64 [T], as far as the file says them.
    """

    samples: int
    frames: int
    channels: list[str]
    inputs: list[str]
    shape: tuple[int, ...]
    times: np.ndarray

    @abstractmethod
    def read(self, sample: int, frames: slice, stride: int) -> np.ndarray:
        """Every `stride`-th point of some frames, [T, C, *points]."""

    def read_input(self, sample: int, stride: int) -> np.ndarray:
        """Every `stride`-th point of the inputs, [len(inputs), *points]; here there are none."""
        return np.empty((0, *(len(range(0, n, stride)) for n in self.shape)), np.float32)

    def points(self, stride: int) -> tuple[slice, ...]:
        """Index of every `stride`-th point along every axis."""
        return (slice(None, None, stride),) * len(self.shape)


class PDEBench(Layout):
    """Datasets [S, T, *points]: one, `tensor`, or one a channel; and, for a steady problem, `nu`
    [S, *points]. Attributes `channels` and `inputs`, which PDEBench's own files lack, name them.

    A dataset [S, T, *points, k] has k components, each a channel. That it has is known from another
    without them, or from the file's coordinates (`x-coordinate`, …), one dataset an axis.
    """

    def __init__(self, file: h5py.File):
        named = {
            key: value
            for key, value in file.items()
            if isinstance(value, h5py.Dataset) and value.ndim >= 3
        }
        self.given = [Field(named.pop("nu"))] if "nu" in named else []
        names = _attribute(file, "channels", ["tensor"] if "tensor" in named else sorted(named))
        self.inputs = _attribute(file, "inputs", ["nu"] * len(self.given))
        tensor = named.get("tensor")
        self.fields = [
            Field(named[name] if tensor is None else named.get(name, tensor)) for name in names
        ]
        axes = _axes(file, self.fields)
        components = self.fields[0].shape[axes + 2 :]
        if components and all(field.dataset == tensor for field in self.fields):
            self.fields = self.fields[:1]
            self.channels = names
            if names == ["tensor"]:
                self.channels = [f"u{i}" for i in range(math.prod(components))]
            if len(self.channels) != math.prod(components):
                raise DataError(
                    f"The attribute channels of {file.filename} names {', '.join(names)}, tensor "
                    f"has {math.prod(components)} components: name as many."
                )
        else:
            ends = [_ends(field.shape[axes + 2 :]) for field in self.fields]
            pairs = zip(names, ends, strict=True)
            self.channels = [name + end for name, own in pairs for end in own]
            if names == ["tensor"]:
                self.channels = ["u"]
        self.samples, self.frames, *points = self.fields[0].shape[: axes + 2]
        self.shape = tuple(points)
        if any(field.shape != (self.samples, *points) for field in self.given):
            raise DataError(
                f"nu of {file.filename} has the shape {self.given[0].shape}, the solutions are on "
                f"{(self.samples, *points)}: save both on the same samples and points."
            )
        # PDEBench's files have one more time than frames.
        times = np.asarray(file.get("t-coordinate", []), np.float64)
        self.times = times[: self.frames]

    def read(self, sample: int, frames: slice, stride: int) -> np.ndarray:
        place = (sample, frames, *self.points(stride))
        parts = [field[place] for field in self.fields]
        kept = 1 + len(self.shape)
        parts = [np.moveaxis(x.reshape(*x.shape[:kept], -1), -1, 1) for x in parts]
        return np.concatenate(parts, axis=1)

    def read_input(self, sample: int, stride: int) -> np.ndarray:
        return np.stack([field[(sample, *self.points(stride))] for field in self.given])


class PDEBenchGroups(Layout):
    """One group a sample, `0000`, `0001`, …, with `data` [T, *points, C] and `grid/t`."""

    def __init__(self, file: h5py.File):
        self.groups = [cast(h5py.Group, file[key]) for key in sorted(file, key=int)]
        first = _dataset(self.groups[0], "data")
        Field(first)
        self.samples, self.inputs = len(self.groups), []
        self.frames, *points, channels = first.shape
        self.shape = tuple(points)
        self.channels = [f"u{i}" for i in range(channels)] if channels > 1 else ["u"]
        self.times = np.asarray(_dataset(self.groups[0], "grid/t"), np.float64)

    def read(self, sample: int, frames: slice, stride: int) -> np.ndarray:
        field = Field(_dataset(self.groups[sample], "data"))
        return np.moveaxis(field[(frames, *self.points(stride))], -1, 1)


class TheWell(Layout):
    """Groups `t0_fields`, `t1_fields`, `t2_fields` of scalars, vectors and tensors.

    Components become channels, `velocity_x`; what is constant over samples, time or an axis is
    repeated.
    """

    def __init__(self, file: h5py.File):
        dimensions = cast(h5py.Group, file["dimensions"])
        names = _attribute(dimensions, "spatial_dims", [])
        self.samples = int(cast(Any, file.attrs["n_trajectories"]))
        self.times = np.asarray(_dataset(dimensions, "time"), np.float64)
        if self.times.ndim > 1:  # one row a sample
            self.times = self.times[0]
        self.frames = len(self.times)
        self.shape = tuple(_dataset(dimensions, name).shape[-1] for name in names)
        self.inputs: list[str] = []
        self.fields: list[Field] = []
        self.channels = []
        for order in range(3):
            group = cast("h5py.Group | None", file.get(f"t{order}_fields"))
            if group is None:
                continue
            for name in _attribute(group, "field_names", sorted(group)):
                self.fields.append(Field(_dataset(group, name)))
                ends = _components(names, order)
                self.channels += [name + end for end in ends]

    def read(self, sample: int, frames: slice, stride: int) -> np.ndarray:
        parts = [self._read(field, sample, frames, stride) for field in self.fields]
        return np.concatenate(parts, axis=1)

    def _read(self, field: Field, sample: int, frames: slice, stride: int) -> np.ndarray:
        attributes = field.dataset.attrs
        varies = np.atleast_1d(attributes.get("dim_varying", [True] * len(self.shape)))
        index: list[Any] = []
        if attributes.get("sample_varying", True):
            index.append(sample)
        in_time = bool(attributes.get("time_varying", True))
        if in_time:
            index.append(frames)
        points = slice(None, None, stride)
        index += [points for axis in varies if axis]
        value = field[tuple(index)]
        if not in_time:
            value = value[None]
        for axis, varying in enumerate(varies, start=1):
            if not varying:
                value = np.expand_dims(value, axis)
        wanted = [len(range(*frames.indices(self.frames)))]
        wanted += [len(range(0, n, stride)) for n in self.shape]
        value = np.broadcast_to(value, (*wanted, *value.shape[len(wanted) :]))
        return np.moveaxis(value.reshape(*wanted, -1), -1, 1)


def _axes(file: h5py.File, fields: Sequence[Field]) -> int:
    """How many axes of fields [S, T, *points, *components] are of points."""
    shapes = [field.shape for field in fields]
    least = min(shapes, key=len)
    axes = sum(f"{axis}-coordinate" in file for axis in "xyz")
    if not 0 < axes <= len(least) - 2:
        axes = len(least) - 2
        if axes > 1 and least[-1] <= len("xyz") and len({len(shape) for shape in shapes}) == 1:
            raise DataError(
                f"The fields of {file.filename} have shapes like {list(least)}, whose last axis is "
                "of components or of very few points: add a dataset x-coordinate (y-, z-) for "
                "every axis of points."
            )
    if any(s[: axes + 2] != least[: axes + 2] or len(s) > axes + 4 for s in shapes):
        raise DataError(
            f"The fields of {file.filename} differ in shape ({', '.join(map(str, shapes))}): save "
            "all of them on the same samples, frames and points."
        )
    return axes


def _ends(components: Sequence[int]) -> list[str]:
    """What is added to a field's name for each of its components, of which a scalar has none."""
    names = [
        "xyz"[:k] if k <= len("xyz") else [str(i) for i in range(k)] for k in components if k > 1
    ]
    return ["_" + "".join(x) if x else "" for x in itertools.product(*names)]


def _components(names: Sequence[str], order: int) -> list[str]:
    if order == 0:
        return [""]
    if order == 1:
        return [f"_{name}" for name in names]
    return [f"_{a}{b}" for a in names for b in names]


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    # What is there instead in a file of another layout fails where it is used, see `open_layout`.
    return cast(h5py.Dataset, group[name])


def _attribute(holder: Any, name: str, default: Sequence[str]) -> list[str]:
    value = holder.attrs.get(name)
    if value is None:
        return list(default)
    return [v.decode() if isinstance(v, bytes) else str(v) for v in value]


def open_layout(path: Path) -> Layout:
    """Open a file, whichever of the layouts it has.

    Raises:
        DataError: the file is not there, not HDF5, or has none of the layouts.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"Cannot read {path} as HDF5 ({one_line(error)}).") from error
    try:
        if "t0_fields" in file or "t1_fields" in file:
            return TheWell(file)
        if len(file) and all(str(key).isdigit() for key in file):
            return PDEBenchGroups(file)
        return PDEBench(file)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds {', '.join(list(file)[:8])}, which is neither PDEBench's layout nor The "
            f"Well's ({one_line(error)})."
        ) from error


class TrajectoryFiles:
    """The samples of one or more files, one after another; every process opens them for itself.

    Args:
        paths: files of one kind.

    Raises:
        DataError: a file cannot be read, now or later, or they do not hold the same fields on the
            same points.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._open: list[Layout] | None = None
        self._process = os.getpid()
        first, *rest = self.layouts
        self.channels, self.inputs = first.channels, first.inputs
        self.shape, self.frames, self.times = first.shape, first.frames, first.times
        for path, layout in zip(self.paths[1:], rest, strict=True):
            if (layout.channels, layout.shape, layout.frames) != (
                self.channels,
                self.shape,
                self.frames,
            ):
                raise DataError(f"{path} holds other fields, points or frames than {paths[0]}.")
        self.ends = np.cumsum([layout.samples for layout in self.layouts])

    @property
    def layouts(self) -> list[Layout]:
        """The open files, of this process: a fork shares its parent's with every other fork."""
        if self._process != os.getpid():
            self._open, self._process = None, os.getpid()
        if self._open is None:
            self._open = [open_layout(path) for path in self.paths]
        return self._open

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}  # open files cannot be handed to a process

    def read(self, sample: int, frames: slice = slice(None), stride: int = 1) -> np.ndarray:
        """See Layout.read."""
        return self._of(sample, lambda layout, local: layout.read(local, frames, stride))

    def read_input(self, sample: int, stride: int = 1) -> np.ndarray:
        """See Layout.read_input."""
        return self._of(sample, lambda layout, local: layout.read_input(local, stride))

    def place(self, sample: int) -> tuple[int, int]:
        """The number of a sample's file, and the sample's own in that file."""
        file = int(np.searchsorted(self.ends, sample, side="right"))
        return file, sample - (int(self.ends[file - 1]) if file else 0)

    def _of(self, sample: int, read: Callable[[Layout, int], np.ndarray]) -> np.ndarray:
        place, local = self.place(sample)
        try:
            return read(self.layouts[place], local)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"Cannot read trajectory {local} of {self.paths[place]} ({one_line(error)}): the "
                "file is damaged, fetch or make it again."
            ) from error
