"""What data modules share whose graphs are all made by ourselves."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch_geometric.data import Data

from datamodules.cache_folder import CachePlan
from datamodules.cached import SPLITS, CachedGraphDataModule, check_sizes
from datamodules.errors import DataError
from datamodules.graphs.graph_cache import GraphTable, graph_plan


class GeneratedDataModule(CachedGraphDataModule):
    """Graphs from a generator.

    A subclass sets `task` and says what it generates by `key` and `generate`.

    Args:
        source: "generated", which is also what "auto" comes to.
        generated_size: graphs in the train, validation and test split.
        seed: of the graphs.
        pre_transform: a PyG transform of whole batches whose results are cached with the graphs,
            see `GraphTable.transformed`; its `repr` is to name all it depends on.
        cached: see CachedDataModule.

    Raises:
        DataError: another source, or a number that is not positive.
    """

    source_used = "generated"

    def __init__(
        self,
        source: Literal["auto", "generated"] = "auto",
        generated_size: Sequence[int] = (4000, 512, 512),
        seed: int = 0,
        pre_transform: Callable[[Data], Data] | None = None,
        **cached: Any,
    ):
        super().__init__(**cached)
        if source not in ("auto", "generated"):
            raise DataError(
                f"These data are generated, there are no {source!r} ones: set "
                "data.source=generated."
            )
        check_sizes(generated_size)
        self.generated_size, self.seed = tuple(generated_size), seed
        self.pre_transform = pre_transform

    @property
    @abstractmethod
    def key(self) -> dict[str, Any]:
        """All that the graphs depend on beside their number and `seed`; for JSON."""

    @abstractmethod
    def generate(self, graphs: int, generator: torch.Generator) -> GraphTable:
        """So many random graphs."""

    def plan(self) -> CachePlan:
        key = {"sizes": self.generated_size, "seed": self.seed, **self.key}
        if self.pre_transform is not None:
            key["pre_transform"] = repr(self.pre_transform)
        about = {"task": self.task, "source": "generated"}
        return graph_plan(self.cache_dir / "generated", self.task, key, about, self._build)

    def _build(self, scratch: Path) -> dict[str, GraphTable]:
        tables = {}
        for i, (split, graphs) in enumerate(zip(SPLITS, self.generated_size, strict=True)):
            # One stream a split: more training graphs leave the test graphs as they are.
            stream = torch.Generator().manual_seed(len(SPLITS) * self.seed + i)
            table = self.generate(graphs, stream)
            tables[split] = (
                table if self.pre_transform is None else table.transformed(self.pre_transform)
            )
        return tables
