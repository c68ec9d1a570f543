"""Graphs laid end to end, as a data module keeps them in its cache folder."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch_geometric.data import Data, Dataset

from datamodules.cache_folder import CachePlan, save_tensors

CACHE_FORMAT = 2
"""Raise it with every change of what cached files hold: older ones are then rebuilt."""

GRAPHS_AT_ONCE = 512
"""Graphs that a transform sees as one batch."""


@dataclass
class GraphTable:
    """The graphs of one split laid end to end; what a cached file holds.

    Attributes:
        tensors: one entry per attribute of a graph, joined along `joined_dim`; integers in the
            narrowest type that holds them.
        slices: int64 [graphs + 1] per attribute, where each graph starts.
        dtypes: the type each attribute has in a graph, such as "int64".
        smiles: one string a graph, or None where they are not known.
        derived: names of tensors that a transform computed from the others.
    """

    tensors: dict[str, Tensor]
    slices: dict[str, Tensor]
    dtypes: dict[str, str]
    smiles: list[str] | None = None
    derived: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        tensors: dict[str, Tensor],
        sizes: dict[str, Tensor],
        smiles: list[str] | None = None,
        dtypes: dict[str, str] | None = None,
    ) -> Self:
        """Pack joined tensors, given how much of each belongs to every graph (int64 [graphs])."""
        starts = {key: torch.cat([n.new_zeros(1), n.cumsum(0)]) for key, n in sizes.items()}
        known = {key: str(t.dtype).removeprefix("torch.") for key, t in tensors.items()}
        narrow = {key: _narrow(t).contiguous() for key, t in tensors.items()}
        return cls(narrow, starts, known | (dtypes or {}), smiles)

    @classmethod
    def of_graphs(cls, graphs: list[Data]) -> Self:
        """Pack graphs that have the same tensors, by name, as attributes."""
        parts = {key: [graph[key] for graph in graphs] for key in graphs[0].to_dict()}
        return cls.of(
            {key: torch.cat(part, joined_dim(key)) for key, part in parts.items()},
            {
                key: torch.tensor([tensor.size(joined_dim(key)) for tensor in part])
                for key, part in parts.items()
            },
        )

    def transformed(self, transform: Callable[[Data], Data]) -> Self:
        """With what a PyG transform adds to every graph, computed for many graphs at once.

        Args:
            transform: adds attributes to a batch: one row per node, or indices of nodes [2, …]
                under a name with "index" in it, as batches join them.
        """
        starts = self.slices["edge_index"]
        parts: list[dict[str, Tensor]] = []
        sizes: list[dict[str, Tensor]] = []
        for nodes in self.num_nodes.split(GRAPHS_AT_ONCE):
            first = len(parts) * GRAPHS_AT_ONCE
            edges = starts[first : first + len(nodes) + 1]
            ptr = torch.cat([nodes.new_zeros(1), nodes.cumsum(0)])
            shift = ptr[:-1].repeat_interleave(edges.diff())
            local = self.tensors["edge_index"][:, edges[0] : edges[-1]].long()
            batch = Data(edge_index=local + shift, num_nodes=int(ptr[-1]), ptr=ptr)
            known = set(batch.keys())
            added = {k: v for k, v in transform(batch).items() if k not in known}
            counts, local_parts = {}, {}
            for key, value in added.items():
                if joined_dim(key) == 0:
                    counts[key], local_parts[key] = nodes, value
                    continue
                # Stable, as a graph's own order is part of what was computed for it.
                graph, order = torch.bucketize(value[0], ptr[1:], right=True).sort(stable=True)
                counts[key] = torch.bincount(graph, minlength=len(nodes))
                local_parts[key] = value[:, order] - ptr[graph]
            parts.append(local_parts)
            sizes.append(counts)
        new = {k: torch.cat([part[k] for part in parts], joined_dim(k)) for k in parts[0]}
        counts = {k: torch.cat([count[k] for count in sizes]) for k in parts[0]}
        table = self.of(new, counts)
        return replace(
            self,
            tensors=self.tensors | table.tensors,
            slices=self.slices | table.slices,
            dtypes=self.dtypes | table.dtypes,
            derived=self.derived + list(new),
        )

    @property
    def num_nodes(self) -> Tensor:
        """int64 [graphs]: nodes of each graph."""
        return self.slices["x"].diff()

    def content(self) -> str:
        """SHA-256 of the graphs, whatever holds them and whatever was derived from them."""
        digest = hashlib.sha256()
        for key in sorted(self.tensors.keys() - set(self.derived)):
            for tensor in (self.tensors[key], self.slices[key]):
                digest.update(f"{key} {self.dtypes[key]} {tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().data.cast("B") if tensor.numel() else b"")
        return digest.hexdigest()


class GraphDataset(Dataset):
    """A PyG dataset over a GraphTable: `dataset[i]` is a Data of its own, safe to change.

    Args:
        table: the graphs.
    """

    def __init__(self, table: GraphTable):
        super().__init__()
        self.table = table

    @property
    def num_nodes(self) -> Tensor:
        """int64 [len(self)]: nodes of each graph."""
        return self.table.num_nodes[torch.as_tensor(list(self.indices()), dtype=torch.int64)]

    def len(self) -> int:
        return len(self.table.num_nodes)

    def get(self, idx: int) -> Data:
        graph: dict[str, Any] = {}
        for key, tensor in self.table.tensors.items():
            start, end = self.table.slices[key][idx : idx + 2].tolist()
            part = tensor.narrow(joined_dim(key), start, end - start)
            graph[key] = part.to(getattr(torch, self.table.dtypes[key]), copy=True)
        if self.table.smiles is not None:
            graph["smiles"] = self.table.smiles[idx]
        return Data(**graph)


def joined_dim(key: str) -> int:
    """The dimension along which graphs join an attribute: the last of an index, else the first."""
    return -1 if "index" in key else 0


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype.is_floating_point or tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor
    low, high = (int(bound) for bound in tensor.aminmax())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return tensor.to(dtype)
    return tensor


def graph_plan(
    parent: Path,
    name: str,
    key: dict[str, Any],
    about: dict[str, Any],
    build: Callable[[Path], dict[str, GraphTable]],
) -> CachePlan:
    """The plan of a folder with `<split>.pt`, the fields of a GraphTable, for every split.

    Args:
        parent, name, key, about: see CachePlan.
        build: makes the graphs of every split, given a scratch folder.
    """
    key = {"format": CACHE_FORMAT, **key}
    return CachePlan(parent, name, key, about, partial(_fill, build))


def _fill(
    build: Callable[[Path], dict[str, GraphTable]], ready: Path, scratch: Path
) -> dict[str, Any]:
    tables = build(scratch)
    for split, table in tables.items():
        save_tensors(ready, split, vars(table))
    return {
        "graphs": {split: len(table.num_nodes) for split, table in tables.items()},
        "content": {split: table.content() for split, table in tables.items()},
    }
