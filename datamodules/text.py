"""What data modules of text share: where it comes from, how it is split and batched."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.cache_folder import CachePlan, damage, ensure
from datamodules.cached import CachedDataModule, check_sizes
from datamodules.download import reach
from datamodules.errors import DataError, DownloadError
from datamodules.token_batches import Collate
from datamodules.tokeniser import words

MOST_VALIDATED = 2000
"""Samples beyond which a validation set costs time and tells no more."""


class TextDataModule(CachedDataModule):
    """Sequences of tokens from the first source that has them, tokenised once and cached.

    A subclass sets `sources` and `task`, and says by `plan_of` what the folder of each source
    holds.

    Args:
        source: one of `sources`, or "auto": the first of `candidates` that can be had, with a
            warning where it is not the first.
        data_dir: folder that may hold the text; None takes the environment's DATA_DIR.
        max_length: most tokens of a sequence, special ones included.
        packing: batches without padding, see `Collate`.
        generated_size: what is generated for training, validation and test.
        seed: of what is generated, and of the choice of what validates.
        cached: see CachedDataModule.

    Attributes:
        sources: that there are.
        source_used: one of them, known after `prepare_data()` or `setup()`.
        words: the text of every token.

    Raises:
        DataError: an unknown source, a number that is out of range, and, when preparing, text that
            is missing, damaged or cannot be downloaded, or a package that is not installed.
    """

    sources: Sequence[str]

    def __init__(
        self,
        source: str = "auto",
        data_dir: str | Path | None = None,
        max_length: int = 128,
        packing: bool = False,
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
        if max_length < 8:
            raise DataError(f"Expected at least 8 tokens, but data.max_length is {max_length}.")
        check_sizes(generated_size)
        self.source, self.max_length, self.packing = source, max_length, packing
        data_dir = data_dir or os.environ.get("DATA_DIR")
        self.data_dir = Path(data_dir).expanduser() if data_dir else None
        self.generated_size, self.seed = tuple(generated_size), seed
        self.source_used: str | None = None
        self.collate = Collate(packing)

    def plan_of(self, source: str) -> CachePlan:
        """Which folder of the cache holds a source, and how to fill it; reads no data.

        Raises:
            DownloadError: the source is not there.
        """
        raise NotImplementedError

    @property
    def candidates(self) -> Sequence[str]:
        """Sources to try, in this order."""
        return self.sources if self.source == "auto" else (self.source,)

    @property
    def words(self) -> tuple[str, ...]:
        """The text of every token."""
        return words()

    def prepare_data(self) -> None:
        """Make sure that the cache holds the tokens; called by one process a machine.

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
                f"compared with those on {self.candidates[0]} data, because: "
                + " ".join(str(error) for error in missed),
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

    def folder_of_data(self) -> Path | None:
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


def hub_datasets(what: str) -> Any:
    """The package `datasets`, once its hub can be reached.

    Raises:
        DownloadError: it cannot, or the package is not installed.
    """
    # datasets itself would try for half a minute.
    reach(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        import datasets
    except ImportError as error:
        raise DownloadError(
            f"{what} is downloaded by the package datasets, which is not installed: "
            "pip install '.[language]'."
        ) from error
    return datasets


def file_key(path: Path) -> list[int]:
    """What changes when a large file does."""
    return [path.stat().st_size, path.stat().st_mtime_ns]


def place(text: str, seed: int) -> float:
    """A number in [0, 1) that chooses a split, evenly spread over texts, and equal for equal ones.

    So no text is in two splits, in whatever order and whichever file it comes.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=6, key=f"{seed}".encode()).digest()
    return int.from_bytes(digest, "big") / 2**48
