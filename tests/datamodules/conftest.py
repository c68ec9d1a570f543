"""No test of a data module reaches the network."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest

from datamodules import download
from datamodules.graphs import lrgb
from tests.datamodules.fabricated import write_csv

DATA_DIR = os.environ.get("DATA_DIR")
"""Before `offline` hides it."""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No DATA_DIR and no network, unless a test says otherwise."""

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(download, "urlopen", refuse)


@pytest.fixture
def real() -> Callable[[str], Path]:
    """Where the real data of a place below DATA_DIR is; a machine without it skips the test."""

    def find(place: str) -> Path:
        if DATA_DIR is None or not Path(DATA_DIR, place).exists():
            pytest.skip(f"needs {place} in DATA_DIR")
        return Path(DATA_DIR, place)

    return find


@pytest.fixture
def csv_data(tmp_path, monkeypatch) -> Path:
    write_csv(tmp_path / "raw" / "lrgb" / lrgb.CSV_FOLDER, monkeypatch)
    return tmp_path
