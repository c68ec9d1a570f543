"""The Long Range Graph Benchmark: five tasks, from official files or generated graphs.

Source: Dwivedi et al. 2022, "Long Range Graph Benchmark", arXiv:2206.08164; label names, file
names and checksums from https://github.com/vijaydwivedi75/lrgb.
"""

import csv
import gzip
import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.datasets import LRGBDataset

from datamodules.base import SPLITS
from datamodules.cache_folder import CachePlan, file_key
from datamodules.cached import GENERATED
from datamodules.download import check_md5, download
from datamodules.errors import DataError, one_line
from datamodules.graphs import generated_peptides, generated_superpixels
from datamodules.graphs.graph_cache import GraphTable, joined_dim
from datamodules.graphs.module import CachedGraphDataModule
from datamodules.graphs.molecules import FEATURE_VERSION, smiles_to_arrays


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
    "pascalvoc-sp": generated_superpixels.class_names(len(VOC_CLASSES)),
    "coco-sp": generated_superpixels.class_names(len(COCO_CLASSES)),
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


class LRGBDataModule(CachedGraphDataModule):
    """Train, validation and test graphs of one LRGB task.

    Graphs carry x, edge_index, edge_attr, smiles where known, and y or edge_label_index and
    edge_label as `LRGBTask.level` says. Official files are read from `data_dir`, never written
    there, else downloaded to `cache_dir`; what was read is cached in `cache_dir`.

    Args:
        task: one of `TASKS`.
        source: "official", "generated" (not pcqm-contact), or "auto".
        data_dir: folder that may hold `lrgb/peptides-functional/` (the CSV file and its split) or
            `lrgb/<task>/raw/` (PyG's raw files); None takes the environment's DATA_DIR.
        cached: see CachedGraphDataModule; as many graphs as there are official peptides are
            generated by default.

    Raises:
        DataError: an unknown task, and as CachedDataModule says.

    Source: arXiv:2206.08164.
    """

    usual_size = (10873, 2331, 2331)

    def __init__(
        self,
        task: str,
        source: str = "auto",
        data_dir: str | Path | None = None,
        **cached: Any,
    ):
        if task not in TASKS:
            raise DataError(
                f"There is no LRGB task {task!r}: set data.task to one of {', '.join(TASKS)}."
            )
        self.task = task  # which sources there are depends on it
        super().__init__(source=source, data_dir=data_dir, **cached)

    @property
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        official = {"official": self._plan_official}
        if self.task not in GENERATED_LABELS:
            return official
        return official | {GENERATED: self._plan_generated}

    @property
    def label_names(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the columns of y, or of the classes; generated ones have their own."""
        if self.task in GENERATED_LABELS:
            self.cached_folder()
            if self.source_used == GENERATED:
                return list(GENERATED_LABELS[self.task])
        return list(TASKS[self.task].labels)

    def _plan_official(self) -> CachePlan:
        key: dict[str, Any]
        if (found := self._official_folder()).name == CSV_FOLDER:
            key = {"md5": CSV_MD5, "features": FEATURE_VERSION}
            build = partial(self._read_csv, found)
        else:
            paths = [found / name for name in _raw_names(self.task)]
            if all(path.exists() for path in paths) and not self._downloads_to(found):
                # Some raw files are gigabytes; they are taken as unchanged while these are.
                key = {path.name: file_key(path) for path in paths}
            else:
                key = {"url": LRGBDataset.urls[self.task]}
            build = partial(self._read_pyg, found)
        return self.plan("lrgb", "official", key, build, feature_version=FEATURE_VERSION)

    def _plan_generated(self) -> CachePlan:
        is_molecule = TASKS[self.task].level == "graph"
        generator = generated_peptides if is_molecule else generated_superpixels
        key = {
            "generator": generator.GENERATOR_VERSION,
            "features": FEATURE_VERSION,
            "sizes": self.generated_size,
            "seed": self.seed,
        }
        return self.plan("lrgb", GENERATED, key, self._generate, feature_version=FEATURE_VERSION)

    def _official_folder(self) -> Path:
        """Where the official files are, or will be downloaded to."""
        if (data_dir := self.given_folder()) is not None:
            folder = data_dir / "lrgb" / CSV_FOLDER
            if self.task == "peptides-func" and any((folder / n).exists() for n in CSV_MD5):
                return folder
            # PyG would empty an incomplete raw folder, so only a complete one counts.
            folder = data_dir / "lrgb" / self.task / "raw"
            if all((folder / name).exists() for name in _raw_names(self.task)):
                return folder
        name = CSV_FOLDER if self.task == "peptides-func" else self.task
        return self.cache_dir / "lrgb" / "raw" / name

    def _downloads_to(self, folder: Path) -> bool:
        """Whether the folder is ours to fill, not one of the user's."""
        return folder.parent == self.cache_dir / "lrgb" / "raw"

    def _read_csv(self, folder: Path, scratch: Path) -> dict[str, GraphTable]:
        for name, md5 in CSV_MD5.items():
            path = folder / name
            if not path.exists():
                if not self._downloads_to(folder):
                    raise DataError(
                        f"Expected {' and '.join(CSV_MD5)} side by side, but {path} is missing: "
                        "add it, or unset DATA_DIR to download both."
                    )
                download(CSV_URL[name], path, md5)
            check_md5(path, md5)
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

    def _read_pyg(self, folder: Path, scratch: Path) -> dict[str, GraphTable]:
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
                    f"cannot be read ({type(error).__name__}: {one_line(error)}): delete "
                    "that folder, then download it again."
                ) from error
            _check_graphs(tables[split], self.task, f"{split} split in {folder}")
        return tables

    def _generate(self, scratch: Path) -> dict[str, GraphTable]:
        sizes, labels = self.generated_size, TASKS[self.task].labels
        parts = {
            split: slice(end - size, end)
            for split, size, end in zip(SPLITS, sizes, accumulate(sizes), strict=True)
        }
        _log.info("Generating %d graphs for %s.", sum(sizes), self.task)
        if TASKS[self.task].level == "node":
            graphs = generated_superpixels.generate_superpixels(sum(sizes), self.seed, len(labels))
            return {split: GraphTable.of_graphs(graphs[part]) for split, part in parts.items()}
        made = generated_peptides.generate_peptides(sum(sizes), self.seed)
        y = made.labels if self.task == "peptides-func" else made.targets
        return {split: _molecules(made.smiles[part], y[part]) for split, part in parts.items()}


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
    assert dataset._data is not None
    tensors = {k: v for k, v in dataset._data.to_dict().items() if isinstance(v, Tensor)}
    slices = dataset.slices  # None for a single graph
    sizes = {
        key: slices[key].diff() if slices else torch.tensor([tensor.size(joined_dim(key))])
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


def _download_raw(task: str, folder: Path, scratch: Path) -> None:
    """Download PyG's archive and put its folder in place at once."""
    archive = scratch / f"{task}.zip"
    download(LRGBDataset.urls[task], archive)
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
