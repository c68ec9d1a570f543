"""Graphs laid end to end, in a cache folder that is complete and checked or absent."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

import torch
from filelock import FileLock
from torch import Tensor
from torch_geometric.data import Data, Dataset

from datamodules.errors import DataError, one_line

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
                digest.update(memoryview(tensor.numpy()).cast("B") if tensor.numel() else b"")
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


@dataclass(frozen=True)
class CachePlan:
    """A cached folder and how to fill it.

    Attributes:
        parent: folder of the cache.
        name: start of the folder's name, for people.
        key: whatever the data depend on, for JSON; another key makes another folder.
        about: what else `meta.json` notes.
        build: makes the graphs of every split, given a scratch folder.
    """

    parent: Path
    name: str
    key: dict[str, Any]
    about: dict[str, Any]
    build: Callable[[Path], dict[str, GraphTable]]

    @property
    def folder(self) -> Path:
        """Holds `<split>.pt`, the fields of a GraphTable, for every split, and `meta.json`."""
        digest = hashlib.sha256(self.key_text.encode()).hexdigest()
        return self.parent / f"{self.name}-{digest[:12]}"

    @property
    def key_text(self) -> str:
        """The key and the cache's format as JSON, the same for equal keys."""
        return json.dumps({"format": CACHE_FORMAT, **self.key}, sort_keys=True)


def ensure(plan: CachePlan) -> Path:
    """The plan's folder, filled unless it already is; one process fills it, others wait.

    Raises:
        DataError: the folder cannot be written, or `plan.build` raised it.
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
    ready.mkdir(parents=True)
    scratch.mkdir()
    try:
        tables = plan.build(scratch)
        for split, table in tables.items():
            with (ready / f"{split}.pt").open("wb") as file:
                torch.save(vars(table), file)
                _sync(file)
        meta = {
            **plan.about,
            "key": json.loads(plan.key_text),
            "graphs": {split: len(table.num_nodes) for split, table in tables.items()},
            "content": {split: table.content() for split, table in tables.items()},
            "sha256": {f"{split}.pt": sha256(ready / f"{split}.pt") for split in tables},
            "made_with": {name: _version(name) for name in ("torch", "torch-geometric", "rdkit")},
        }
        with (ready / "meta.json").open("w") as file:
            json.dump(meta, file, indent=1)
            _sync(file)
        _sync_folder(ready)
        os.rename(ready, folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype.is_floating_point or tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor
    low, high = (int(bound) for bound in tensor.aminmax())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return tensor.to(dtype)
    return tensor


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(file: IO) -> None:
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
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
