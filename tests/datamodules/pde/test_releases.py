"""Files that PDEBench and The Well published, and others that are like them."""

import hashlib

import h5py
import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.pde import releases
from datamodules.pde.module import PDEDataModule

NAME = "1D_Burgers_Sols_Nu0.01.hdf5"


def official(folder, name):
    data = PDEDataModule(
        source="official", data_dir=folder, file=name, samples=(1, 1, 1), cache_dir=folder / "cache"
    )
    data.prepare_data()
    data.setup()
    return data


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["tensor"] = np.ones((3, 4, 8), np.float32)


def test_a_file_of_pdebench_is_known_by_name_and_md5(tmp_path, monkeypatch):
    write(tmp_path / NAME)
    with pytest.raises(DataError, match=r"with MD5 e6d9a4f6.*or set data.source=file\."):
        official(tmp_path, NAME)
    md5 = hashlib.md5((tmp_path / NAME).read_bytes()).hexdigest()
    monkeypatch.setitem(releases.PDEBENCH, NAME, md5)
    assert official(tmp_path, NAME).provenance["source"] == "official"
    monkeypatch.setattr(hashlib, "file_digest", None)  # a file that was checked is not read again
    assert official(tmp_path, NAME).provenance["task"] == "1D_Burgers_Sols_Nu0.01"
    with h5py.File(tmp_path / NAME, "a") as file:
        file["tensor"][0] = 2
    monkeypatch.undo()
    with pytest.raises(DataError, match="with MD5"):
        official(tmp_path, NAME)


@pytest.mark.parametrize("name", ["mine.hdf5", "active_matter/mine.hdf5"])
def test_a_file_of_one_s_own_is_not_official(tmp_path, name):
    write(tmp_path / name)
    with pytest.raises(DataError, match=r"none of the files that .* set data.source=file"):
        official(tmp_path, name)
    folder, _, rest = name.rpartition("/")
    own = PDEDataModule(
        source="file", data_dir=tmp_path / folder, file=rest, samples=(1, 1, 1), cache_dir=tmp_path
    )
    own.prepare_data()
    own.setup()
    assert own.provenance["source"] == "file"


def test_the_well_s_files_are_known_by_layout_and_folder(tmp_path):
    path = tmp_path / "active_matter" / "data" / "train" / "a.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file.attrs["n_trajectories"] = 3
        file.create_group("dimensions").attrs["spatial_dims"] = ["x"]
        file["dimensions/time"], file["dimensions/x"] = np.arange(4.0), np.arange(8.0)
        file["t0_fields/u"] = np.ones((3, 4, 8), np.float32)
    assert official(path.parent, "a.hdf5").provenance["source"] == "official"
    elsewhere = tmp_path / "mine.hdf5"
    elsewhere.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="none of the files"):
        official(tmp_path, "mine.hdf5")
