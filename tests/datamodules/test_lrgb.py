"""The LRGB data module, offline: fabricated raw files in the official layouts, crashes, damage."""

import csv
import gzip
import hashlib
import http.client
import json
import multiprocessing
import os
import pickle
import re
import time
import warnings
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch_geometric.datasets import LRGBDataset

from datamodules import generated_peptides, lrgb
from datamodules.errors import DataError
from datamodules.lrgb import COCO_CLASSES, SPLITS, TASKS, VOC_CLASSES, LRGBDataModule
from datamodules.molecules import smiles_to_graph

PEPTIDES = ["NCC(=O)O", "C[C@H](N)C(=O)O", "[Na+].[Cl-]", "C", "NCC(=O)NCC(=O)O", "CC#N", "C/C=C/C"]
MEMBERS = {"train": [1, 3, 4, 6], "val": [0, 5], "test": [2]}  # a single graph is a case of its own


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No DATA_DIR and no network, unless a test says otherwise."""

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(lrgb, "urlopen", refuse)


def labels_of(i: int) -> list[int]:
    return [(i + k) % 2 for k in range(10)]


def write_csv(folder: Path, monkeypatch) -> Path:
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
    x = torch.randint(100, (nodes, 9), generator=rng)
    edge_attr = torch.randint(2, (3 * nodes, 3), generator=rng)
    if spec.level == "graph":
        return x, edge_attr, ends, torch.rand(1, len(spec.labels), generator=rng)
    pairs = torch.randint(nodes, (2, 5 + seed), generator=rng)
    return x, edge_attr, ends, pairs, torch.randint(2, (5 + seed,), generator=rng)


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


@pytest.fixture
def csv_data(tmp_path, monkeypatch) -> Path:
    write_csv(tmp_path / "raw" / "lrgb" / lrgb.CSV_FOLDER, monkeypatch)
    return tmp_path


# --- The five tasks ---------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_official_layout_is_read_and_left_alone(task, tmp_path):
    raw = raw_graphs(task)
    folder = write_raw(tmp_path / "raw" / "lrgb" / task / "raw", task, raw)
    before = snapshot(tmp_path / "raw")
    data = official(task, tmp_path)
    assert data.source_used == "official"
    for split, dataset in datasets(data).items():
        assert len(dataset) == len(raw[split])
        for got, want in zip(dataset, raw[split], strict=True):
            torch.testing.assert_close(got.x, want[0].to(got.x.dtype), rtol=0, atol=1e-7)
            torch.testing.assert_close(got.edge_attr, want[1].to(got.edge_attr.dtype))
            assert torch.equal(got.edge_index, want[2])
            assert got.num_nodes == len(want[0])
            assert got.edge_index.dtype == torch.int64
            assert got.edge_index.is_contiguous()
            if TASKS[task].level == "graph":
                assert torch.equal(got.y, want[3])
            elif TASKS[task].level == "pair":
                assert torch.equal(got.edge_label_index, want[3])
                assert torch.equal(got.edge_label, want[4])
            else:
                assert got.x.dtype == got.edge_attr.dtype == torch.float32
                assert got.y.dtype == torch.int64
                remap = {0: 0, 1: 1, 90: 80, 13: 12} if task == "coco-sp" else {}
                assert got.y.tolist() == [remap.get(c, c) for c in want[3]]
    assert snapshot(tmp_path / "raw") == before
    assert folder.exists()


@pytest.mark.parametrize("task", TASKS)
def test_graphs_equal_those_of_pyg(task, tmp_path):
    folder = write_raw(tmp_path / "raw" / "lrgb" / task / "raw", task, raw_graphs(task))
    write_raw(tmp_path / "pyg" / task / "raw", task, raw_graphs(task))
    data = official(task, tmp_path)
    for split, dataset in datasets(data).items():
        for got, want in zip(dataset, LRGBDataset(str(tmp_path / "pyg"), task, split), strict=True):
            assert set(got.keys()) == set(want.keys())
            assert all(torch.equal(got[key], want[key]) for key in want.keys())  # noqa: SIM118
            assert all(got[key].dtype == want[key].dtype for key in want.keys())  # noqa: SIM118
    assert folder.exists()


@pytest.mark.parametrize(("task", "count"), [("pascalvoc-sp", 21), ("coco-sp", 81)])
def test_class_names(task, count):
    names = LRGBDataModule(task).label_names
    assert len(names) == len(set(names)) == count
    assert names[0] == "background"
    assert VOC_CLASSES[15] == "person"
    assert COCO_CLASSES[1] == "person"
    assert COCO_CLASSES[80] == "toothbrush"


def test_csv_and_pyg_files_give_the_same_graphs(csv_data):
    from_csv = official("peptides-func", csv_data)
    folder = csv_data / "other" / "lrgb" / "peptides-func" / "raw"
    write_raw(folder, "peptides-func", peptides_as_raw())
    from_raw = LRGBDataModule(
        "peptides-func", "official", csv_data / "other", cache_dir=csv_data / "cache"
    )
    from_raw.prepare_data()
    from_raw.setup()
    for split, dataset in datasets(from_csv).items():
        for one, two in zip(dataset, datasets(from_raw)[split], strict=True):
            for key in ("x", "edge_index", "edge_attr", "y"):
                assert torch.equal(one[key], two[key])
                assert one[key].dtype == two[key].dtype
            assert "smiles" not in two
        assert [graph.smiles for graph in dataset] == [PEPTIDES[i] for i in MEMBERS[split]]
    assert from_csv.fingerprint == from_raw.fingerprint
    assert from_csv.label_names[0] == "antifungal"
    assert from_csv._folder != from_raw._folder


def test_data_dir_comes_from_the_environment_and_may_be_read_only(csv_data, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(csv_data / "raw"))
    for folder, _, _ in os.walk(csv_data / "raw"):
        os.chmod(folder, 0o555)
    before = snapshot(csv_data / "raw")
    data = ready("peptides-func", csv_data)
    assert data.source_used == "official"
    assert snapshot(csv_data / "raw") == before
    for folder, _, _ in os.walk(csv_data / "raw"):
        os.chmod(folder, 0o755)


# --- Downloads --------------------------------------------------------------------------------


def test_csv_is_downloaded_once_and_checked(csv_data, monkeypatch):
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return (csv_data / "raw" / "lrgb" / lrgb.CSV_FOLDER / re.split("[/?]", url)[-2]).open("rb")

    monkeypatch.setattr(lrgb, "urlopen", serve)
    data = ready("peptides-func", csv_data)
    assert data.source_used == "official"
    ready("peptides-func", csv_data, seed=1)
    assert sorted(asked) == sorted(lrgb.CSV_URL.values())
    assert len(data.train_dataset) == 4


@pytest.mark.parametrize("task", ["pascalvoc-sp", "pcqm-contact", "peptides-struct"])
def test_pyg_archive_is_downloaded_once(task, tmp_path, monkeypatch):
    name = LRGBDataset.dwnld_file_name[task]
    folder = write_raw(tmp_path / "server" / name, task, raw_graphs(task))
    with zipfile.ZipFile(tmp_path / "server" / "x.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"{name}/{path.name}")
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return (tmp_path / "server" / "x.zip").open("rb")

    monkeypatch.setattr(lrgb, "urlopen", serve)
    assert len(ready(task, tmp_path).train_dataset) == 3
    assert len(ready(task, tmp_path, limit=2).train_dataset) == 2
    assert asked == [LRGBDataset.urls[task]]


def test_an_incomplete_raw_folder_is_not_emptied(tmp_path):
    folder = write_raw(tmp_path / "raw/lrgb/coco-sp/raw", "coco-sp", raw_graphs("coco-sp"))
    (folder / "val.pickle").unlink()
    with pytest.raises(DataError, match="Cannot download"):
        official("coco-sp", tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["test.pickle", "train.pickle"]


def test_a_broken_download_leaves_no_file(csv_data, monkeypatch):
    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def read(self, size):
            raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr(lrgb, "urlopen", lambda url, timeout: Broken())
    with pytest.raises(DataError, match=r"Cannot download https://www\.dropbox.*DATA_DIR"):
        ready("peptides-func", csv_data, source="official")
    assert [p for p in (csv_data / "cache").rglob("*") if p.suffix in (".gz", ".part")] == []


def test_a_download_with_another_checksum_is_refused(csv_data, monkeypatch):
    (csv_data / "page.html").write_text("<html>This link has expired.</html>")
    monkeypatch.setattr(lrgb, "urlopen", lambda url, timeout: (csv_data / "page.html").open("rb"))
    with pytest.raises(DataError, match=r"with MD5 \w{32}, got \w{32}: the file is damaged"):
        ready("peptides-func", csv_data, source="official")
    with pytest.raises(DataError, match="Expected a ZIP archive at"):
        ready("pcqm-contact", csv_data, source="official")


# --- The cache --------------------------------------------------------------------------------


def test_second_use_reads_the_cache_only(csv_data, monkeypatch):
    first = official("peptides-func", csv_data)
    monkeypatch.setattr(lrgb, "smiles_to_arrays", None)  # would fail if it were called
    before = snapshot(csv_data / "cache")
    second = official("peptides-func", csv_data)
    second.prepare_data()
    second.setup("test")
    assert snapshot(csv_data / "cache") == before
    assert first.fingerprint == second.fingerprint


def test_cache_holds_plain_data_and_says_what_it_is(csv_data):
    data = official("peptides-func", csv_data)
    assert data._folder.parent == csv_data / "cache" / "lrgb"
    assert sorted(p.name for p in data._folder.iterdir()) == [
        "meta.json",
        "test.pt",
        "train.pt",
        "val.pt",
    ]
    saved = torch.load(data._folder / "val.pt", weights_only=True)
    assert saved["smiles"] == [PEPTIDES[0], PEPTIDES[5]]
    meta = json.loads((data._folder / "meta.json").read_text())
    assert meta["graphs"] == {"train": 4, "val": 2, "test": 1}
    assert meta["feature_version"] == 1
    assert meta["key"]["md5"] == lrgb.CSV_MD5
    for name, digest in meta["sha256"].items():
        assert hashlib.sha256((data._folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "meta"])
def test_a_damaged_cache_is_noticed_and_rebuilt(damage, csv_data):
    first = official("peptides-func", csv_data)
    path = first._folder / ("meta.json" if damage == "meta" else "train.pt")
    fingerprint, content = first.fingerprint, path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="damaged.*it is rebuilt") as caught:
        again = official("peptides-func", csv_data)
    assert len(caught) == 1
    assert again.fingerprint == fingerprint
    assert len(again.train_dataset) == 4


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["rename", "fsync"])
def test_a_crash_while_writing_leaves_nothing_that_counts(where, csv_data, monkeypatch):
    def crash(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(lrgb.os, where, crash)
        with pytest.raises(Killed):
            official("peptides-func", csv_data)
    unprepared = LRGBDataModule(
        "peptides-func", "official", csv_data / "raw", cache_dir=csv_data / "cache"
    )
    with pytest.raises(DataError, match="call prepare_data"):
        unprepared.setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(official("peptides-func", csv_data).train_dataset) == 4


def test_remains_of_a_killed_process_are_swept_away(csv_data, monkeypatch):
    with monkeypatch.context() as patch:  # SIGKILL runs no clean-up
        patch.setattr(lrgb.shutil, "rmtree", lambda *args, **kwargs: None)
        patch.setattr(lrgb.os, "rename", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            official("peptides-func", csv_data)
    assert list((csv_data / "cache" / "lrgb").glob(".*.tmp-*"))
    official("peptides-func", csv_data)
    assert not list((csv_data / "cache" / "lrgb").glob(".*.tmp-*"))


def test_two_processes_prepare_once(csv_data, monkeypatch):
    read, log = lrgb.smiles_to_arrays, csv_data / "log"

    def slow(smiles):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.1)
        return read(smiles, processes=1)

    monkeypatch.setattr(lrgb, "smiles_to_arrays", slow)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=official, args=("peptides-func", csv_data)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    pids = log.read_text().split()
    assert len(pids) == len(SPLITS)
    assert len(set(pids)) == 1


def test_other_ranks_set_up_what_rank_zero_prepared(csv_data):
    data = official("peptides-func", csv_data)
    other = LRGBDataModule("peptides-func", "auto", csv_data / "raw", cache_dir=csv_data / "cache")
    other.setup("fit")
    assert other.source_used == "official"
    assert other.fingerprint == data.fingerprint


def test_the_cache_folder_must_be_writable(csv_data):
    (csv_data / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"Cannot prepare the data in .*set data\.cache_dir"):
        official("peptides-func", csv_data)


# --- Generated data ---------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["peptides-func", "peptides-struct"])
def test_generated_peptides(task, tmp_path):
    data = ready(task, tmp_path, source="generated", generated_size=(6, 3, 2), seed=3)
    made = generated_peptides.generate_peptides(11, 3)
    y = made.labels if task == "peptides-func" else made.targets
    graphs = [graph for dataset in datasets(data).values() for graph in dataset]
    assert [graph.smiles for graph in graphs] == made.smiles
    assert torch.equal(torch.cat([graph.y for graph in graphs]), y)
    assert torch.equal(graphs[7].x, smiles_to_graph(made.smiles[7]).x)
    assert data.source_used == "generated"
    assert len(data.label_names) == y.shape[1]
    assert data.label_names != list(TASKS[task].labels)


def test_size_seed_and_version_make_other_data(tmp_path, monkeypatch):
    def make(**kwargs):
        kwargs = {"generated_size": (6, 3, 2), "seed": 0} | kwargs
        return ready("peptides-func", tmp_path, source="generated", **kwargs)

    first = make()
    assert make()._folder == first._folder
    assert make(seed=1).fingerprint != first.fingerprint
    assert make(generated_size=(7, 3, 2)).fingerprint != first.fingerprint
    monkeypatch.setattr(generated_peptides, "GENERATOR_VERSION", -1)
    assert make()._folder != first._folder
    assert make().fingerprint == first.fingerprint  # the fingerprint is of the graphs themselves
    monkeypatch.setattr(lrgb, "FEATURE_VERSION", -1)
    assert len({p.name for p in (tmp_path / "cache" / "lrgb").glob("p*")}) == 4
    make()
    assert len({p.name for p in (tmp_path / "cache" / "lrgb").glob("p*")}) == 5


def test_auto_falls_back_with_one_loud_warning(tmp_path):
    data = LRGBDataModule("peptides-func", cache_dir=tmp_path, generated_size=(4, 2, 2))
    with pytest.warns(UserWarning, match="^USING GENERATED DATA for peptides-func") as caught:
        data.prepare_data()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.prepare_data()
        data.setup()
    message = str(caught[0].message)
    assert "Cannot download" in message
    assert message.count("\n") == 0
    assert data.source_used == data.provenance["source_used"] == "generated"
    other = LRGBDataModule("peptides-func", cache_dir=tmp_path, generated_size=(4, 2, 2))
    other.setup()
    assert other.source_used == "generated"


def test_auto_does_not_hide_a_failure_where_nothing_can_be_generated(tmp_path):
    with pytest.raises(DataError, match="Cannot download"):
        ready("pcqm-contact", tmp_path, source="auto")


# --- Limit, loaders, single graphs ------------------------------------------------------------


def test_limit_is_even_exposed_and_part_of_the_fingerprint(csv_data):
    everything, limited = (
        official("peptides-func", csv_data),
        official("peptides-func", csv_data, limit=2),
    )
    assert [g.smiles for g in limited.train_dataset] == [PEPTIDES[1], PEPTIDES[4]]
    assert limited.train_dataset.num_nodes.tolist() == [6, 9]
    assert len(limited.test_dataset) == 1
    assert limited.provenance["limit"] == limited.limit == 2
    assert limited.provenance["graphs"] == {"train": 2, "val": 2, "test": 1}
    assert everything.provenance["graphs"] == {"train": 4, "val": 2, "test": 1}
    assert limited.fingerprint != everything.fingerprint
    assert re.fullmatch(r"[0-9a-f]{12}", limited.fingerprint)


def test_loaders_shuffle_training_only_and_batch_contacts_rightly(tmp_path):
    task = "pcqm-contact"
    graphs = {s: [random_graph(task, 4 + i, i) for i in range(12)] for s in SPLITS}
    write_raw(tmp_path / "raw" / "lrgb" / task / "raw", task, graphs)
    data = official(task, tmp_path, batch_size=4)

    def order(loader) -> list[int]:
        return [n for batch in loader for n in batch.ptr.diff().tolist()]

    sizes = data.train_dataset.num_nodes.tolist()
    train = data.train_dataloader()
    first, second = order(train), order(train)
    assert sorted(first) == sorted(second) == sizes
    assert first != second
    assert order(data.train_dataloader()) == first  # same seed, same epoch
    validation = data.val_dataloader()
    assert order(validation) == order(validation) == sizes
    assert order(data.test_dataloader()) == sizes
    batch = next(iter(data.val_dataloader()))
    owner = batch.batch[batch.edge_label_index]
    assert torch.equal(owner[0], owner[1])  # no pair spans two graphs


def test_a_graph_may_be_changed_without_changing_the_data(csv_data):
    dataset = official("peptides-func", csv_data).train_dataset
    graph = dataset[0]
    graph.x.zero_()
    graph.y += 5
    assert torch.equal(dataset[0].x, smiles_to_graph(PEPTIDES[1]).x)
    assert dataset[0].y.max() == 1


# --- What a user can get wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"task": "zinc"}, "no LRGB task 'zinc': set data.task to one of peptides-func"),
        ({"source": "offical"}, "no data source 'offical': set data.source to auto"),
        ({"task": "coco-sp", "source": "generated"}, "can be generated, not coco-sp: set data.so"),
        ({"limit": 0}, "positive number of graphs or null, but data.limit is 0"),
        ({"generated_size": (5, 5)}, "three positive numbers .* data.generated_size is"),
        ({"generated_size": (5, 5, 0)}, "three positive numbers .* data.generated_size is"),
    ],
)
def test_wrong_settings(kwargs, sentence):
    with pytest.raises(DataError, match=sentence):
        LRGBDataModule(**{"task": "peptides-func"} | kwargs)


def test_missing_data_dir(tmp_path):
    with pytest.raises(DataError, match=r"Expected a folder.*nowhere.*DATA_DIR.*correct the path"):
        ready("peptides-func", tmp_path, source="official", data_dir=tmp_path / "nowhere")


def test_md5_mismatch(csv_data):
    path = csv_data / "raw" / "lrgb" / lrgb.CSV_FOLDER / lrgb.CSV_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"with MD5 \w{32}, got \w{32}.*delete it and download"):
        official("peptides-func", csv_data)


def test_csv_without_its_split(csv_data):
    (csv_data / "raw" / "lrgb" / lrgb.CSV_FOLDER / lrgb.SPLIT_NAME).unlink()
    with pytest.raises(DataError, match=r"side by side, but .*pickle is missing: add it"):
        official("peptides-func", csv_data)


def test_setup_before_prepare(tmp_path):
    with pytest.raises(DataError, match=r"No prepared data for peptides-func.*call prepare_data"):
        LRGBDataModule("peptides-func", cache_dir=tmp_path).setup()


def test_unreadable_smiles_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.datamodules.test_lrgb.PEPTIDES", [*PEPTIDES[:-1], "C1CC"])
    write_csv(tmp_path / "raw" / "lrgb" / lrgb.CSV_FOLDER, monkeypatch)
    with pytest.raises(DataError, match="RDKit cannot read 'C1CC'"):
        official("peptides-func", tmp_path)


@pytest.mark.parametrize("task", ["peptides-func", "pascalvoc-sp"])
def test_corrupt_raw_file(task, tmp_path):
    folder = write_raw(tmp_path / "raw" / "lrgb" / task / "raw", task, raw_graphs(task))
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"raw LRGB files of {task}.*cannot be read.*delete that"):
        official(task, tmp_path)


def replaced(graph: tuple, index: int, value) -> tuple:
    return (*graph[:index], value, *graph[index + 1 :])


@pytest.mark.parametrize(
    ("task", "index", "spoil", "sentence"),
    [
        ("pascalvoc-sp", 0, lambda t: t * torch.nan, "a value in x that is not finite"),
        ("pascalvoc-sp", 1, lambda t: t / 0, "a value in edge_attr that is not finite"),
        ("pascalvoc-sp", 3, lambda t: [21] * len(t), "a class beyond 0…20"),
        ("peptides-struct", 3, lambda t: t * torch.nan, "a value in y that is not finite"),
        ("peptides-struct", 2, lambda t: t + 7, "an edge_index beyond its nodes"),
        ("pcqm-contact", 3, lambda t: t - 9, "an edge_label_index beyond its nodes"),
    ],
)
def test_bad_values_name_the_graph(task, index, spoil, sentence, tmp_path):
    raw = raw_graphs(task)
    raw["train"][1] = replaced(raw["train"][1], index, spoil(raw["train"][1][index]))
    write_raw(tmp_path / "raw" / "lrgb" / task / "raw", task, raw)
    with pytest.raises(DataError, match=f"Graph 1 of the train split in .* has {sentence}"):
        official(task, tmp_path)


def test_a_graph_without_nodes(tmp_path):
    raw = raw_graphs("pascalvoc-sp")
    x, edge_attr, ends, _ = raw["val"][1]
    raw["val"][1] = (x[:0], edge_attr[:0], ends[:, :0], [])
    write_raw(tmp_path / "raw" / "lrgb" / "pascalvoc-sp" / "raw", "pascalvoc-sp", raw)
    with pytest.raises(DataError, match=r"Graph 1 of the val split in .* has no nodes"):
        official("pascalvoc-sp", tmp_path)


def test_files_of_another_task(tmp_path):
    raw = raw_graphs("peptides-struct")
    write_raw(tmp_path / "raw" / "lrgb" / "peptides-func" / "raw", "peptides-func", raw)
    with pytest.raises(DataError, match=r"y of shape \[3, 10\] .*got \[3, 11\].*not those of"):
        official("peptides-func", tmp_path)


# --- The official data ------------------------------------------------------------------------


def test_official_peptides(tmp_path, monkeypatch):
    monkeypatch.undo()
    folder = Path(os.environ.get("DATA_DIR", "")) / "lrgb" / lrgb.CSV_FOLDER
    if "DATA_DIR" not in os.environ or not folder.is_dir():
        pytest.skip("DATA_DIR has no lrgb/peptides-functional")
    for name, md5 in lrgb.CSV_MD5.items():
        lrgb._check_md5(folder / name, md5)
    split = pickle.loads((folder / lrgb.SPLIT_NAME).read_bytes())
    assert {name: len(rows) for name, rows in split.items()} == {
        "train": 10873,
        "val": 2331,
        "test": 2331,
    }
    assert len(np.unique(np.concatenate(list(split.values())))) == 15535
