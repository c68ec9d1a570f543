"""The CIFAR data module, offline: fabricated files in the official layout."""

import hashlib
import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from datamodules.errors import DataError, DownloadError
from datamodules.images import cifar
from datamodules.images.cifar import NAMES, CIFARDataModule
from datamodules.images.generated_shapes import shapes
from tests.datamodules.fabricated import snapshot

SIZES = {"train": 200, "test": 30}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Official files are as large as the fabricated ones."""
    monkeypatch.setattr(cifar, "OFFICIAL", SIZES)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, classes: int = 10, train: int = SIZES["train"]) -> dict[str, tuple]:
    """The two files; their images and labels by name."""
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(0), {}
    for name, count in (SIZES | {"train": train}).items():
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        label = np.arange(count) % classes
        columns = {"img": [{"bytes": png(one), "path": None} for one in images]}
        columns[cifar.COLUMNS[classes]] = label.tolist()
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet")
        made[name] = images, label
    return made


def ready(tmp_path: Path, classes: int = 10, **options) -> CIFARDataModule:
    options = {"data_dir": tmp_path / "raw", "cache_dir": tmp_path / "cache"} | options
    data = CIFARDataModule(classes, **options)
    data.prepare_data()
    data.setup()
    return data


def digest(image: np.ndarray) -> str:
    """Short enough to be told apart by a failing test."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


def rows(dataset) -> list[tuple[str, int]]:
    return [(digest(one["image"].numpy()), int(one["label"])) for one in dataset]


def given(images: np.ndarray, label: np.ndarray) -> list[tuple[str, int]]:
    pairs = zip(images.transpose(0, 3, 1, 2), label.tolist(), strict=True)
    return [(digest(image), kind) for image, kind in pairs]


@pytest.mark.parametrize("classes", [10, 100])
def test_official_files_are_read_and_left_alone(classes, tmp_path):
    made = write(tmp_path / "raw" / f"cifar{classes}", classes)
    before = snapshot(tmp_path / "raw")
    data = ready(tmp_path, classes, source="official")
    assert data.source_used == data.provenance["source"] == "official"
    assert data.provenance["task"] == f"cifar{classes}"
    assert data.provenance["samples"] == {"train": 160, "val": 40, "test": 30}
    assert rows(data.test_dataset) == given(*made["test"])
    both = rows(data.train_dataset) + rows(data.val_dataset)
    assert sorted(both) == sorted(given(*made["train"]))  # so that they are disjoint too
    assert len(data.label_names) == len(set(data.label_names)) == data.classes == classes
    image = made["train"][0][..., 0] / 255
    assert data.mean[0] == pytest.approx(image.mean(), abs=0.01)
    assert data.std[0] == pytest.approx(image.std(), abs=0.01)
    assert snapshot(tmp_path / "raw") == before


def test_what_validates_is_stratified_and_a_function_of_the_seed(tmp_path):
    write(tmp_path / "raw" / "cifar10")
    data = ready(tmp_path)
    assert torch.bincount(data.val_dataset.label).tolist() == [4] * 10
    again = ready(tmp_path, cache_dir=tmp_path / "b")
    other = ready(tmp_path, seed=1)
    larger = ready(tmp_path, validation_share=0.5)
    assert again.fingerprint == data.fingerprint != other.fingerprint
    assert len(larger.val_dataset) == 100


def test_a_subset_never_passes_for_official(tmp_path):
    write(tmp_path / "raw" / "cifar10", train=100)
    with pytest.raises(DownloadError, match="Cannot reach"):
        ready(tmp_path, source="official")
    asked = ready(tmp_path, source="subset")
    with pytest.warns(UserWarning, match="USING SUBSET DATA for cifar10-subset"):
        found = ready(tmp_path)
    for data in (asked, found):
        assert data.provenance["source"] == "subset"
        assert data.provenance["task"] == "cifar10-subset"
        assert data.provenance["samples"] == {"train": 80, "val": 20, "test": 30}


def test_official_files_are_no_subset(tmp_path):
    write(tmp_path / "raw" / "cifar10")
    with pytest.raises(DownloadError, match="found all of them: set"):
        ready(tmp_path, source="subset")
    with pytest.raises(DownloadError, match="found none"):
        ready(tmp_path, 100, source="subset")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert ready(tmp_path).source_used == "official"


def test_what_is_downloaded_is_read_like_files(tmp_path, monkeypatch):
    write(tmp_path / "raw" / "cifar10")
    folder, asked = tmp_path / "raw" / "cifar10", []

    def load_dataset(name, **options):
        asked.append((name, options["revision"]))
        tables = {name: parquet.read_table(folder / f"{name}.parquet") for name in SIZES}
        return {n: SimpleNamespace(data=SimpleNamespace(table=t)) for n, t in tables.items()}

    hub = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(cifar, "hub_datasets", lambda what: hub)
    loaded = ready(tmp_path, source="official", data_dir=None)
    assert asked == [("uoft-cs/cifar10", cifar.REVISIONS[10])]
    assert loaded.fingerprint == ready(tmp_path, source="official").fingerprint
    hub.load_dataset = lambda *names, **options: 1 / 0
    with pytest.raises(DownloadError, match=r"Cannot download cifar100 \(division by zero\)"):
        ready(tmp_path, 100, source="official", data_dir=None)


def test_images_are_decoded_once(tmp_path, monkeypatch):
    write(tmp_path / "raw" / "cifar10")
    data = ready(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cifar.CIFARDataModule, "_decode", lambda *_: pytest.fail("decoded again"))
        assert ready(tmp_path).fingerprint == data.fingerprint
    saved = next((tmp_path / "cache" / "cifar").glob("cifar10-official-*")) / "train.pt"
    saved.write_bytes(saved.read_bytes()[:-8])  # as a full disk would leave it
    with pytest.warns(UserWarning, match="damaged"):
        assert ready(tmp_path).fingerprint == data.fingerprint


def test_without_data_auto_generates_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="USING GENERATED DATA for cifar10"):
        data = ready(tmp_path, data_dir=None, generated_size=(60, 20, 10))
    assert data.source_used == "generated"
    assert data.provenance["samples"] == {"train": 60, "val": 20, "test": 10}
    splits = [set(rows(d)) for d in (data.train_dataset, data.val_dataset, data.test_dataset)]
    assert not splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2]
    larger = ready(tmp_path, source="generated", generated_size=(90, 20, 10))
    assert rows(larger.test_dataset) == rows(data.test_dataset)


def test_generated_classes_are_told_by_placement_and_not_by_colours():
    image, label = shapes(4000, 10, 32, np.random.default_rng(0))
    assert np.bincount(label, minlength=10).min() > 300
    train, test = slice(0, 3000), slice(3000, None)
    onehot = np.eye(10)[label]

    def accuracy(features: np.ndarray) -> float:
        features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
        gram = features[train].T @ features[train] + 10 * np.eye(features.shape[1])
        weights = np.linalg.solve(gram, features[train].T @ onehot[train])
        return ((features[test] @ weights).argmax(axis=1) == label[test]).mean()

    levels = np.stack([(image // 32 == v).mean(axis=(2, 3)) for v in range(8)], axis=1)
    assert accuracy(levels.reshape(len(image), -1)) < 0.2


@pytest.mark.parametrize("classes", [2, 10, 100, 200, 1000])
def test_shapes_of_all_classes_stay_inside(classes):
    image, label = shapes(40, classes, 64, np.random.default_rng(0))
    assert image.dtype == np.uint8
    assert label.max() < classes
    edge = np.concatenate(
        [image[..., :2, :].reshape(40, 3, -1), image[..., :2].reshape(40, 3, -1)], 2
    )
    assert edge.std(axis=2).max() < 30  # the ground alone, with its grain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 20}, "Expected 10 or 100 classes, but data.classes is 20"),
        ({"source": "hub"}, "set data.source to auto or one of official, subset, generated"),
        ({"validation_share": 1.0}, "data.validation_share is 1.0"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(DataError, match=message):
        CIFARDataModule(**options)


def cut_short(folder: Path) -> None:
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:200])


def spoil_pages(folder: Path) -> None:
    """What stands between the first and the last bytes, which tell of the columns."""
    path = folder / "train.parquet"
    content = bytearray(path.read_bytes())
    content[8 : len(content) // 2] = b"\xff" * (len(content) // 2 - 8)
    path.write_bytes(content)


def rewrite(folder: Path, change) -> None:
    columns = parquet.read_table(folder / "train.parquet").to_pydict()
    change(columns)
    parquet.write_table(pa.table(columns), folder / "train.parquet")


def grey(columns: dict) -> None:
    columns["img"][3]["bytes"] = png(np.zeros((32, 32), dtype=np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "test.parquet").unlink(), "test.parquet is missing: add it"),
        (cut_short, "cannot be read .*: download it again"),
        (spoil_pages, "cannot be read .*: download it again"),
        (lambda f: rewrite(f, lambda c: c.pop("label")), "with img and label in train of cifar10"),
        (lambda f: rewrite(f, lambda c: c["label"].__setitem__(0, 10)), "labels from 0 to 9"),
        (lambda f: rewrite(f, lambda c: c["img"][7].update(bytes=b"PNG")), "in row 7 of train"),
        (lambda f: rewrite(f, grey), "in row 3 of train"),
    ],
)
def test_damaged_files_are_one_sentence_and_nothing_takes_their_place(damage, message, tmp_path):
    folder = tmp_path / "raw" / "cifar10"
    write(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        ready(tmp_path)  # auto
    assert not list((tmp_path / "cache").glob("cifar/cifar10-*"))


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist: correct the path"):
        ready(tmp_path)


def test_setup_without_preparation_is_one_sentence(tmp_path):
    data = CIFARDataModule(source="generated", cache_dir=tmp_path)
    with pytest.raises(DataError, match="call prepare_data"):
        data.setup()


def test_names_are_those_of_uoft_cs():
    assert [len(names.split()) for names in NAMES.values()] == [10, 100]
    assert all(names.split() == sorted(names.split()) for names in NAMES.values())


def test_real_files(real, tmp_path, monkeypatch):
    folder = real("cifar10")
    monkeypatch.setattr(cifar, "OFFICIAL", {"train": 50_000, "test": 10_000})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = ready(tmp_path, data_dir=str(folder.parent))
    sizes = {"official": (40_000, 10_000, 10_000), "subset": (16_000, 4_000, 10_000)}
    assert tuple(data.provenance["samples"].values()) == sizes[data.source_used]
    assert torch.bincount(data.test_dataset.label).tolist() == [1000] * 10
    # As published: 0.491, 0.482, 0.447 and 0.247, 0.244, 0.262.
    assert data.mean == pytest.approx([0.491, 0.482, 0.447], abs=0.005)
    assert data.std == pytest.approx([0.247, 0.244, 0.262], abs=0.005)
