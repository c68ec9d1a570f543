"""ImageNet-1k, Tiny-ImageNet and other trees of image files, one folder a class.

Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", arXiv:1409.0575;
Le and Yang, "Tiny ImageNet Visual Recognition Challenge", 2015, CS 231N.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SPLITS
from datamodules.cache_folder import CachePlan, load_tensors, save_tensors
from datamodules.cached import GENERATED
from datamodules.errors import DataError, DownloadError, one_line
from datamodules.hub import hub_datasets
from datamodules.images.files import (
    FileTable,
    Header,
    ImageFiles,
    Listed,
    attempt,
    decodes,
    ends,
    for_each,
    header,
    listed,
    pixels,
    rgb,
    tree_key,
)
from datamodules.images.generated_shapes import GENERATOR_VERSION, shapes
from datamodules.images.module import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageDataModule,
    Images,
    ImageTable,
    check_share,
    held_out,
)

CACHE_FORMAT = 1
"""Raise it with every change of what cached files hold: older ones are then rebuilt."""
FOLDERS = ("train", "val")
MOST_VALIDATED = 50
"""Images of a class beyond which validation costs time and tells no more."""
MOST_DECODED = 200_000
"""Image files of train or val up to which all are decoded to see whether they can be read."""


@dataclass(frozen=True)
class Official:
    """A set as it was published.

    Attributes:
        images: to train on and to test on.
        hub: its repository at Hugging Face and the revision of it.
        splits: names there of the training and the validation images.
    """

    images: tuple[int, int]
    hub: tuple[str, str]
    splits: tuple[str, str]


OFFICIAL = {
    "imagenet-1k": Official(
        (1_281_167, 50_000),
        ("ILSVRC/imagenet-1k", "49e2ee26f3810fb5a7536bbf732a7b07389a47b5"),
        ("train", "validation"),
    ),
    "tiny-imagenet-200": Official(
        (100_000, 10_000),
        ("zh-plus/tiny-imagenet", "5a77092c28e51558c5586e9c5eb71a7e17a5e43f"),
        ("train", "valid"),
    ),
}

_log = logging.getLogger(__name__)


class ImageNetDataModule(ImageDataModule):
    """Photographs in a tree `<name>/{train,val}/<class>/…`; batches as ImageDataModule says.

    The official validation images, whose labels are public, are the test set; a share of the
    training images of every class validates. Files that cannot be read are left out and others than
    RGB with 8 bits converted; both are counted in `provenance`, and a warning tells of the first.

    Images that all have one size of at most `cached_pixels` are decoded once and cached. Others are
    decoded by the loader: in training a random part of an image, of `crop_area` and with a width of
    3/4 to 4/3 of its height, is scaled to `resolution`; else its middle, `crop_fraction` of the
    shorter side. A training image that can no longer be read is replaced by the next of its class,
    with a warning; one that is validated or tested on is an error.

    Args:
        name: of the folder; of imagenet-1k and tiny-imagenet-200 it is known how many images they
            have and where to download them.
        classes: their number.
        source: "official", from `<data_dir>/<name>`, or downloaded; "subset", from such a folder
            with fewer images than were published; "generated", see `generated_shapes`; or "auto".
        crop_fraction, crop_area: see above.
        cached_pixels: width × height; see above.
        validation_share: of the training images of every class, at most 50 of them.
        images: see ImageDataModule.

    Raises:
        DataError: a number out of range, another number of classes in the folder, and as
            ImageDataModule says.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        resolution: int,
        crop_fraction: float = 0.9,
        crop_area: Sequence[float] = (0.08, 1.0),
        cached_pixels: int = 64 * 64,
        validation_share: float = 0.1,
        **images: Any,
    ):
        super().__init__(resolution, **images)
        check_share(validation_share)
        if classes < 2:
            raise DataError(f"Expected at least two classes, but data.classes is {classes}.")
        if not 0 < crop_fraction <= 1:
            raise DataError(
                f"Expected a fraction of at most 1, but data.crop_fraction is {crop_fraction}."
            )
        if len(crop_area) != 2 or not 0 < crop_area[0] <= crop_area[1] <= 1:
            raise DataError(
                "Expected the least and the largest share of an image, such as [0.08, 1], but "
                f"data.crop_area is {list(crop_area)}."
            )
        # Lightning's own may be None.
        self.name: str = name  # pyright: ignore[reportIncompatibleVariableOverride]
        self.classes, self.validation_share = classes, validation_share
        self.crop_fraction, self.crop_area = crop_fraction, (crop_area[0], crop_area[1])
        self.cached_pixels = cached_pixels

    @property
    def task(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For reports: a part of the images bears its own name."""
        return f"{self.name}-subset" if self.source_used == "subset" else self.name

    @property
    def label_names(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the classes' folders; known after `setup()`."""
        self.cached_folder()
        return self._meta["label_names"]

    @property
    def provenance(self) -> dict[str, Any]:
        about = super().provenance
        return about | {"images": self._meta["images"]}

    @property
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        return {
            "official": partial(self._plan_files, "official"),
            "subset": partial(self._plan_files, "subset"),
            GENERATED: self._plan_generated,
        }

    def _plan_files(self, source: str) -> CachePlan:
        key: dict[str, Any] = {"validation_share": self.validation_share}
        key["cached"] = self.cached_pixels
        if self._root() is not None:
            key["tree"] = self._tree_key
        elif source == "subset" or self.name not in OFFICIAL:
            raise DownloadError(
                f"Expected a folder {self.name} in DATA_DIR, found none: add it, or set "
                "data.source=generated."
            )
        else:
            key["revision"] = OFFICIAL[self.name].hub[1]
        return self._plan(source, key, partial(self._read, source))

    def _plan_generated(self) -> CachePlan:
        key = {"generator": GENERATOR_VERSION, "sizes": self.generated_size}
        return self._plan(GENERATED, key | {"resolution": self.resolution}, self._generate)

    def _plan(
        self, source: str, key: dict[str, Any], fill: Callable[[Path, Path], dict[str, Any]]
    ) -> CachePlan:
        key = {"format": CACHE_FORMAT, "seed": self.seed, "classes": self.classes} | key
        about = {"task": self.name, "source": source}
        return CachePlan(self.cache_dir / "imagenet", f"{self.name}-{source}", key, about, fill)

    @cached_property
    def _tree_key(self) -> str:
        """Of the tree in `data_dir`; kept, as going through a large one takes seconds."""
        root = self._root()
        assert root is not None  # else there is nothing to ask for the key of
        return tree_key(root, FOLDERS)

    def _root(self) -> Path | None:
        """The tree in `data_dir`, None if there is none."""
        data_dir = self.given_folder()
        root = data_dir / self.name if data_dir else None
        return root if root is not None and root.is_dir() else None

    @property
    def _downloaded(self) -> Path:
        return self.cache_dir / "imagenet" / self.name

    def open_split(self, folder: Path, split: str) -> Images | ImageFiles:
        tensors = load_tensors(folder, split)
        if "image" in tensors:
            return Images(ImageTable(**tensors))
        area = self.crop_area if split == "train" else None
        root = self._root() or self._downloaded
        how = (self.resolution, self.crop_fraction, area, self.shuffle_seed)
        return ImageFiles(root, FileTable(**tensors), *how)

    def _read(self, source: str, ready: Path, scratch: Path) -> dict[str, Any]:
        root = self._root() or self._download()
        files = {folder: listed(root, folder) for folder in FOLDERS}
        self._check_number(root, source, files)
        number = self._check_classes(root, files)
        headers = {f: for_each(header, [root / one.path for one in files[f]]) for f in FOLDERS}
        known = [one for f in FOLDERS for one in headers[f] if one is not None]
        one_size = len({(one.width, one.height) for one in known}) == 1
        cached = one_size and known[0].width * known[0].height <= self.cached_pixels
        tables, broken, not_rgb = {}, [], 0
        for folder in FOLDERS:
            _log.info("Looking through %d images of %s.", len(files[folder]), self.name)
            read = _tabulate(root, files[folder], headers[folder], number, cached)
            tables[folder], broken, not_rgb = read[0], broken + read[1], not_rgb + read[2]
        if broken:
            warnings.warn(
                f"{len(broken)} of {sum(map(len, files.values()))} image files of {self.name} "
                f"cannot be read and are left out, {broken[0]} among them.",
                stacklevel=2,
            )
        label = tables["train"].label.numpy()
        validates = held_out(label, self.validation_share, self.seed, MOST_VALIDATED)
        split = {
            "train": tables["train"].select(~validates),
            "val": tables["train"].select(validates),
            "test": tables["val"],
        }
        return self._save(split, ready) | {
            "images": {"corrupt": len(broken), "not_rgb": not_rgb},
            "label_names": list(number),
        }

    def _save(self, tables: dict[str, ImageTable | FileTable], ready: Path) -> dict[str, Any]:
        for split, table in tables.items():
            save_tensors(ready, split, vars(table))
        train = tables["train"]
        shown = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        if isinstance(train, ImageTable):
            shown = train.statistics()
        return {"content": {split: table.content() for split, table in tables.items()}} | shown

    def _check_number(self, root: Path, source: str, files: dict[str, list[Listed]]) -> None:
        """Refuse a part of the published images as official, and all of them as a part."""
        found = tuple(len(files[folder]) for folder in FOLDERS)
        official = OFFICIAL[self.name].images if self.name in OFFICIAL else found
        if source == "official" and found != official:
            raise DownloadError(
                f"Expected {official[0]:,} training and {official[1]:,} validation images in "
                f"{root}, found {found[0]:,} and {found[1]:,}: set data.source=subset, or complete "
                "them."
            )
        if source == "subset" and found == official:
            raise DownloadError(
                f"Expected a part of the images of {self.name} in {root}, found all of them: set "
                "data.source=official."
            )

    def _check_classes(self, root: Path, files: dict[str, list[Listed]]) -> dict[str, int]:
        """The number of every class, in the order of their names."""
        names = {folder: {one.name for one in files[folder]} for folder in FOLDERS}
        if len(names["train"]) != self.classes:
            raise DataError(
                f"Expected {self.classes} folders of classes in {root / 'train'}, found "
                f"{len(names['train'])}: set data.classes={len(names['train'])}."
            )
        if unknown := sorted(names["val"] - names["train"]):
            raise DataError(
                f"Expected the same classes in train and val of {root}, but {unknown[0]} is in val "
                "alone: remove it, or add its training images."
            )
        return {name: i for i, name in enumerate(sorted(names["train"]))}

    def _download(self) -> Path:
        """The tree, downloaded unless it already is."""
        if self._downloaded.is_dir():
            return self._downloaded
        official = OFFICIAL[self.name]
        datasets = hub_datasets(self.name)
        _log.info("Downloading %s from %s.", self.name, official.hub[0])
        partial_tree = self._downloaded.with_name(f".{self.name}.part")
        shutil.rmtree(partial_tree, ignore_errors=True)
        try:
            for folder, split in zip(FOLDERS, official.splits, strict=True):
                rows = datasets.load_dataset(
                    official.hub[0], revision=official.hub[1], split=split, streaming=True
                ).cast_column("image", datasets.Image(decode=False))
                names = rows.features["label"].names
                # Folders are to sort as the labels do.
                if names != sorted(names):
                    names = [f"{i:04d}" for i in range(len(names))]
                for i, row in enumerate(rows):
                    path = partial_tree / folder / names[row["label"]] / f"{i:07d}.JPEG"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(row["image"]["bytes"])
        # Whatever goes wrong on the way fails with almost any exception.
        except Exception as error:
            raise DownloadError(
                f"Cannot download {self.name} from {official.hub[0]} at Hugging Face "
                f"({one_line(error)}): accept its terms there where it asks for it and set "
                f"HF_TOKEN, or set DATA_DIR to a folder with {self.name}/train and {self.name}/val."
            ) from error
        os.replace(partial_tree, self._downloaded)
        return self._downloaded

    def _generate(self, ready: Path, scratch: Path) -> dict[str, Any]:
        tables = {}
        for i, (split, size) in enumerate(zip(SPLITS, self.generated_size, strict=True)):
            # One stream a split: more training images leave the test images as they are.
            rng = np.random.default_rng([self.seed, i])
            image, label = shapes(size, self.classes, self.resolution, rng)
            tables[split] = ImageTable(torch.from_numpy(image), torch.from_numpy(label))
        return self._save(tables, ready) | {
            "images": {"corrupt": 0, "not_rgb": 0},
            "label_names": [f"{i}" for i in range(self.classes)],
        }


def _tabulate(
    root: Path,
    files: list[Listed],
    headers: list[Header | None],
    number: dict[str, int],
    decoded: bool,
) -> tuple[ImageTable | FileTable, list[str], int]:
    """What can be read of files, the paths of what cannot, and how many were not in RGB.

    Args:
        root: of the tree.
        files, headers: of a split.
        number: of every class.
        decoded: a table of pixels is wanted, all of one size; else one of files.
    """
    present = [(one, head) for one, head in zip(files, headers, strict=True) if head is not None]
    paths = [root / one.path for one, _ in present]
    image = None
    if decoded:
        side = (present[0][1].height, present[0][1].width) if present else (1, 1)
        block = image = torch.empty((len(paths), 3, *side), dtype=torch.uint8)
        sound = for_each(lambda i: _decode(paths[i], block[i]), range(len(paths)))
    else:
        sound = for_each(decodes if len(files) <= MOST_DECODED else ends, paths)
    kept = [i for i, good in enumerate(sound) if good]
    lost = sorted({one.path for one in files} - {present[i][0].path for i in kept})
    if not kept:
        raise DataError(
            f"Expected images that can be read in {root}, but none of {len(files)} can: check that "
            "the archive was unpacked without an error."
        )
    label = torch.tensor([number[present[i][0].name] for i in kept])
    not_rgb = sum(present[i][1].mode != "RGB" for i in kept)
    if image is not None:
        return ImageTable(image[kept] if lost else image, label), lost, not_rgb
    size = [(*present[i][1][:2], paths[i].stat().st_size) for i in kept]
    table = FileTable.of([present[i][0].path for i in kept], label, torch.tensor(size))
    return table, lost, not_rgb


def _decode(path: Path, out: Tensor) -> bool:
    """Write an image file's pixels to uint8 [3, H, W]; False where it cannot be read."""
    image = attempt(path, lambda picture: pixels(rgb(picture)))
    if image is not None:
        out.copy_(image)
    return image is not None
