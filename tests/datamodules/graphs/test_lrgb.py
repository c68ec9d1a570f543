"""The LRGB data module, offline: fabricated raw files in the official layouts."""

import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from torch_geometric.datasets import LRGBDataset

from datamodules import download
from datamodules.errors import DataError
from datamodules.graphs import generated_peptides, generated_superpixels, lrgb
from datamodules.graphs.lrgb import COCO_CLASSES, SPLITS, TASKS, VOC_CLASSES, LRGBDataModule
from datamodules.graphs.molecules import smiles_to_graph
from tests.datamodules.fabricated import (
    MEMBERS,
    PEPTIDES,
    datasets,
    official,
    peptides_as_raw,
    random_graph,
    raw_graphs,
    ready,
    snapshot,
    write_csv,
    write_raw,
)

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
def test_class_names(task, count, tmp_path):
    write_raw(tmp_path / "raw" / "lrgb" / task / "raw", task, raw_graphs(task))
    names = official(task, tmp_path).label_names
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


@pytest.mark.parametrize("task", ["pascalvoc-sp", "coco-sp"])
def test_generated_superpixels(task, tmp_path):
    data = ready(task, tmp_path, source="generated", generated_size=(3, 2, 1), seed=3)
    classes = len(TASKS[task].labels)
    made = generated_superpixels.generate_superpixels(6, 3, classes)
    graphs = [graph for dataset in datasets(data).values() for graph in dataset]
    for got, want in zip(graphs, made, strict=True):
        assert set(got.keys()) == set(want.keys())
        assert all(torch.equal(got[key], want[key]) for key in want.to_dict())
        assert all(got[key].dtype == want[key].dtype for key in want.to_dict())
    assert data.source_used == "generated"
    assert len(data.label_names) == classes
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
    assert data.source_used == data.provenance["source"] == "generated"
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


# --- What a user can get wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"task": "zinc"}, "no LRGB task 'zinc': set data.task to one of peptides-func"),
        ({"source": "offical"}, "no data source 'offical': set data.source to auto"),
        (
            {"task": "pcqm-contact", "source": "generated"},
            "no data source 'generated': set data.source to auto or official",
        ),
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


def test_setup_before_prepare(tmp_path):
    with pytest.raises(DataError, match=r"No prepared data for peptides-func.*call prepare_data"):
        LRGBDataModule("peptides-func", cache_dir=tmp_path).setup()


def test_unreadable_smiles_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.datamodules.fabricated.PEPTIDES", [*PEPTIDES[:-1], "C1CC"])
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


def test_official_peptides(real):
    folder = real(f"lrgb/{lrgb.CSV_FOLDER}")
    for name, md5 in lrgb.CSV_MD5.items():
        download.check_md5(folder / name, md5)
    split = pickle.loads((folder / lrgb.SPLIT_NAME).read_bytes())
    assert {name: len(rows) for name, rows in split.items()} == {
        "train": 10873,
        "val": 2331,
        "test": 2331,
    }
    assert len(np.unique(np.concatenate(list(split.values())))) == 15535
