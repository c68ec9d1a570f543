"""Trees of image files, offline: fabricated ones with files of every kind and every damage."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.errors import DataError, DownloadError
from datamodules.images import imagenet
from datamodules.images.files import ImageFiles, cut, ends, header, middle_box, random_box, rgb
from datamodules.images.imagenet import ImageNetDataModule, Official
from datamodules.images.module import Images
from tests.datamodules.fabricated import photograph, photographs, snapshot

TINY = "tiny-imagenet-200"
CLASSES, TRAIN, VAL = 3, 10, 4


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiny-ImageNet is as large as the fabricated tree."""
    official = imagenet.OFFICIAL[TINY]
    size = (CLASSES * TRAIN, CLASSES * VAL)
    monkeypatch.setattr(imagenet, "OFFICIAL", {TINY: Official(size, official.hub, official.splits)})


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Tiny-ImageNet, fabricated: images of one size."""
    photographs(tmp_path / "raw" / TINY, TRAIN, VAL, CLASSES, side=24)
    return tmp_path / "raw" / TINY


@pytest.fixture
def large(tmp_path) -> Path:
    """A folder of photographs of several sizes."""
    photographs(tmp_path / "raw" / "pets", TRAIN, VAL, CLASSES)
    return tmp_path / "raw" / "pets"


def ready(root: Path, **options) -> ImageNetDataModule:
    how = {"data_dir": root.parent, "cache_dir": root.parents[1] / "cache", "resolution": 24}
    data = ImageNetDataModule(root.name, **({"classes": CLASSES} | how | options))
    data.prepare_data()
    data.setup()
    return data


def samples(data: ImageNetDataModule) -> tuple[int, ...]:
    return tuple(data.provenance["samples"].values())


def test_small_images_of_one_size_are_decoded_once(tiny, monkeypatch):
    before = snapshot(tiny)
    data = ready(tiny)
    assert data.source_used == "official"
    assert data.task == TINY
    assert samples(data) == (27, 3, 12)
    assert isinstance(data.train_dataset, Images)
    assert data.provenance["images"] == {"corrupt": 0, "not_rgb": 0}
    assert data.label_names == ["class0", "class1", "class2"]
    paths = sorted((tiny / "val").rglob("*.JPEG"))
    for path, one in zip(paths, data.test_dataset, strict=True):
        with Image.open(path) as picture:
            assert (one["image"].permute(1, 2, 0).numpy() == np.asarray(picture)).all()
        assert data.label_names[one["label"]] == path.parent.name
    assert data.mean == pytest.approx(
        (data.train_dataset.table.image / 255).mean(dim=(0, 2, 3)).tolist(), abs=1e-5
    )
    assert snapshot(tiny) == before
    monkeypatch.setattr(imagenet, "header", lambda _: pytest.fail("looked through again"))
    assert ready(tiny).fingerprint == data.fingerprint


def test_large_images_are_read_by_the_loader(large):
    data = ready(large, batch_size=4)
    assert data.source_used == "official"
    assert samples(data) == (27, 3, 12)
    assert isinstance(data.train_dataset, ImageFiles)
    assert data.mean == [0.485, 0.456, 0.406]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape[1:] == (3, 24, 24)
    assert batch["image"].dtype == torch.uint8
    labels = torch.cat([b["label"] for b in data.whole(data.test_dataset)])
    assert labels.tolist() == [0] * VAL + [1] * VAL + [2] * VAL
    assert torch.equal(labels, torch.stack([one["label"] for one in data.test_dataset]))


def test_small_images_of_several_sizes_are_not_cached(tiny):
    photograph(np.random.default_rng(1), 30, 24).save(tiny / "train" / "class0" / "0.JPEG")
    data = ready(tiny)
    assert isinstance(data.train_dataset, ImageFiles)
    assert isinstance(ready(tiny, cached_pixels=24 * 24 - 1).train_dataset, ImageFiles)


def test_what_validates_is_stratified_and_disjoint(tiny):
    data = ready(tiny, validation_share=0.3)
    assert torch.bincount(data.val_dataset.label).tolist() == [3, 3, 3]
    train = {one["image"].numpy().tobytes() for one in data.train_dataset}
    assert not train & {one["image"].numpy().tobytes() for one in data.val_dataset}
    assert len(train) == 21
    assert ready(tiny, validation_share=0.3, cache_dir=tiny.parents[1] / "b").fingerprint == (
        data.fingerprint
    )
    assert ready(tiny, validation_share=0.3, seed=1).fingerprint != data.fingerprint


def test_at_most_fifty_of_a_class_validate(tiny, monkeypatch):
    monkeypatch.setattr(imagenet, "MOST_VALIDATED", 2)
    data = ready(tiny, validation_share=0.5)
    assert torch.bincount(data.val_dataset.label).tolist() == [2, 2, 2]


def test_a_subset_never_passes_for_official(tiny):
    (tiny / "train" / "class1" / "3.JPEG").unlink()
    with pytest.raises(DownloadError, match=r"Expected 30 training and 12 .* found 29 and 12"):
        ready(tiny, source="official")
    asked = ready(tiny, source="subset")
    with pytest.warns(UserWarning, match="USING SUBSET DATA for tiny-imagenet-200-subset"):
        found = ready(tiny)
    for data in (asked, found):
        assert data.provenance["source"] == "subset"
        assert data.provenance["task"] == "tiny-imagenet-200-subset"
        assert samples(data)[2] == 12


def test_the_official_images_are_no_subset(tiny):
    with pytest.raises(DownloadError, match="found all of them"):
        ready(tiny, source="subset")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert ready(tiny).source_used == "official"


def test_a_file_that_is_added_or_taken_away_is_noticed(large):
    first = ready(large)
    photograph(np.random.default_rng(5), 50, 60).save(large / "val" / "class1" / "new.JPEG")
    second = ready(large)
    assert samples(second)[2] == samples(first)[2] + 1
    assert second.fingerprint != first.fingerprint


def deeper(large: Path) -> Path:
    """All images two folders below that of their class; one of them."""
    for path in large.glob("*/class*/*.JPEG"):
        folder = path.parent / "a" / "b"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    return large / "val" / "class1" / "a" / "b" / "1.JPEG"


def test_a_file_that_is_added_or_taken_away_at_any_depth_is_noticed(large):
    path = deeper(large)
    first = ready(large)
    photograph(np.random.default_rng(5), 50, 60).save(path.with_name("new.JPEG"))
    assert samples(ready(large))[2] == samples(first)[2] + 1
    path.unlink()
    third = ready(large)
    assert samples(third)[2] == samples(first)[2]
    assert third.fingerprint != first.fingerprint


@pytest.mark.parametrize("same_size", [False, True])
def test_a_file_that_is_overwritten_in_place_is_noticed(same_size, tiny):
    path = deeper(tiny)
    first, size = ready(tiny), path.stat().st_size
    photograph(np.random.default_rng(5), 24, 24).save(path, quality=30)
    if same_size:  # a JPEG file may have anything behind its end
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert (path.stat().st_size == size) == same_size
    assert ready(tiny).fingerprint != first.fingerprint


def test_a_tree_that_did_not_change_is_read_once(large, monkeypatch):
    deeper(large)
    first = ready(large)
    photograph(np.random.default_rng(5), 50, 60).save(large / "val" / "class1" / ".hidden.JPEG")
    (large / "val" / "class1" / "notes.txt").write_text("no image")
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "listed", lambda *_: pytest.fail("read again"))
        assert ready(large).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "place",
    [
        ".ipynb_checkpoints",
        "@eaDir",
        "class0/.ipynb_checkpoints",
        "class0/@eaDir/0.JPEG",
        "class0/a/.thumbnails/b",
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_what_programs_put_beside_images_is_left_out_at_every_depth(split, place, large):
    first = ready(large)
    copies = large / split / place
    if copies.name == "0.JPEG":  # as network drives do: a folder named like the image
        copies.mkdir(parents=True)
    copies.mkdir(parents=True, exist_ok=True)
    for name in ("0-checkpoint.JPEG", "SYNOPHOTO_THUMB_M.jpg"):
        shutil.copy(large / split / "class0" / "0.JPEG", copies / name)
    shutil.copy(large / split / "class0" / "0.JPEG", large / split / "class0" / "._0.JPEG")
    shutil.copy(large / split / "class0" / "0.JPEG", large / split / "class0" / "@0.JPEG")
    second = ready(large, cache_dir=large.parents[1] / "other")
    assert second.fingerprint == first.fingerprint
    assert second.label_names == first.label_names


def test_a_link_to_a_file_that_is_gone_is_left_out(large):
    first = ready(large)
    (large / "train" / "class0" / "gone.JPEG").symlink_to(large / "nowhere.JPEG")
    with pytest.warns(UserWarning, match="cannot be read and are left out"):
        assert samples(ready(large)) == samples(first)


def original_layout(tiny: Path) -> None:
    """Of Tiny-ImageNet's own archive."""
    lines = []
    (tiny / "val" / "images").mkdir()
    for kind in sorted(tiny.glob("val/class*")):
        for path in sorted(kind.iterdir()):
            name = f"val_{len(lines)}.JPEG"
            lines.append(f"{name}\t{kind.name}\t0\t0\t23\t23\n")
            path.rename(tiny / "val" / "images" / name)
        kind.rmdir()
    (tiny / "val" / "val_annotations.txt").write_text("".join(lines))
    for kind in tiny.glob("train/class*"):
        (kind / "images").mkdir()
        for path in kind.glob("*.JPEG"):
            path.rename(kind / "images" / path.name)
        (kind / f"{kind.name}_boxes.txt").write_text("0.JPEG\t0\t0\t9\t9\n")


def test_tiny_imagenets_own_layout_is_read(tiny):
    plain = ready(tiny)
    original_layout(tiny)
    original = ready(tiny)
    assert original.source_used == "official"
    assert samples(original) == samples(plain)
    images = [
        {(one["image"].numpy().tobytes(), int(one["label"])) for one in data.test_dataset}
        for data in (plain, original)
    ]
    assert images[0] == images[1]


KINDS = {
    "grey.JPEG": lambda p: p.convert("L"),
    "cmyk.JPEG": lambda p: p.convert("CMYK"),
    "palette.png": lambda p: p.convert("P"),
    "alpha.png": lambda p: p.convert("RGBA"),
    "grey_alpha.png": lambda p: p.convert("LA"),
    "deep.png": lambda p: Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257),
    "bits.png": lambda p: p.convert("1"),
}


def spoil(root: Path) -> list[Path]:
    """Add files of every kind and every damage to a class; those that cannot be read."""
    folder, rng = root / "train" / "class0", np.random.default_rng(7)
    for name, change in KINDS.items():
        change(photograph(rng, 24, 24)).save(folder / name)
    whole = (folder / "0.JPEG").read_bytes()
    broken = {
        "empty.JPEG": b"",
        "text.JPEG": b"<html>404</html>" * 20,
        "cut.JPEG": whole[: len(whole) // 2],
        "cut.png": (folder / "alpha.png").read_bytes()[:-40],
        "zeros.JPEG": whole[:200] + bytes(len(whole) - 200),
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    (folder / "._0.JPEG").write_bytes(b"of macOS")
    (folder / "notes.txt").write_text("no image")
    return [folder / name for name in broken]


@pytest.mark.parametrize("way", ["cached", "decoded", "looked through"])
def test_damaged_files_are_left_out_and_others_converted_and_both_are_counted(
    way, tiny, monkeypatch
):
    broken = spoil(tiny)
    if way == "looked through":
        monkeypatch.setattr(imagenet, "MOST_DECODED", 0)
        broken = [path for path in broken if path.name != "zeros.JPEG"]
        (tiny / "train" / "class0" / "zeros.JPEG").unlink()
    how = {} if way == "cached" else {"cached_pixels": 1}
    with pytest.warns(UserWarning, match=rf"{len(broken)} of \d+ image files .* are left out"):
        data = ready(tiny, source="subset", **how)
    assert data.provenance["images"] == {"corrupt": len(broken), "not_rgb": len(KINDS)}
    train, val, test = samples(data)
    assert (train + val, test) == (30 + len(KINDS), 12)
    for split in (data.train_dataset, data.val_dataset, data.test_dataset):
        for one in split:
            assert one["image"].shape == (3, 24, 24)
    assert isinstance(data.train_dataset, Images if way == "cached" else ImageFiles)


@pytest.mark.parametrize("name", KINDS)
def test_conversion_keeps_what_is_seen(name, tmp_path):
    original = photograph(np.random.default_rng(3), 24, 24)
    KINDS[name](original).save(tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        got = np.asarray(rgb(picture)).astype(int)
    grey = np.asarray(original.convert("L")).astype(int)
    assert got.shape == (24, 24, 3)
    assert abs(got.mean() - grey.mean()) < (40 if name == "bits.png" else 8)
    if name == "deep.png":
        assert (got[..., 0] == grey).all()


def test_the_end_of_a_file_is_looked_for(tmp_path):
    photograph(np.random.default_rng(0), 60, 40).save(tmp_path / "a.JPEG")
    photograph(np.random.default_rng(0), 60, 40).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "png.JPEG")  # one of ImageNet's is so
    for name in ("a.JPEG", "a.png", "png.JPEG"):
        path = tmp_path / name
        assert header(path)[:2] == (60, 40)
        assert ends(path)
        path.write_bytes(path.read_bytes()[:-100])
        assert header(path) is not None
        assert not ends(path)


def test_random_boxes_have_the_areas_and_shapes_of_inception():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(500, 375, (0.08, 1.0), rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 500
    assert bottom.max() <= 375
    width, height = right - left, bottom - top
    share = width * height / (500 * 375)
    assert 0.078 < share.min() < 0.1
    assert share.max() > 0.9
    assert 0.74 < (width / height).min() < 0.76
    assert 1.32 < (width / height).max() < 1.34
    narrow = random_box(1000, 10, (1.0, 1.0), rng)  # nothing fits
    assert narrow == pytest.approx((500 - 20 / 3, 0, 500 + 20 / 3, 10))


def test_evaluation_shows_the_middle(tmp_path):
    grey = np.zeros((100, 200, 3), dtype=np.uint8)
    grey[5:95, 55:145] = 200  # .9 of the shorter side
    Image.fromarray(grey).save(tmp_path / "a.png")

    def middle(width, height):
        return middle_box(width, height, 0.9 * min(width, height), 0.9 * min(width, height))

    shown = cut(tmp_path / "a.png", 30, middle)
    assert shown.shape == (3, 30, 30)
    assert (shown[:, 2:-2, 2:-2] == 200).all()
    assert shown.min() > 150  # what lies outside counts at the edges, as when the whole is scaled


def test_a_jpeg_file_that_is_decoded_smaller_shows_the_same(tmp_path):
    photograph(np.random.default_rng(0), 401, 333).save(tmp_path / "a.JPEG", quality=95)
    shutil.copy(tmp_path / "a.JPEG", tmp_path / "b.JPEG")
    with Image.open(tmp_path / "b.JPEG") as picture:
        picture.save(tmp_path / "b.png")
    for box in ((0, 0, 401, 333), (33, 21, 360, 330), (300, 200, 401, 333)):
        drafted, full = (cut(tmp_path / n, 32, lambda *_, b=box: b) for n in ("a.JPEG", "b.png"))
        assert (drafted.int() - full.int()).abs().float().mean() < 1


def test_training_cuts_are_functions_of_seed_epoch_and_copy(large):
    one, again, other = (ready(large, shuffle_seed=seed).train_dataset for seed in (0, 0, 1))
    assert torch.equal(one[3]["image"], again[3]["image"])
    assert not torch.equal(one[3]["image"], other[3]["image"])
    copy = one[3 + len(one)]
    assert copy["index"] == 3
    assert not torch.equal(one[3]["image"], copy["image"])
    one.epoch = 1
    assert not torch.equal(one[3]["image"], again[3]["image"])
    assert len(list(one)) == len(one)


def test_evaluation_knows_no_epoch(large):
    data = ready(large)
    before = data.test_dataset[0]["image"]
    data.test_dataset.epoch = 5
    assert torch.equal(data.test_dataset[0]["image"], before)


def test_an_image_damaged_later_is_replaced_in_training_alone(large):
    data = ready(large)
    path = large / data.train_dataset.table.path(4)
    path.write_bytes(b"gone")
    with pytest.warns(UserWarning, match=rf"{path.name} .*its class is shown"):
        one = data.train_dataset[4]
    assert one["label"] == data.train_dataset.label[4]
    assert one["image"].shape == (3, 24, 24)
    (large / data.test_dataset.table.path(0)).unlink()
    with pytest.raises(DataError, match="held when it was prepared"):
        data.test_dataset[0]


@pytest.mark.filterwarnings("ignore:Expected the image:UserWarning")
def test_where_a_whole_class_is_damaged_later_training_stops(large):
    data = ready(large)
    for path in (large / "train" / "class1").iterdir():
        path.unlink()
    row = int((data.train_dataset.label == 1).nonzero()[0])
    with pytest.raises(DataError, match="no other of its class"):
        data.train_dataset[row]


def test_without_data_auto_generates_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="USING GENERATED DATA for tiny-imagenet-200"):
        data = ready(tmp_path / "raw" / TINY, data_dir=None, generated_size=(20, 8, 4))
    assert samples(data) == (20, 8, 4)
    assert data.train_dataset[0]["image"].shape == (3, 24, 24)
    assert len(data.label_names) == CLASSES


class Rows(list):
    """As `datasets` streams a split."""

    features = {"label": SimpleNamespace(names=["n1", "n2", "n3"])}  # noqa: RUF012

    def cast_column(self, name, feature):
        return self


def test_what_is_downloaded_is_read_like_a_folder(tiny, monkeypatch):
    asked = []

    def load_dataset(name, revision, split, streaming):
        asked.append((name, revision, split))
        folder = tiny / {"train": "train", "valid": "val"}[split]
        return Rows(
            {"image": {"bytes": path.read_bytes()}, "label": int(path.parent.name[-1])}
            for path in sorted(folder.rglob("*.JPEG"))
        )

    hub = SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: None)
    monkeypatch.setattr(imagenet, "hub_datasets", lambda what: hub)
    loaded = ready(tiny, source="official", data_dir=None)
    assert [split for *_, split in asked] == ["train", "valid"]
    assert loaded.label_names == ["n1", "n2", "n3"]
    assert loaded.fingerprint == ready(tiny).fingerprint
    assert ready(tiny, source="official", data_dir=None, seed=1).source_used == "official"
    assert len(asked) == 2  # once
    hub.load_dataset = lambda *_, **__: 1 / 0
    with pytest.raises(DownloadError, match=r"division by zero.*set\s+HF_TOKEN"):
        ready(tiny, source="official", data_dir=None, cache_dir=tiny.parents[1] / "other")
    with pytest.raises(DownloadError, match="Expected a folder pets in DATA_DIR"):
        ready(tiny.parent / "pets", source="official")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "data.classes is 1"),
        ({"crop_fraction": 1.5}, "data.crop_fraction is 1.5"),
        ({"crop_area": (0.0, 1.0)}, "data.crop_area is"),
        ({"validation_share": 0.0}, "data.validation_share is 0.0"),
        ({"source": "hub"}, "set data.source to auto or one of official, subset, generated"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(DataError, match=message):
        ImageNetDataModule(**({"name": TINY, "classes": 3, "resolution": 24} | options))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: shutil.rmtree(r / "val"), "Expected a folder of classes at .*val"),
        (lambda r: [p.unlink() for p in r.glob("val/*/*")], "found none: check that the archive"),
        (lambda r: shutil.rmtree(r / "train" / "class2"), "set data.classes=2"),
        (lambda r: (r / "val" / "class2").rename(r / "val" / "dog"), "dog is in val alone"),
        (lambda r: [p.write_bytes(b"x") for p in r.glob("val/*/*")], "none of 12 can"),
    ],
)
def test_a_damaged_tree_is_one_sentence(damage, message, large):
    damage(large)
    with pytest.raises(DataError, match=message):
        ready(large)
    assert not list((large.parents[1] / "cache").glob("imagenet/pets-*"))


def test_real_files(real, tmp_path, monkeypatch):
    root = real(TINY)
    monkeypatch.setattr(imagenet, "OFFICIAL", {TINY: Official((100_000, 10_000), ("", ""), ())})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = ready(root, classes=200, cache_dir=tmp_path, resolution=64)
    train, val, test = samples(data)
    assert (train + val) % 200 == test % 200 == 0
    assert 0.05 < val / (train + val) < 0.15
    assert data.provenance["images"]["corrupt"] == 0
    assert data.provenance["images"]["not_rgb"] > 0
    assert data.task == (TINY if train + val == 100_000 else f"{TINY}-subset")
    # As published for the whole set: 0.480, 0.448, 0.398.
    assert data.mean == pytest.approx([0.480, 0.448, 0.398], abs=0.01)
