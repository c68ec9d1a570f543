"""A cache folder that is complete and checked, or absent."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock

from datamodules.errors import DataError, one_line

LIBRARIES = ("torch", "torch-geometric", "rdkit", "numpy", "h5py", "tokenizers", "pillow")


@dataclass(frozen=True)
class CachePlan:
    """A cached folder and how to fill it.

    Attributes:
        parent: folder of the cache.
        name: start of the folder's name, for people.
        key: whatever the data depend on, for JSON; another key makes another folder.
        about: what else `meta.json` notes.
        fill: writes the files into a folder, given another for scratch, and returns what else
            `meta.json` notes.
        resumable: the scratch folder outlives a process that was killed.
    """

    parent: Path
    name: str
    key: dict[str, Any]
    about: dict[str, Any]
    fill: Callable[[Path, Path], dict[str, Any]]
    resumable: bool = False

    @property
    def folder(self) -> Path:
        """Holds what `fill` wrote, and `meta.json` with its checksums."""
        digest = hashlib.sha256(self.key_text.encode()).hexdigest()
        return self.parent / f"{self.name}-{digest[:12]}"

    @property
    def key_text(self) -> str:
        """The key as JSON, the same for equal keys."""
        return json.dumps(self.key, sort_keys=True)


def ensure(plan: CachePlan) -> Path:
    """The plan's folder, filled unless it already is; one process fills it, others wait.

    Raises:
        DataError: the folder cannot be written, or `plan.fill` raised it.
    """
    folder = plan.folder
    if damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            wrong = damage(folder)
            if wrong is None:
                return folder
            if folder.exists():
                warnings.warn(f"{wrong}: it is rebuilt.", stacklevel=3)
                shutil.rmtree(folder)
            _write(plan)
    except OSError as error:
        raise DataError(
            f"Cannot prepare the data in {folder.parent} ({one_line(error)}): free some space, "
            "or set data.cache_dir to a folder that can be written to."
        ) from error
    return folder


def damage(folder: Path) -> str | None:
    """What is wrong with a cached folder, None if nothing."""
    if not folder.exists():
        return f"{folder} does not exist"
    try:
        for name, digest in json.loads((folder / "meta.json").read_text())["sha256"].items():
            if sha256(folder / name) != digest:
                return f"The cached file {folder / name} is damaged (SHA-256 differs)"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"The cached folder {folder} is damaged ({one_line(error)})"
    return None


def _write(plan: CachePlan) -> None:
    """Write a sibling, sync it, rename it: whatever happens, the folder is complete or absent."""
    folder = plan.folder
    for stale in folder.parent.glob(f".{folder.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    ready, scratch = temporary / "ready", temporary / "scratch"
    if plan.resumable:
        scratch = folder.with_name(f".{folder.name}.parts")
    ready.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    try:
        meta = {
            **plan.about,
            **plan.fill(ready, scratch),
            "key": json.loads(plan.key_text),
            "sha256": {path.name: sha256(path) for path in sorted(ready.iterdir())},
            "made_with": {name: _version(name) for name in LIBRARIES},
        }
        with (ready / "meta.json").open("w") as file:
            json.dump(meta, file, indent=1)
            sync(file)
        _sync_folder(ready)
        os.rename(ready, folder)
        _sync_folder(folder.parent)
        shutil.rmtree(scratch, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(file: IO) -> None:
    """Have what was written to a file on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save_tensors(folder: Path, split: str, tensors: dict[str, Any]) -> None:
    """Save what is known of a split, by name, for `load_tensors`."""
    with (folder / f"{split}.pt").open("wb") as file:
        torch.save(tensors, file)
        sync(file)


def load_tensors(folder: Path, split: str) -> dict[str, Any]:
    """What was saved of a split, memory-mapped."""
    # Every process maps the same pages, so that a large task is in memory once.
    return torch.load(folder / f"{split}.pt", mmap=True, weights_only=True)


def file_key(path: Path) -> list[int]:
    """What changes when a large file does."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
