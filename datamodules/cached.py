"""What data modules share whose splits lie in a cache folder, memory-mapped."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Dataset

from datamodules.base import SPLITS, GraphDataModule
from datamodules.cache_folder import CachePlan, damage, ensure
from datamodules.errors import DataError
from datamodules.graph_cache import GraphDataset, GraphTable


class CachedDataModule(GraphDataModule):
    """Train, validation and test graphs from a folder below `cache_dir`.

    A subclass sets `task` and `source_used` and says by `plan` what the folder holds; one that
    chooses among sources replaces `prepare_data` and `cached_folder` instead.

    Args:
        cache_dir: folder to write to.
        limit: at most so many graphs a split, evenly spaced; for smoke runs.
        batch_size, num_workers, shuffle_seed, size_jitter, batch_transform: see GraphDataModule.

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
        batch_transform: Callable[[Batch], Batch] | None = None,
    ):
        super().__init__(batch_size, num_workers, shuffle_seed, size_jitter, batch_transform)
        if limit is not None and limit < 1:
            raise DataError(
                f"Expected a positive number of graphs or null, but data.limit is {limit}."
            )
        self.cache_dir, self.limit = Path(cache_dir).expanduser(), limit
        self._folder: Path | None = None
        self._meta: dict[str, Any] = {}

    @abstractmethod
    def plan(self) -> CachePlan:
        """Which folder holds the graphs, and how to fill it; reads no data."""

    def prepare_data(self) -> None:
        """Make sure that the cache holds the graphs; called by one process a machine.

        Raises:
            DataError: the graphs cannot be had, or the cache cannot be written.
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
        """Open the three splits, memory-mapped.

        Raises:
            DataError: nothing was prepared, in this process or by another.
        """
        if hasattr(self, "train_dataset"):
            return
        folder = self.cached_folder()
        for split in SPLITS:
            # Every process maps the same pages, so that a large task is in memory once.
            saved = torch.load(folder / f"{split}.pt", mmap=True, weights_only=True)
            dataset: Dataset = GraphDataset(GraphTable(**saved))
            if self.limit is not None and self.limit < len(dataset):
                kept = torch.arange(self.limit) * len(dataset) // self.limit
                dataset = dataset.index_select(kept)
            setattr(self, f"{split}_dataset", dataset)

    def num_nodes(self, dataset: GraphDataset) -> Tensor:
        """int64 [graphs]: nodes of each graph of a split."""
        return dataset.num_nodes

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal for equal graphs in equal splits under an equal limit."""
        self.cached_folder()
        parts = [self._meta["content"], self.limit]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def check_sizes(sizes: Sequence[int]) -> None:
    """Refuse what are not the numbers of graphs of three generated splits."""
    if len(sizes) != len(SPLITS) or min(sizes) < 1:
        raise DataError(
            "Expected three positive numbers of graphs (train, validation, test), but "
            f"data.generated_size is {list(sizes)}."
        )
