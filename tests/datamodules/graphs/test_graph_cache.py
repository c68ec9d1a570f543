"""The cache of graphs: crashes, damage, two processes at once, other ranks."""

import hashlib
import json
import multiprocessing
import os
import time
import warnings

import pytest
import torch

from datamodules import cache_folder
from datamodules.errors import DataError
from datamodules.graphs import graph_cache, lrgb
from datamodules.graphs.lrgb import SPLITS, LRGBDataModule
from datamodules.graphs.molecules import smiles_to_graph
from tests.datamodules.fabricated import (
    PEPTIDES,
    official,
    snapshot,
)


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


class Degrees:
    """A PyG transform in form: a row per node, and pairs of nodes, of a whole batch."""

    def __call__(self, data):
        source, target = data.edge_index
        data.degree = torch.bincount(source, minlength=data.num_nodes)
        data.falling_index = data.edge_index[:, source > target].flip(1)
        return data

    def __repr__(self):
        return "Degrees()"


def test_what_a_transform_adds_is_cached_with_each_graph(csv_data, monkeypatch):
    monkeypatch.setattr(graph_cache, "GRAPHS_AT_ONCE", 3)
    plain = official("peptides-func", csv_data)
    data = official("peptides-func", csv_data, pre_transform=Degrees())
    assert data._folder != plain._folder
    assert data.fingerprint == plain.fingerprint
    for split in SPLITS:
        without = getattr(plain, f"{split}_dataset")
        for graph, bare in zip(getattr(data, f"{split}_dataset"), without, strict=True):
            want = Degrees()(bare)
            assert torch.equal(graph.degree, want.degree)
            assert torch.equal(graph.falling_index, want.falling_index)
            assert torch.equal(graph.x, want.x)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["rename", "fsync"])
def test_a_crash_while_writing_leaves_nothing_that_counts(where, csv_data, monkeypatch):
    def crash(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(cache_folder.os, where, crash)
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
        patch.setattr(cache_folder.shutil, "rmtree", lambda *args, **kwargs: None)
        patch.setattr(cache_folder.os, "rename", lambda *args: (_ for _ in ()).throw(Killed))
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


def test_a_graph_may_be_changed_without_changing_the_data(csv_data):
    dataset = official("peptides-func", csv_data).train_dataset
    graph = dataset[0]
    graph.x.zero_()
    graph.y += 5
    assert torch.equal(dataset[0].x, smiles_to_graph(PEPTIDES[1]).x)
    assert dataset[0].y.max() == 1
