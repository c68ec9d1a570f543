"""What data modules of graphs share: how graphs are batched, cached and generated."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import Compose

from datamodules.base import SPLITS, DataModule
from datamodules.batching import Samples
from datamodules.cache_folder import CachePlan, load_tensors
from datamodules.cached import GENERATED, CachedDataModule
from datamodules.errors import DataError
from datamodules.graphs.graph_cache import GraphDataset, GraphTable, graph_plan


def join_graphs(graphs: list[Data]) -> Batch:
    """Join graphs to a batch, whose indices are int64 whatever integers those of the graphs are.

    Raises:
        DataError: indices that are not integers.
    """
    return Batch.from_data_list([_with_long_indices(graph) for graph in graphs])


def _with_long_indices(graph: Data) -> Data:
    # Before they are joined: the number of a node in a batch may not fit a narrow type.
    long = {}
    for name, value in graph.to_dict().items():
        if "index" not in name or not isinstance(value, Tensor) or value.dtype == torch.int64:
            continue
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise DataError(
                f"Expected the numbers of nodes, int64, in {name} of a graph, got {value.dtype}: "
                f"convert it by {name}.long()."
            )
        long[name] = value.long()
    return copy(graph).update(long) if long else graph


class GraphDataModule(DataModule):
    """Three datasets of torch-geometric graphs, in batches of about equal numbers of nodes.

    Args:
        size_jitter: see SizeBudgetSampler; by default batches mix all sizes, which batch norm
            needs. Models that pad graphs to the largest of a batch take less time with 0.1.
        pre_transform: a PyG transform of whole batches that is independent of which graphs are in
            them; applied as they are loaded, before `batch_transform`.
        batch_transform, loading: see DataModule.

    Attributes:
        label_names: one name per output column, where they have names.
    """

    counted = "graphs"
    collate = staticmethod(join_graphs)
    # Only read, so a subclass may compute it: a checker cannot be told that.
    label_names: list[str] = []  # noqa: RUF012 (a default, replaced and never changed)

    def __init__(
        self,
        size_jitter: float = 10.0,
        pre_transform: Callable[[Data], Data] | None = None,
        batch_transform: Callable[[Batch], Batch] | None = None,
        **loading: Any,
    ):
        if pre_transform is not None:
            given = [pre_transform, batch_transform] if batch_transform else [pre_transform]
            batch_transform = Compose(given)
        super().__init__(size_jitter=size_jitter, batch_transform=batch_transform, **loading)

    def transfer_batch_to_device(
        self, batch: Data, device: torch.device, dataloader_idx: int
    ) -> Data:
        """Move a batch without waiting: loaders leave those for a GPU in page-locked memory."""
        return batch.to(device, non_blocking=True)

    def sizes(self, dataset: Samples) -> Tensor:
        """int64 [graphs]: nodes of each graph of a split."""
        return torch.tensor([graph.num_nodes for graph in dataset])

    @property
    def fingerprint(self) -> str:
        """12 hex digits, equal for equal graphs in equal splits; known after `setup()`."""
        digest = hashlib.sha256()
        for dataset in (self.train_dataset, self.val_dataset, self.test_dataset):
            for graph in dataset:
                for name, value in sorted(graph.to_dict().items()):
                    digest.update(name.encode())
                    digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else b"")
        return digest.hexdigest()[:12]


class CachedGraphDataModule(CachedDataModule, GraphDataModule):
    """Graphs from a folder below `cache_dir`.

    Args:
        pre_transform: a PyG transform of whole batches whose results are cached with the graphs,
            see `GraphTable.transformed`; its `repr` is to name all it depends on.
        cached: see CachedDataModule and GraphDataModule.
    """

    def __init__(self, pre_transform: Callable[[Data], Data] | None = None, **cached: Any):
        super().__init__(**cached)
        self.pre_transform = pre_transform

    def open_split(self, folder: Path, split: str) -> GraphDataset:
        return GraphDataset(GraphTable(**load_tensors(folder, split)))

    def sizes(self, dataset: Samples) -> Tensor:
        assert isinstance(dataset, GraphDataset)
        return dataset.num_nodes

    def plan(
        self,
        family: str,
        source: str,
        key: dict[str, Any],
        build: Callable[[Path], dict[str, GraphTable]],
        **about: Any,
    ) -> CachePlan:
        """Plan the folder of a source's graphs.

        Args:
            family: the folder's parent below `cache_dir`.
            source: whose graphs they are.
            key: all that they depend on, but for `pre_transform`.
            build: makes the graphs of every split, given a scratch folder.
            about: what else meta.json notes.
        """
        if self.pre_transform is not None:
            key = key | {"pre_transform": repr(self.pre_transform)}
            build = partial(self._transformed, build)
        about = {"task": self.task, "source": source} | about
        return graph_plan(self.cache_dir / family, f"{self.task}-{source}", key, about, build)

    def _transformed(
        self, build: Callable[[Path], dict[str, GraphTable]], scratch: Path
    ) -> dict[str, GraphTable]:
        assert self.pre_transform is not None
        tables = build(scratch)
        return {split: table.transformed(self.pre_transform) for split, table in tables.items()}


class GeneratedGraphDataModule(CachedGraphDataModule):
    """Graphs that are all made by ourselves.

    A subclass sets `task` and says what it generates by `key` and `generate`.

    Args:
        cached: see CachedGraphDataModule.
    """

    usual_size = (4000, 512, 512)

    @property
    @abstractmethod
    def key(self) -> dict[str, Any]:
        """All that the graphs depend on beside their number and `seed`; for JSON."""

    @abstractmethod
    def generate(self, graphs: int, generator: torch.Generator) -> GraphTable:
        """Draw so many random graphs."""

    @property
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        return {GENERATED: self._plan_generated}

    def _plan_generated(self) -> CachePlan:
        key = {"sizes": self.generated_size, "seed": self.seed, **self.key}
        return self.plan("generated", GENERATED, key, self._build)

    def _build(self, scratch: Path) -> dict[str, GraphTable]:
        tables = {}
        for i, (split, graphs) in enumerate(zip(SPLITS, self.generated_size, strict=True)):
            # One stream a split: more training graphs leave the test graphs as they are.
            stream = torch.Generator().manual_seed(len(SPLITS) * self.seed + i)
            tables[split] = self.generate(graphs, stream)
        return tables
