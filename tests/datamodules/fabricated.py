"""Raw files in official layouts, fabricated, and data modules that read them."""

import csv
import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.graphs import lrgb
from datamodules.graphs.lrgb import SPLITS, TASKS, LRGBDataModule
from datamodules.graphs.molecules import ATOM_FEATURE_SIZES, BOND_FEATURE_SIZES, smiles_to_graph

PEPTIDES = ["NCC(=O)O", "C[C@H](N)C(=O)O", "[Na+].[Cl-]", "C", "NCC(=O)NCC(=O)O", "CC#N", "C/C=C/C"]
MEMBERS = {"train": [1, 3, 4, 6], "val": [0, 5], "test": [2]}  # a single graph is a case of its own


def labels_of(i: int) -> list[int]:
    return [(i + k) % 2 for k in range(10)]


def write_csv(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two official files for PEPTIDES, whose checksums are taken for the official ones."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / lrgb.CSV_NAME, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "smiles", "peptide_seq", "labels", "identifier"])
        for i, smiles in enumerate(PEPTIDES):
            writer.writerow([i, smiles, "GG", str(labels_of(i)), 100 + i])
    split = {name: np.array(rows) for name, rows in MEMBERS.items()}
    (folder / lrgb.SPLIT_NAME).write_bytes(pickle.dumps(split))
    sums = {n: hashlib.md5((folder / n).read_bytes()).hexdigest() for n in lrgb.CSV_MD5}
    monkeypatch.setattr(lrgb, "CSV_MD5", sums)
    return folder


def random_graph(task: str, nodes: int, seed: int) -> tuple:
    """A raw graph in the layout of the official files of a task."""
    rng = torch.Generator().manual_seed(seed)
    spec = TASKS[task]
    ends = torch.randint(nodes, (2, 3 * nodes), generator=rng)
    if spec.level == "node":
        x = torch.rand(nodes, 14, generator=rng, dtype=torch.float64)
        edge_attr = torch.rand(3 * nodes, 2, generator=rng, dtype=torch.float64)
        classes = [0, 1, 90, 13] if task == "coco-sp" else list(range(21))
        return x, edge_attr, ends, [classes[(i + seed) % len(classes)] for i in range(nodes)]
    x = categories(ATOM_FEATURE_SIZES, nodes, rng)
    edge_attr = categories(BOND_FEATURE_SIZES, 3 * nodes, rng)
    if spec.level == "graph":
        return x, edge_attr, ends, torch.rand(1, len(spec.labels), generator=rng)
    pairs = torch.randint(nodes, (2, 5 + seed), generator=rng)
    return x, edge_attr, ends, pairs, torch.randint(2, (5 + seed,), generator=rng)


def categories(sizes: tuple[int, ...], rows: int, rng: torch.Generator) -> torch.Tensor:
    return torch.stack([torch.randint(size, (rows,), generator=rng) for size in sizes], dim=1)


def write_raw(folder: Path, task: str, graphs: dict[str, list[tuple]]) -> Path:
    """PyG's raw files of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, members in graphs.items():
        if task.endswith("-sp"):
            (folder / f"{split}.pickle").write_bytes(pickle.dumps(members))
        else:
            torch.save(members, folder / f"{split}.pt")
    return folder


def raw_graphs(task: str) -> dict[str, list[tuple]]:
    sizes = {"train": (4, 7, 5), "val": (6, 3), "test": (300,)}
    return {
        s: [random_graph(task, n, seed) for seed, n in enumerate(ns)] for s, ns in sizes.items()
    }


def peptides_as_raw() -> dict[str, list[tuple]]:
    graphs = [smiles_to_graph(smiles) for smiles in PEPTIDES]
    return {
        split: [
            (g.x, g.edge_attr, g.edge_index, torch.tensor([labels_of(i)]).float())
            for i in rows
            for g in [graphs[i]]
        ]
        for split, rows in MEMBERS.items()
    }


def ready(task: str, tmp_path: Path, **kwargs) -> LRGBDataModule:
    data = LRGBDataModule(task, cache_dir=tmp_path / "cache", **kwargs)
    data.prepare_data()
    data.setup()
    return data


def official(task: str, tmp_path: Path, **kwargs) -> LRGBDataModule:
    return ready(task, tmp_path, source="official", data_dir=tmp_path / "raw", **kwargs)


def datasets(data: LRGBDataModule) -> dict:
    return {split: getattr(data, f"{split}_dataset") for split in SPLITS}


def snapshot(folder: Path) -> dict[str, tuple]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in folder.rglob("*")
    }


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth colours with some texture, in RGB."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = rng.normal(0, 6, (height, width, 3)).astype(int)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def photographs(root: Path, train: int, val: int, classes: int, side: int | None = None) -> None:
    """JPEG files in `<root>/{train,val}/class<i>/`, square of one `side` or of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in range(classes):
            folder = root / split / f"class{kind}"
            folder.mkdir(parents=True)
            for i in range(count):
                size = (side, side) if side else rng.integers(40, 90, 2).tolist()
                photograph(rng, *size).save(folder / f"{i}.JPEG", quality=95)
