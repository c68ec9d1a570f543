"""No test of a data module reaches the network."""

from pathlib import Path
from urllib.error import URLError

import pytest

from datamodules import download, lrgb
from tests.datamodules.fabricated import write_csv


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No DATA_DIR and no network, unless a test says otherwise."""

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(download, "urlopen", refuse)


@pytest.fixture
def csv_data(tmp_path, monkeypatch) -> Path:
    write_csv(tmp_path / "raw" / "lrgb" / lrgb.CSV_FOLDER, monkeypatch)
    return tmp_path
