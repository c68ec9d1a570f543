"""What data modules share whose splits lie in a cache folder, memory-mapped."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Dataset

from datamodules.base import SPLITS, DataModule, GraphDataModule
from datamodules.cache_folder import CachePlan, damage, ensure, load_tensors
from datamodules.errors import DataError
from datamodules.graphs.graph_cache import GraphDataset, GraphTable


class CachedDataModule(DataModule):
    """Train, validation and test samples from a folder below `cache_dir`.

    A subclass sets `task` and `source_used`, says by `plan` what the folder holds and opens it by
    `open_split`; for a choice among sources see SourcedDataModule.

    Args:
        cache_dir: folder to write to.
        limit: at most so many samples a split, evenly spaced; for smoke runs.
        batch_size, num_workers, shuffle_seed, size_jitter, batch_transform: see DataModule.

    Raises:
        DataError: a limit that is not positive.
    """

    def __init__(
        self,
        cache_dir: str | Path = "data",
        limit: int | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        shuffle_seed: int = 0,
        size_jitter: float = 0.1,
        batch_transform: Callable[[Any], Any] | None = None,
    ):
        super().__init__(batch_size, num_workers, shuffle_seed, size_jitter, batch_transform)
        if limit is not None and limit < 1:
            raise DataError(
                f"Expected a positive number of {self.counted} or null, but data.limit is {limit}."
            )
        self.cache_dir, self.limit = Path(cache_dir).expanduser(), limit
        self._folder: Path | None = None
        self._meta: dict[str, Any] = {}
        self._kept: dict[str, Tensor] = {}

    @abstractmethod
    def plan(self) -> CachePlan:
        """Which folder holds the samples, and how to fill it; reads no data."""

    @abstractmethod
    def open_split(self, folder: Path, split: str) -> Dataset:
        """A split of the folder, with PyG's `index_select`."""

    def prepare_data(self) -> None:
        """Make sure that the cache holds the samples; called by one process a machine.

        Raises:
            DataError: the samples cannot be had, or the cache cannot be written.
        """
        if self._folder is None:
            self._use(ensure(self.plan()))

    def cached_folder(self) -> Path:
        """The folder, also where another process has filled it.

        Raises:
            DataError: nothing was prepared, in this process or by another.
        """
        if self._folder is None:
            folder = self.plan().folder
            if damage(folder) is not None:
                raise DataError(
                    f"No prepared data for {self.task} in {self.cache_dir}: call prepare_data() "
                    "first."
                )
            self._use(folder)
        return self._folder

    def _use(self, folder: Path) -> None:
        self._folder = folder
        self._meta = json.loads((folder / "meta.json").read_text())

    def setup(self, stage: str | None = None) -> None:
        """Open the three splits.

        Raises:
            DataError: nothing was prepared, in this process or by another.
        """
        if hasattr(self, "train_dataset"):
            return
        folder = self.cached_folder()
        for split in SPLITS:
            dataset = self.open_split(folder, split)
            if self.limit is not None and self.limit < len(dataset):
                kept = torch.arange(self.limit) * len(dataset) // self.limit
                dataset = dataset.index_select(kept)
                self._kept[split] = kept
            setattr(self, f"{split}_dataset", dataset)

    @property
    def test_numbers(self) -> Tensor:
        return self._kept["test"] if "test" in self._kept else super().test_numbers

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal for equal samples in equal splits under an equal limit."""
        self.cached_folder()
        parts = [self._meta["content"], self.limit]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


class CachedGraphDataModule(CachedDataModule, GraphDataModule):
    """Graphs from a folder below `cache_dir`; see CachedDataModule."""

    def open_split(self, folder: Path, split: str) -> GraphDataset:
        return GraphDataset(GraphTable(**load_tensors(folder, split)))

    def num_nodes(self, dataset: GraphDataset) -> Tensor:
        """int64 [graphs]: nodes of each graph of a split."""
        return dataset.num_nodes


def check_sizes(sizes: Sequence[int]) -> None:
    """Refuse what are not the numbers of samples of three generated splits."""
    if len(sizes) != len(SPLITS) or min(sizes) < 1:
        raise DataError(
            "Expected three positive numbers of samples (train, validation, test), but "
            f"data.generated_size is {list(sizes)}."
        )
