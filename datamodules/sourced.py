"""Data that one of several sources has: official files, others like them, a generator."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.cache_folder import CachePlan, damage, ensure
from datamodules.cached import CachedDataModule, check_sizes
from datamodules.errors import DataError, DownloadError


class SourcedDataModule(CachedDataModule):
    """Samples from the first source that has them, in a folder of the cache for each source.

    A subclass sets `sources` and `task`, and says by `plan_of` what the folder of each source
    holds.

    Args:
        source: one of `sources`, or "auto": the first of `candidates` that can be had, with a
            warning where it is not the first.
        data_dir: folder that may hold the data; None takes the environment's DATA_DIR.
        generated_size: samples to generate for training, validation and test.
        seed: of what is generated.
        cached: see CachedDataModule.

    Attributes:
        sources: that there are.
        source_used: one of them, known after `prepare_data()` or `setup()`.

    Raises:
        DataError: an unknown source, a number that is out of range, and, when preparing, data that
            are missing, damaged or cannot be downloaded.
    """

    sources: Sequence[str]

    def __init__(
        self,
        source: str = "auto",
        data_dir: str | Path | None = None,
        generated_size: Sequence[int] = (2000, 500, 500),
        seed: int = 0,
        **cached: Any,
    ):
        super().__init__(**cached)
        if source not in ("auto", *self.sources):
            raise DataError(
                f"There is no data source {source!r}: set data.source to auto or one of "
                f"{', '.join(self.sources)}."
            )
        check_sizes(generated_size)
        data_dir = data_dir or os.environ.get("DATA_DIR")
        self.data_dir = Path(data_dir).expanduser() if data_dir else None
        self.source, self.generated_size, self.seed = source, tuple(generated_size), seed
        self.source_used: str | None = None

    @abstractmethod
    def plan_of(self, source: str) -> CachePlan:
        """Which folder of the cache holds a source, and how to fill it; reads no data.

        Raises:
            DownloadError: the source is not there.
        """

    @property
    def candidates(self) -> Sequence[str]:
        """Sources to try, in this order."""
        return self.sources if self.source == "auto" else (self.source,)

    def prepare_data(self) -> None:
        """Make sure that the cache holds the data; called by one process a machine.

        Raises:
            DataError: as the class says.
        """
        if self._folder is not None:
            return
        missed = []
        for source in self.candidates:
            try:
                self._use_source(source, ensure(self.plan_of(source)))
                break
            except DownloadError as error:  # what is there and damaged is not passed over
                missed.append(error)
                if source == self.candidates[-1]:
                    raise
        if missed:
            warnings.warn(
                f"USING {self.source_used.upper()} DATA for {self.task}, whose scores cannot be "
                f"compared with published ones, because the {self.candidates[0]} data cannot be "
                "had: " + " ".join(str(error) for error in missed),
                stacklevel=2,
            )

    def cached_folder(self) -> Path:
        """The cached folder, also where another process has prepared it."""
        if self._folder is not None:
            return self._folder
        for source in self.candidates:
            try:
                folder = self.plan_of(source).folder
            except DataError:  # say below what to do instead
                continue
            if damage(folder) is None:
                self._use_source(source, folder)
                return folder
        raise DataError(
            f"No prepared data for {self.task} in {self.cache_dir}: call prepare_data() first."
        )

    def _use_source(self, source: str, folder: Path) -> None:
        self.source_used = source
        self._use(folder)

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
