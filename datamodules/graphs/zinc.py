"""ZINC: penalised logP of small molecules, the benchmark's subset of 12,000; official files alone.

Source: Irwin et al. 2012, doi:10.1021/ci3001277; subset and splits of Dwivedi et al.,
arXiv:2003.00982, in the files that torch-geometric reads.
"""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, Literal

from torch_geometric.data import Data
from torch_geometric.datasets import ZINC

from datamodules.cache_folder import CachePlan, file_key
from datamodules.cached import SPLITS, CachedGraphDataModule
from datamodules.download import download
from datamodules.errors import DataError, one_line
from datamodules.graphs.graph_cache import GraphTable, graph_plan

RAW_NAMES = [f"{split}.{kind}" for kind in ("pickle", "index") for split in SPLITS]


class ZINCDataModule(CachedGraphDataModule):
    """10,000 training, 1,000 validation and 1,000 test molecules.

    Graphs carry x int64 [n, 1], one of 28 kinds of atoms, every bond in both directions, edge_attr
    int64 [e, 1], its kind from 1 to 3, and y float [1, 1]. Official files are read from `data_dir`,
    never written there, else downloaded to `cache_dir`, where what was read is cached.

    Args:
        source: "official", which is also what "auto" comes to.
        data_dir: folder that may hold `zinc/raw/`, torch-geometric's raw files; None takes the
            environment's DATA_DIR.
        cached: see CachedDataModule.

    Raises:
        DataError: another source and, when preparing, files that are missing and cannot be
            downloaded, or cannot be read.
    """

    task, source_used = "zinc", "official"
    label_names = ["penalised_logP"]  # noqa: RUF012 (never changed)

    def __init__(
        self,
        source: Literal["auto", "official"] = "auto",
        data_dir: str | Path | None = None,
        **cached: Any,
    ):
        super().__init__(**cached)
        if source not in ("auto", "official"):
            raise DataError(f"There are no {source!r} molecules of ZINC: set data.source=official.")
        data_dir = data_dir or os.environ.get("DATA_DIR")
        given = Path(data_dir).expanduser() / "zinc" / "raw" if data_dir else None
        # torch-geometric would empty an incomplete folder, so only a complete one counts.
        self._is_given = given is not None and all((given / name).exists() for name in RAW_NAMES)
        self._raw = given if self._is_given else self.cache_dir / "zinc" / "raw"

    def plan(self) -> CachePlan:
        key: dict[str, Any] = {"url": ZINC.url}
        if self._is_given:
            key = {name: file_key(self._raw / name) for name in RAW_NAMES}
        about = {"task": self.task, "source": "official"}
        return graph_plan(self.cache_dir / "zinc", "zinc-official", key, about, self._read)

    def _read(self, scratch: Path) -> dict[str, GraphTable]:
        if not all((self._raw / name).exists() for name in RAW_NAMES):
            _download_raw(self._raw, scratch)
        try:
            return {split: _table(_RawZINC(split, self._raw, scratch)) for split in SPLITS}
        # Damaged files fail in PyG or in pickle with almost any exception.
        except Exception as error:
            raise DataError(
                f"Expected torch-geometric's raw files of ZINC in {self._raw}, but they cannot be "
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
