"""What data modules share whose samples come from one of several sources into a cache folder."""

import hashlib
import json
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from datamodules.base import SPLITS, DataModule
from datamodules.batching import Samples
from datamodules.cache_folder import CachePlan, damage, ensure
from datamodules.errors import DataError, DownloadError

GENERATED = "generated"


class SelectableSamples(Samples, Protocol):
    """Samples of which some can be taken, as of torch-geometric's datasets."""

    def index_select(self, rows: Tensor, /) -> Samples:
        """These rows alone."""
        ...


class CachedDataModule(DataModule):
    """Train, validation and test samples from the first source that has them, memory-mapped.

    A subclass sets `task`, says by `sources` which folder below `cache_dir` holds the samples of
    each source, and opens it by `open_split`.

    Args:
        source: one of `sources`, or "auto": the first of them that can be had, with a warning where
            it is not the first.
        data_dir: folder that may hold the data; None takes the environment's DATA_DIR.
        generated_size: samples to generate for training, validation and test; None takes
            `usual_size`.
        seed: of what is generated, or chosen at random from what is read.
        cache_dir: folder to write to.
        limit: at most so many samples a split, evenly spaced; for smoke runs.
        loading: see DataModule.

    Attributes:
        usual_size: see `generated_size`.
        only_if_asked: sources that "auto" does not try.
        source_used: one of `sources`, known after `prepare_data()` or `setup()`.

    Raises:
        DataError: an unknown source, a number that is out of range, an option that no source has a
            use for, and, when preparing, data that are missing, damaged or cannot be downloaded.
    """

    usual_size: Sequence[int] = (2000, 500, 500)
    only_if_asked: Collection[str] = ()

    def __init__(
        self,
        source: str = "auto",
        data_dir: str | Path | None = None,
        generated_size: Sequence[int] | None = None,
        seed: int = 0,
        cache_dir: str | Path = "data",
        limit: int | None = None,
        **loading: Any,
    ):
        super().__init__(**loading)
        if source not in ("auto", *self.sources):
            several = "one of " if len(self.sources) > 1 else ""
            raise DataError(
                f"There is no data source {source!r}: set data.source to auto or {several}"
                f"{', '.join(self.sources)}."
            )
        if data_dir is not None and set(self.sources) == {GENERATED}:
            raise DataError(
                f"These data are always generated, but data.data_dir is {data_dir}: set it to null."
            )
        if generated_size is None:
            generated_size = self.usual_size
        elif GENERATED not in self.sources:
            raise DataError(
                "These data are never generated, but data.generated_size is "
                f"{list(generated_size)}: set it to null."
            )
        if len(generated_size) != len(SPLITS) or min(generated_size) < 1:
            raise DataError(
                "Expected three positive numbers of samples (train, validation, test), but "
                f"data.generated_size is {list(generated_size)}."
            )
        if limit is not None and limit < 1:
            raise DataError(
                f"Expected a positive number of {self.counted} or null, but data.limit is {limit}."
            )
        data_dir = data_dir or os.environ.get("DATA_DIR")
        self.data_dir = Path(data_dir).expanduser() if data_dir else None
        self.source, self.generated_size, self.seed = source, tuple(generated_size), seed
        self.cache_dir, self.limit = Path(cache_dir).expanduser(), limit
        self.source_used = None
        self._folder: Path | None = None
        self._meta: dict[str, Any] = {}
        self._kept: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        """The sources in the order in which "auto" tries them, each with a way to plan its folder.

        A way reads no data, and raises DownloadError where the source is not there.
        """

    @abstractmethod
    def open_split(self, folder: Path, split: str) -> SelectableSamples:
        """A split of the folder."""

    @property
    def candidates(self) -> Sequence[str]:
        """The sources to try, in this order."""
        if self.source != "auto":
            return (self.source,)
        return [source for source in self.sources if source not in self.only_if_asked]

    def prepare_data(self) -> None:
        """Make sure that the cache holds the samples; called by one process a machine.

        Raises:
            DataError: as the class says.
        """
        if self._folder is not None:
            return
        missed = []
        for source in self.candidates:
            try:
                self._use(source, ensure(self.sources[source]()))
                break
            except DownloadError as error:  # what is there and damaged is not passed over
                missed.append(error)
                if source == self.candidates[-1]:
                    raise
        if missed:
            assert self.source_used is not None  # or the last error was raised
            warnings.warn(
                f"USING {self.source_used.upper()} DATA for {self.task}, whose scores cannot be "
                f"compared with published ones, because the {self.candidates[0]} data cannot be "
                "had: " + " ".join(str(error) for error in missed),
                stacklevel=2,
            )

    def cached_folder(self) -> Path:
        """The cached folder, also where another process has filled it.

        Raises:
            DataError: nothing was prepared, in this process or by another.
        """
        if self._folder is not None:
            return self._folder
        for source in self.candidates:
            try:
                folder = self.sources[source]().folder
            except DataError:  # say below what to do instead
                continue
            if damage(folder) is None:
                self._use(source, folder)
                return folder
        raise DataError(
            f"No prepared data for {self.task} in {self.cache_dir}: call prepare_data() first."
        )

    def _use(self, source: str, folder: Path) -> None:
        self._meta = json.loads((folder / "meta.json").read_text())
        self.source_used, self._folder = source, folder

    def setup(self, stage: str | None = None) -> None:
        """Open the three splits.

        Raises:
            DataError: nothing was prepared, in this process or by another.
        """
        if hasattr(self, "train_dataset"):
            return
        folder = self.cached_folder()
        for split in SPLITS:
            whole = self.open_split(folder, split)
            dataset: Samples = whole
            if self.limit is not None and self.limit < len(whole):
                kept = torch.arange(self.limit) * len(whole) // self.limit
                dataset = whole.index_select(kept)
                self._kept[split] = kept
            setattr(self, f"{split}_dataset", dataset)

    def given_folder(self) -> Path | None:
        """`data_dir`, checked.

        Raises:
            DataError: it is set and does not exist.
        """
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise DataError(
                f"Expected a folder of data files, but {self.data_dir} (data.data_dir or the "
                "environment's DATA_DIR) does not exist: correct the path, or unset it to download."
            )
        return self.data_dir

    @property
    def test_numbers(self) -> Tensor:
        return self._kept["test"] if "test" in self._kept else super().test_numbers

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal for equal samples in equal splits under an equal limit."""
        self.cached_folder()
        parts = [self._meta["content"], self.limit]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
