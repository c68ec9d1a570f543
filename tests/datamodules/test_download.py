"""Downloads of official files: checked, once, whole or absent."""

import http.client
import re
import zipfile

import pytest
from torch_geometric.datasets import LRGBDataset

from datamodules import download
from datamodules.errors import DataError
from datamodules.graphs import lrgb
from tests.datamodules.fabricated import (
    official,
    raw_graphs,
    ready,
    write_raw,
)


def test_csv_is_downloaded_once_and_checked(csv_data, monkeypatch):
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return (csv_data / "raw" / "lrgb" / lrgb.CSV_FOLDER / re.split("[/?]", url)[-2]).open("rb")

    monkeypatch.setattr(download, "urlopen", serve)
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

    monkeypatch.setattr(download, "urlopen", serve)
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

    monkeypatch.setattr(download, "urlopen", lambda url, timeout: Broken())
    with pytest.raises(DataError, match=r"Cannot download https://www\.dropbox.*DATA_DIR"):
        ready("peptides-func", csv_data, source="official")
    assert [p for p in (csv_data / "cache").rglob("*") if p.suffix in (".gz", ".part")] == []


def test_a_download_with_another_checksum_is_refused(csv_data, monkeypatch):
    page = csv_data / "page.html"
    page.write_text("<html>This link has expired.</html>")
    monkeypatch.setattr(download, "urlopen", lambda url, timeout: page.open("rb"))
    with pytest.raises(DataError, match=r"with MD5 \w{32}, got \w{32}: the file is damaged"):
        ready("peptides-func", csv_data, source="official")
    with pytest.raises(DataError, match="Expected a ZIP archive at"):
        ready("pcqm-contact", csv_data, source="official")


def test_md5_mismatch(csv_data):
    path = csv_data / "raw" / "lrgb" / lrgb.CSV_FOLDER / lrgb.CSV_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"with MD5 \w{32}, got \w{32}.*delete it and download"):
        official("peptides-func", csv_data)


def test_csv_without_its_split(csv_data):
    (csv_data / "raw" / "lrgb" / lrgb.CSV_FOLDER / lrgb.SPLIT_NAME).unlink()
    with pytest.raises(DataError, match=r"side by side, but .*pickle is missing: add it"):
        official("peptides-func", csv_data)
