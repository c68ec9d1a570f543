"""The Long Range Graph Benchmark: five tasks, from official files or generated peptides.

Source: Dwivedi et al. 2022, "Long Range Graph Benchmark", arXiv:2206.08164; label names, file
names and checksums from https://github.com/vijaydwivedi75/lrgb.
"""

import csv
import gzip
import hashlib
import http.client
import importlib.metadata
import json
import logging
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self
from urllib.request import urlopen

import torch
from filelock import FileLock
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data, Dataset
from torch_geometric.datasets import LRGBDataset

from datamodules import generated_peptides
from datamodules.batching import graph_loader
from datamodules.errors import DataError
from datamodules.molecules import FEATURE_VERSION, smiles_to_arrays

Source = Literal["official", "generated"]

CACHE_FORMAT = 1
"""Raise it with every change of what cached files hold: older ones are then rebuilt."""

SPLITS = ("train", "val", "test")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


PEPTIDE_FUNCTIONS = _names(
    "antifungal, cell_cell_communication, anticancer, drug_delivery_vehicle, antimicrobial,"
    "antiviral, antihypertensive, antibacterial, antiparasitic, toxic"
)
PEPTIDE_PROPERTIES = _names(
    "Inertia_mass_a, Inertia_mass_b, Inertia_mass_c, Inertia_valence_a, Inertia_valence_b,"
    "Inertia_valence_c, length_a, length_b, length_c, Spherocity, Plane_best_fit"
)
VOC_CLASSES = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable,"
    "dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
COCO_CLASSES = _names(
    "background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat,"
    "traffic light, fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep,"
    "cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,"
    "skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,"
    "tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,"
    "orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,"
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,"
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)


@dataclass(frozen=True)
class LRGBTask:
    """What the graphs of a task look like.

    Attributes:
        level: what is labelled: each graph (y float [1, T]), each node (y int64 [N]), or pairs of
            nodes (edge_label_index int64 [2, P] and edge_label [P]).
        node_features: columns of x, categories or real numbers.
        edge_features: columns of edge_attr.
        labels: name of each column of the official y, or of each class.
    """

    level: Literal["graph", "node", "pair"]
    node_features: int
    edge_features: int
    labels: Sequence[str]


TASKS = {
    "peptides-func": LRGBTask("graph", 9, 3, PEPTIDE_FUNCTIONS),
    "peptides-struct": LRGBTask("graph", 9, 3, PEPTIDE_PROPERTIES),
    "pascalvoc-sp": LRGBTask("node", 14, 2, VOC_CLASSES),
    "coco-sp": LRGBTask("node", 14, 2, COCO_CLASSES),
    "pcqm-contact": LRGBTask("pair", 9, 3, ["contact"]),
}
GENERATED_LABELS = {
    "peptides-func": generated_peptides.LABEL_NAMES,
    "peptides-struct": generated_peptides.TARGET_NAMES,
}

CSV_FOLDER = "peptides-functional"
CSV_NAME = "peptide_multi_class_dataset.csv.gz"
SPLIT_NAME = "splits_random_stratified_peptide.pickle"
CSV_MD5 = {
    CSV_NAME: "701eb743e899f4d793f0e13c8fa5a1b4",
    SPLIT_NAME: "5a0114bdadc80b94fc7ae974f13ef061",
}
CSV_URL = {
    CSV_NAME: f"https://www.dropbox.com/s/ol2v01usvaxbsr8/{CSV_NAME}?dl=1",
    SPLIT_NAME: f"https://www.dropbox.com/s/j4zcnx2eipuo0xz/{SPLIT_NAME}?dl=1",
}

_log = logging.getLogger(__name__)


@dataclass
class GraphTable:
    """The graphs of one split laid end to end; what a cached file holds.

    Attributes:
        tensors: one entry per attribute of a graph, joined along its last dimension if its name
            contains "index", else along its first; integers in the narrowest type that holds them.
        slices: int64 [graphs + 1] per attribute, where each graph starts.
        dtypes: the type each attribute has in a graph, such as "int64".
        smiles: one string a graph, or None where they are not known.
    """

    tensors: dict[str, Tensor]
    slices: dict[str, Tensor]
    dtypes: dict[str, str]
    smiles: list[str] | None = None

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

    @property
    def num_nodes(self) -> Tensor:
        """int64 [graphs]: nodes of each graph."""
        return self.slices["x"].diff()

    def content(self) -> str:
        """SHA-256 of the graphs, whatever the file or type that holds them."""
        digest = hashlib.sha256()
        for key in sorted(self.tensors):
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
        return len(self.table.slices["x"]) - 1

    def get(self, idx: int) -> Data:
        graph: dict[str, Any] = {}
        for key, tensor in self.table.tensors.items():
            start, end = self.table.slices[key][idx : idx + 2].tolist()
            part = tensor.narrow(_joined_dim(key), start, end - start)
            graph[key] = part.to(getattr(torch, self.table.dtypes[key]), copy=True)
        if self.table.smiles is not None:
            graph["smiles"] = self.table.smiles[idx]
        return Data(**graph)


_Build = Callable[[Path], dict[str, GraphTable]]


@dataclass(frozen=True)
class _Plan:
    folder: Path
    about: dict[str, Any]
    build: _Build  # given a scratch folder


class LRGBDataModule(LightningDataModule):
    """Train, validation and test graphs of one LRGB task.

    Graphs carry x, edge_index, edge_attr, smiles where known, and y or edge_label_index and
    edge_label as `LRGBTask.level` says. Official files are read from `data_dir`, never written
    there, else downloaded to `cache_dir`; what was read is cached in `cache_dir`.

    Args:
        task: one of `TASKS`.
        source: "official", "generated" (peptides only), or "auto": official if it can be had,
            else generated with a warning.
        data_dir: folder that may hold `lrgb/peptides-functional/` (the CSV file and its split) or
            `lrgb/<task>/raw/` (PyG's raw files); None takes the environment's DATA_DIR.
        cache_dir: folder to write to.
        batch_size: mean number of graphs in a batch.
        num_workers: loading processes.
        limit: at most so many graphs a split, evenly spaced; for smoke runs.
        generated_size: graphs in the generated train, validation and test split.
        seed: of the generated graphs and of shuffling.

    Attributes:
        source_used: "official" or "generated", known after `prepare_data()` or `setup()`.
        train_dataset, val_dataset, test_dataset: known after `setup()`.

    Raises:
        DataError: an unknown task or source, a number that is not positive, and, when preparing,
            data that are missing, damaged or cannot be downloaded.

    Source: arXiv:2206.08164.
    """

    train_dataset: Dataset
    val_dataset: Dataset
    test_dataset: Dataset

    def __init__(
        self,
        task: str,
        source: Literal["auto", "official", "generated"] = "auto",
        data_dir: str | Path | None = None,
        cache_dir: str | Path = "data",
        batch_size: int = 16,
        num_workers: int = 0,
        limit: int | None = None,
        generated_size: Sequence[int] = (10873, 2331, 2331),
        seed: int = 0,
    ):
        super().__init__()
        if task not in TASKS:
            raise DataError(
                f"There is no LRGB task {task!r}: set data.task to one of {', '.join(TASKS)}."
            )
        if source not in ("auto", "official", "generated"):
            raise DataError(
                f"There is no data source {source!r}: set data.source to auto, official or "
                "generated."
            )
        if source == "generated" and task not in GENERATED_LABELS:
            raise DataError(
                f"Only {' and '.join(GENERATED_LABELS)} can be generated, not {task}: set "
                "data.source=official."
            )
        if limit is not None and limit < 1:
            raise DataError(
                f"Expected a positive number of graphs or null, but data.limit is {limit}."
            )
        if len(generated_size) != len(SPLITS) or min(generated_size) < 1:
            raise DataError(
                "Expected three positive numbers of graphs (train, validation, test), but "
                f"data.generated_size is {list(generated_size)}."
            )
        self.task = task
        self.source = source
        data_dir = data_dir or os.environ.get("DATA_DIR")
        self.data_dir = Path(data_dir).expanduser() if data_dir else None
        self.cache_dir = Path(cache_dir).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.limit = limit
        self.generated_size = tuple(generated_size)
        self.seed = seed
        self.source_used: Source | None = None
        self._folder: Path | None = None
        self._meta: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Make sure that the cache holds the data; called by one process a machine.

        Raises:
            DataError: as the class says.
        """
        if self._folder is not None:
            return
        if self.source != "auto":
            self._use(self.source, _ensure(self._plan(self.source)))
            return
        try:
            self._use("official", _ensure(self._plan("official")))
        except DataError as error:
            if self.task not in GENERATED_LABELS:
                raise
            warnings.warn(
                f"USING GENERATED DATA for {self.task}, whose scores cannot be compared with "
                f"published ones, because the official data cannot be had: {error}",
                stacklevel=2,
            )
            self._use("generated", _ensure(self._plan("generated")))

    def setup(self, stage: str | None = None) -> None:
        """Open the three splits, memory-mapped.

        Raises:
            DataError: nothing was prepared, in this process or by another.
        """
        folder = self._located()
        if hasattr(self, "train_dataset"):
            return
        for split in SPLITS:
            # Every process maps the same pages, so that a large task is in memory once.
            saved = torch.load(folder / f"{split}.pt", mmap=True, weights_only=True)
            dataset: Dataset = GraphDataset(GraphTable(**saved))
            if self.limit is not None and self.limit < len(dataset):
                kept = torch.arange(self.limit) * len(dataset) // self.limit
                dataset = dataset.index_select(kept)
            setattr(self, f"{split}_dataset", dataset)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training graphs."""
        return self._loader(self.train_dataset, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation graphs, always in the same order."""
        return self._loader(self.val_dataset, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test graphs, always in the same order."""
        return self._loader(self.test_dataset, shuffle=False)

    @property
    def label_names(self) -> list[str]:
        """Names of the columns of y, or of the classes; for peptides they depend on the source."""
        if self.task in GENERATED_LABELS:
            self._located()
            if self.source_used == "generated":
                return list(GENERATED_LABELS[self.task])
        return list(TASKS[self.task].labels)

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal for equal graphs in equal splits under an equal limit."""
        self._located()
        parts = [self._meta["content"], self.limit]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def provenance(self) -> dict[str, Any]:
        """What a report must say of the data: task, source_used, limit, graphs, fingerprint."""
        self._located()
        count = self._meta["graphs"]
        graphs = {name: min(n, self.limit or n) for name, n in count.items()}
        return {
            "task": self.task,
            "source_used": self.source_used,
            "limit": self.limit,
            "graphs": graphs,
            "fingerprint": self.fingerprint,
        }

    def _loader(self, dataset: Dataset, shuffle: bool) -> DataLoader:
        return graph_loader(
            dataset,
            dataset.num_nodes,
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            num_workers=self.num_workers,
        )

    def _use(self, source: Source, folder: Path) -> None:
        self.source_used, self._folder = source, folder
        self._meta = json.loads((folder / "meta.json").read_text())

    def _located(self) -> Path:
        """The cached folder, also where another process has prepared it."""
        if self._folder is not None:
            return self._folder
        for source in ("official", "generated") if self.source == "auto" else (self.source,):
            try:
                folder = self._plan(source).folder
            except DataError:  # say below what to do instead
                continue
            if _damage(folder) is None:
                self._use(source, folder)
                return folder
        raise DataError(
            f"No prepared data for {self.task} in {self.cache_dir}: call prepare_data() first."
        )

    def _plan(self, source: Source) -> _Plan:
        """Which folder of the cache holds a source, and how to fill it; reads no data."""
        key: dict[str, Any]
        if source == "generated":
            key = {
                "generator": generated_peptides.GENERATOR_VERSION,
                "features": FEATURE_VERSION,
                "sizes": self.generated_size,
                "seed": self.seed,
            }
            build = self._generate
        elif (found := self._official_folder()).name == CSV_FOLDER:
            key = {"md5": CSV_MD5, "features": FEATURE_VERSION}
            build = self._read_csv(found)
        else:
            paths = [found / name for name in _raw_names(self.task)]
            if all(path.exists() for path in paths) and not self._downloads_to(found):
                # Some raw files are gigabytes; they are taken as unchanged while these are.
                key = {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in paths}
            else:
                key = {"url": LRGBDataset.urls[self.task]}
            build = self._read_pyg(found)
        text = json.dumps({"format": CACHE_FORMAT, **key}, sort_keys=True)
        name = f"{self.task}-{source}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        about = {"task": self.task, "source": source, "key": json.loads(text)}
        return _Plan(self.cache_dir / "lrgb" / name, about, build)

    def _official_folder(self) -> Path:
        """Where the official files are, or will be downloaded to."""
        if self.data_dir is not None:
            if not self.data_dir.is_dir():
                raise DataError(
                    f"Expected a folder of data files, but {self.data_dir} (data.data_dir or the "
                    "environment's DATA_DIR) does not exist: correct the path, or unset it to "
                    "download."
                )
            folder = self.data_dir / "lrgb" / CSV_FOLDER
            if self.task == "peptides-func" and any((folder / n).exists() for n in CSV_MD5):
                return folder
            # PyG would empty an incomplete raw folder, so only a complete one counts.
            folder = self.data_dir / "lrgb" / self.task / "raw"
            if all((folder / name).exists() for name in _raw_names(self.task)):
                return folder
        name = CSV_FOLDER if self.task == "peptides-func" else self.task
        return self.cache_dir / "lrgb" / "raw" / name

    def _downloads_to(self, folder: Path) -> bool:
        """Whether the folder is ours to fill, not one of the user's."""
        return folder.parent == self.cache_dir / "lrgb" / "raw"

    def _read_csv(self, folder: Path) -> _Build:
        def build(scratch: Path) -> dict[str, GraphTable]:
            for name, md5 in CSV_MD5.items():
                path = folder / name
                if not path.exists() and self._downloads_to(folder):
                    _download(CSV_URL[name], path, md5)
                _check_md5(path, md5)
            with gzip.open(folder / CSV_NAME, "rt", newline="") as file:
                rows = list(csv.DictReader(file))
            # Its checksum was verified: this pickle holds three arrays of row numbers.
            members = pickle.loads((folder / SPLIT_NAME).read_bytes())
            _log.info("Featurising %d peptides, in about half a minute.", len(rows))
            return {
                split: _molecules(
                    [rows[i]["smiles"] for i in members[split]],
                    torch.tensor([json.loads(rows[i]["labels"]) for i in members[split]]).float(),
                )
                for split in SPLITS
            }

        return build

    def _read_pyg(self, folder: Path) -> _Build:
        def build(scratch: Path) -> dict[str, GraphTable]:
            missing = [n for n in _raw_names(self.task) if not (folder / n).exists()]
            if missing:
                _download_raw(self.task, folder, scratch)
            tables = {}
            for split in SPLITS:
                try:
                    tables[split] = _pyg_table(_RawLRGB(self.task, split, folder, scratch))
                # Damaged files fail in PyG or in pickle with almost any exception.
                except Exception as error:
                    raise DataError(
                        f"Expected PyG's raw LRGB files of {self.task} in {folder}, but they "
                        f"cannot be read ({type(error).__name__}: {_one_line(error)}): delete "
                        "that folder, then download it again."
                    ) from error
                _check_graphs(tables[split], self.task, f"{split} split in {folder}")
            return tables

        return build

    def _generate(self, scratch: Path) -> dict[str, GraphTable]:
        _log.info("Generating %d peptides.", sum(self.generated_size))
        made = generated_peptides.generate_peptides(sum(self.generated_size), self.seed)
        y = made.labels if self.task == "peptides-func" else made.targets
        tables, start = {}, 0
        for split, size in zip(SPLITS, self.generated_size, strict=True):
            part = slice(start, start + size)
            tables[split] = _molecules(made.smiles[part], y[part])
            start += size
        return tables


class _RawLRGB(LRGBDataset):
    """PyG's reader of the raw files, told where they lie and where it may write."""

    def __init__(self, task: str, split: str, raw: Path, scratch: Path):
        self._raw, self._scratch = raw, scratch
        super().__init__(str(scratch), task, split)

    @property
    def raw_dir(self) -> str:
        return str(self._raw)

    @property
    def processed_dir(self) -> str:
        return str(self._scratch / "processed")


def _raw_names(task: str) -> list[str]:
    suffix = "pickle" if task.endswith("-sp") else "pt"
    return [f"{split}.{suffix}" for split in SPLITS]


def _joined_dim(key: str) -> int:
    return -1 if "index" in key else 0


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype.is_floating_point or tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor
    low, high = (int(bound) for bound in tensor.aminmax())
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return tensor.to(dtype)
    return tensor


def _molecules(smiles: list[str], y: Tensor) -> GraphTable:
    arrays = smiles_to_arrays(smiles)
    edges = torch.from_numpy(arrays.num_edges)
    return GraphTable.of(
        {
            "x": torch.from_numpy(arrays.x),
            "edge_index": torch.from_numpy(arrays.edge_index),
            "edge_attr": torch.from_numpy(arrays.edge_attr),
            "y": y,
        },
        {
            "x": torch.from_numpy(arrays.num_atoms),
            "edge_index": edges,
            "edge_attr": edges,
            "y": torch.ones(len(smiles), dtype=torch.int64),
        },
        smiles=list(smiles),
        dtypes={"x": "int64", "edge_index": "int64", "edge_attr": "int64"},
    )


def _pyg_table(dataset: LRGBDataset) -> GraphTable:
    tensors = {k: v for k, v in dataset._data.to_dict().items() if isinstance(v, Tensor)}
    slices = dataset.slices  # None for a single graph
    sizes = {
        key: slices[key].diff() if slices else torch.tensor([tensor.size(_joined_dim(key))])
        for key, tensor in tensors.items()
    }
    return GraphTable.of(tensors, sizes)


def _check_graphs(table: GraphTable, task: str, where: str) -> None:
    """Say which graph is wrong before a model meets it."""
    spec = TASKS[task]
    tensors, nodes = table.tensors, table.num_nodes
    edges = table.slices["edge_index"].diff()
    needed = {
        "graph": {"y": (len(nodes), len(spec.labels))},
        "node": {"y": (int(nodes.sum()),)},
        "pair": {"edge_label_index": (2, -1), "edge_label": (-1,)},
    }[spec.level]
    needed |= {
        "x": (int(nodes.sum()), spec.node_features),
        "edge_index": (2, int(edges.sum())),
        "edge_attr": (int(edges.sum()), spec.edge_features),
    }
    for key, want in needed.items():
        got = tuple(tensors[key].shape)
        if len(got) != len(want) or any(w not in (-1, g) for w, g in zip(want, got, strict=True)):
            raise DataError(
                f"Expected {key} of shape {list(want)} in the {where}, got {list(got)}: the files "
                f"are not those of {task}, download them again."
            )
    wrong: dict[str, Tensor] = {"no nodes": nodes == 0}  # what is wrong: bool [graphs]
    for key, tensor in tensors.items():
        if key.endswith("index"):
            most = nodes.repeat_interleave(table.slices[key].diff())
            bad = ((tensor < 0) | (tensor >= most)).any(0)
            wrong[f"an {key} beyond its nodes"] = _any_in(bad, table.slices[key])
        elif tensor.dtype.is_floating_point:
            bad = ~tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else ~tensor.isfinite()
            wrong[f"a value in {key} that is not finite"] = _any_in(bad, table.slices[key])
        elif key == "y" and spec.level == "node":
            bad = (tensor < 0) | (tensor >= len(spec.labels))
            wrong[f"a class beyond 0…{len(spec.labels) - 1}"] = _any_in(bad, table.slices[key])
    for what, graphs in wrong.items():
        if graphs.any():
            raise DataError(
                f"Graph {int(graphs.nonzero()[0])} of the {where} has {what}: the file is "
                "damaged, download it again."
            )


def _any_in(bad: Tensor, starts: Tensor) -> Tensor:
    count = torch.cat([starts.new_zeros(1), bad.long().cumsum(0)])
    return count[starts[1:]] > count[starts[:-1]]


def _ensure(plan: _Plan) -> Path:
    """The plan's folder, filled unless it already is; one process fills it, others wait."""
    folder = plan.folder
    if _damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            damage = _damage(folder)
            if damage is None:
                return folder
            if folder.exists():
                warnings.warn(f"{damage}: it is rebuilt.", stacklevel=3)
                shutil.rmtree(folder)
            _write(plan)
    except OSError as error:
        raise DataError(
            f"Cannot prepare the data in {folder.parent} ({_one_line(error)}): free some space, "
            "or set data.cache_dir to a folder that can be written to."
        ) from error
    return folder


def _write(plan: _Plan) -> None:
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
            "feature_version": FEATURE_VERSION,
            "graphs": {split: len(table.num_nodes) for split, table in tables.items()},
            "content": {split: table.content() for split, table in tables.items()},
            "sha256": {f"{split}.pt": _sha256(ready / f"{split}.pt") for split in tables},
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


def _damage(folder: Path) -> str | None:
    """What is wrong with a cached folder, None if nothing."""
    if not folder.exists():
        return f"{folder} does not exist"
    try:
        for name, digest in json.loads((folder / "meta.json").read_text())["sha256"].items():
            if _sha256(folder / name) != digest:
                return f"The cached file {folder / name} is damaged (SHA-256 differs)"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"The cached folder {folder} is damaged ({_one_line(error)})"
    return None


def _download_raw(task: str, folder: Path, scratch: Path) -> None:
    """Download PyG's archive and put its folder in place at once."""
    archive = scratch / f"{task}.zip"
    _download(LRGBDataset.urls[task], archive)
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(scratch)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"Expected a ZIP archive at {LRGBDataset.urls[task]}, got something else: try again, "
            f"or put PyG's raw files into <DATA_DIR>/lrgb/{task}/raw/."
        ) from error
    archive.unlink()
    if folder.exists():  # incomplete, or this would not have been called
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.rename(scratch / LRGBDataset.dwnld_file_name[task], folder)


def _download(url: str, path: Path, md5: str | None = None) -> None:
    """Download to a temporary file, check it, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _log.info("Downloading %s.", url)
    try:
        with urlopen(url, timeout=30) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
    except (OSError, http.client.HTTPException) as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"Cannot download {url} ({_one_line(error)}): connect to the network, or set DATA_DIR "
            "to a folder that holds the official files."
        ) from error
    if md5 is not None:
        try:
            _check_md5(part, md5)
        except DataError:
            part.unlink()
            raise
    os.replace(part, path)


def _check_md5(path: Path, md5: str) -> None:
    if not path.exists():
        raise DataError(
            f"Expected {' and '.join(CSV_MD5)} side by side, but {path} is missing: add it, or "
            "unset DATA_DIR to download both."
        )
    got = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if got != md5:
        raise DataError(
            f"Expected {path} with MD5 {md5}, got {got}: the file is damaged or not the official "
            "one, delete it and download it again."
        )


def _sha256(path: Path) -> str:
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
