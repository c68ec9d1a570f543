"""ZINC from raw files in torch-geometric's layout, fabricated, to a trained model; no network."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from datamodules.errors import DataError, DownloadError
from datamodules.graphs import zinc
from datamodules.graphs.zinc import RAW_NAMES, ZINCDataModule
from tests.running import call_main, report_of

INDEX = {"train": [0, 2, 3, 5], "val": [1, 0], "test": [1]}


def molecule(atoms: int, seed: int) -> dict[str, torch.Tensor]:
    """A raw molecule, a path of atoms with random bonds."""
    rng = torch.Generator().manual_seed(seed)
    bond = torch.randint(1, 4, (atoms - 1,), generator=rng)
    adjacency = torch.diag(bond, 1) + torch.diag(bond, -1)
    return {
        "num_atom": atoms,
        "atom_type": torch.randint(28, (atoms,), generator=rng),
        "bond_type": adjacency,
        "logP_SA_cycle_normalized": torch.randn(1, generator=rng),
    }


def write_raw(folder: Path) -> Path:
    """Raw files of six molecules a split, of which the subset takes some; `folder`'s parent."""
    raw = folder / "zinc" / "raw"
    raw.mkdir(parents=True)
    for seed, (split, index) in enumerate(INDEX.items()):
        molecules = [molecule(3 + i, 10 * seed + i) for i in range(6)]
        (raw / f"{split}.pickle").write_bytes(pickle.dumps(molecules))
        (raw / f"{split}.index").write_text(",".join(map(str, index)) + "\n")
    return folder


def test_the_subset_is_read_as_it_was_written(tmp_path):
    data = ZINCDataModule(data_dir=write_raw(tmp_path / "raw"), cache_dir=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    for seed, (split, index) in enumerate(INDEX.items()):
        dataset = getattr(data, f"{split}_dataset")
        assert len(dataset) == len(index)
        for graph, i in zip(dataset, index, strict=True):
            raw = molecule(3 + i, 10 * seed + i)
            assert graph.x.flatten().equal(raw["atom_type"])
            adjacency = torch.zeros_like(raw["bond_type"])
            adjacency[tuple(graph.edge_index)] = graph.edge_attr.flatten()
            assert adjacency.equal(raw["bond_type"])
            assert graph.y.equal(raw["logP_SA_cycle_normalized"].view(1, 1))
    assert data.provenance["source"] == "official"
    assert data.provenance["graphs"] == {"train": 4, "val": 2, "test": 1}
    assert sorted(p.name for p in (tmp_path / "raw" / "zinc" / "raw").iterdir()) == sorted(
        RAW_NAMES
    )


@pytest.mark.parametrize("missing", [None, "val.index"])
def test_without_files_and_network_one_sentence_says_what_to_do(tmp_path, missing):
    folder = tmp_path / "raw"
    folder.mkdir()
    if missing:
        (write_raw(folder) / "zinc" / "raw" / missing).unlink()
    data = ZINCDataModule(data_dir=folder, cache_dir=tmp_path / "cache")
    with pytest.raises(DownloadError, match="set DATA_DIR to a folder that holds the official"):
        data.prepare_data()


def test_damaged_files_are_one_sentence(tmp_path):
    folder = write_raw(tmp_path / "raw")
    (folder / "zinc" / "raw" / "val.pickle").write_bytes(b"no pickle")
    data = ZINCDataModule(data_dir=folder, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="cannot be read"):
        data.prepare_data()


def test_nothing_is_generated():
    with pytest.raises(
        DataError, match=r"no data source 'generated': set data.source to auto or official"
    ):
        ZINCDataModule(source="generated")


def test_a_download_is_put_in_place(tmp_path, monkeypatch):
    folder = write_raw(tmp_path / "theirs") / "zinc" / "raw"

    def answer(url: str, path: Path) -> None:
        if url != zinc.ZINC.url:
            path.write_bytes((folder / path.name).read_bytes())
            return
        with zipfile.ZipFile(path, "w") as file:
            for split in INDEX:
                file.write(folder / f"{split}.pickle", f"molecules/{split}.pickle")

    monkeypatch.setattr(zinc, "download", answer)
    data = ZINCDataModule(cache_dir=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    assert len(data.train_dataset) == 4


@pytest.mark.parametrize("experiment", ["edge_zinc", "node_zinc"])
def test_experiments_train(experiment, tmp_path):
    folder = write_raw(tmp_path / "raw")
    call_main(
        f"experiment={experiment}",
        "scale=smoke",
        "trainer=cpu",
        f"data.data_dir={folder}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.batch_size=2",
        "compare=null",
        f"runs_dir={tmp_path / 'runs'}",
    )
    (run,) = (tmp_path / "runs").iterdir()
    report = report_of(run)
    assert report["data"]["source"] == "official"
    assert report["steps"] == 2
    assert report["test"]["mae"] > 0
