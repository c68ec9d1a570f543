"""ZINC: penalised logP of small molecules, the benchmark's subset of 12,000; official files alone.

Source: Irwin et al. 2012, doi:10.1021/ci3001277; subset and splits of Dwivedi et al.,
arXiv:2003.00982, in the files that torch-geometric reads.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch_geometric.data import Data
from torch_geometric.datasets import ZINC

from datamodules.base import SPLITS
from datamodules.cache_folder import CachePlan, file_key
from datamodules.download import download
from datamodules.errors import DataError, one_line
from datamodules.graphs.graph_cache import GraphTable
from datamodules.graphs.module import CachedGraphDataModule

RAW_NAMES = [f"{split}.{kind}" for kind in ("pickle", "index") for split in SPLITS]


class ZINCDataModule(CachedGraphDataModule):
    """10,000 training, 1,000 validation and 1,000 test molecules.

    Graphs carry x int64 [n, 1], one of 28 kinds of atoms, every bond in both directions, edge_attr
    int64 [e, 1], its kind from 1 to 3, and y float [1, 1]. Official files are read from `data_dir`,
    never written there, else downloaded to `cache_dir`, where what was read is cached.

    Args:
        cached: see CachedGraphDataModule; the only source is "official", and `data_dir` may hold
            `zinc/raw/`, torch-geometric's raw files.

    Raises:
        DataError: as CachedDataModule says.
    """

    task = "zinc"
    label_names = ["penalised_logP"]  # noqa: RUF012 (never changed)

    @property
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        return {"official": self._plan_official}

    def _plan_official(self) -> CachePlan:
        key: dict[str, Any] = {"url": ZINC.url}
        raw = self._given()
        if raw is not None:
            key = {name: file_key(raw / name) for name in RAW_NAMES}
        build = partial(self._read, raw or self.cache_dir / "zinc" / "raw")
        return self.plan("zinc", "official", key, build)

    def _given(self) -> Path | None:
        """The raw files in `data_dir`, None if they are to be downloaded."""
        data_dir = self.given_folder()
        folder = data_dir / "zinc" / "raw" if data_dir else None
        # torch-geometric would empty an incomplete folder, so only a complete one counts.
        is_complete = folder is not None and all((folder / n).exists() for n in RAW_NAMES)
        return folder if is_complete else None

    def _read(self, raw: Path, scratch: Path) -> dict[str, GraphTable]:
        if not all((raw / name).exists() for name in RAW_NAMES):
            _download_raw(raw, scratch)
        try:
            return {split: _table(_RawZINC(split, raw, scratch)) for split in SPLITS}
        # Damaged files fail in PyG or in pickle with almost any exception.
        except Exception as error:
            raise DataError(
                f"Expected torch-geometric's raw files of ZINC in {raw}, but they cannot be "
                f"read ({type(error).__name__}: {one_line(error)}): delete that folder, then "
                "download it again."
            ) from error


class _RawZINC(ZINC):
    """PyG's reader of the raw files, told where they lie and where it may write."""

    def __init__(self, split: str, raw: Path, scratch: Path):
        self._raw, self._scratch = raw, scratch
        super().__init__(str(scratch), subset=True, split=split)

    @property
    def raw_dir(self) -> str:
        return str(self._raw)

    @property
    def processed_dir(self) -> str:
        return str(self._scratch / "processed")


def _table(dataset: ZINC) -> GraphTable:
    return GraphTable.of_graphs(
        [
            Data(
                x=graph.x,
                edge_index=graph.edge_index,
                edge_attr=graph.edge_attr.unsqueeze(1),
                y=graph.y.view(1, 1),
            )
            for graph in dataset
        ]
    )


def _download_raw(folder: Path, scratch: Path) -> None:
    """Download the archive and the splits, and put the folder in place at once."""
    archive, unpacked = scratch / "molecules.zip", scratch / "molecules"
    download(ZINC.url, archive)
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(scratch)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"Expected a ZIP archive at {ZINC.url}, got something else: try again, or put "
            "torch-geometric's raw files into <DATA_DIR>/zinc/raw/."
        ) from error
    for split in SPLITS:
        download(ZINC.split_url.format(split), unpacked / f"{split}.index")
    shutil.rmtree(folder, ignore_errors=True)  # incomplete, or this would not have been called
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.rename(unpacked, folder)
