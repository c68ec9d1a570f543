"""CIFAR-10 and CIFAR-100: images of 32 × 32 pixels.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; files and column
names of uoft-cs/cifar10 and uoft-cs/cifar100 at Hugging Face.
"""

import io
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from datamodules.base import SPLITS
from datamodules.cache_folder import CachePlan, file_key, load_tensors, save_tensors
from datamodules.cached import GENERATED
from datamodules.errors import DataError, DownloadError, one_line
from datamodules.hub import hub_datasets
from datamodules.images.generated_shapes import GENERATOR_VERSION, shapes
from datamodules.images.module import ImageDataModule, Images, ImageTable, check_share, held_out
from datamodules.parquet import count_rows, readable

if TYPE_CHECKING:
    from pyarrow import Table

CACHE_FORMAT = 1
"""Raise it with every change of what cached files hold: older ones are then rebuilt."""
SIDE = 32
OFFICIAL = {"train": 50_000, "test": 10_000}
"""Images of the official files."""
REVISIONS = {
    10: "0b2714987fa478483af9968de7c934580d0bb9a2",
    100: "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
}
COLUMNS = {10: "label", 100: "fine_label"}
NAMES = {
    10: "airplane automobile bird cat deer dog frog horse ship truck",
    100: """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """,
}

_log = logging.getLogger(__name__)


class CIFARDataModule(ImageDataModule):
    """Small photographs of 10 or 100 kinds of things; batches as ImageDataModule says.

    A fifth of the official training images validates, equally many of every class; the official
    test images are the test set.

    Args:
        classes: 10 or 100.
        source: "official", from `<data_dir>/cifar<classes>/{train,test}.parquet`, columns as in
            uoft-cs/cifar10 or uoft-cs/cifar100, with all 60,000 images, or downloaded; "subset",
            from such files that hold fewer; "generated", see `generated_shapes`; or "auto".
        validation_share: of the training images.
        images: see ImageDataModule.

    Raises:
        DataError: another number of classes, a share that is none, and as ImageDataModule says.
    """

    def __init__(
        self,
        classes: int = 10,
        resolution: int = SIDE,
        validation_share: float = 0.2,
        **images: Any,
    ):
        super().__init__(resolution, **images)
        if classes not in NAMES:
            raise DataError(f"Expected 10 or 100 classes, but data.classes is {classes}.")
        check_share(validation_share)
        self.classes, self.validation_share = classes, validation_share
        self.label_names = NAMES[classes].split()
        # Lightning's own may be None.
        self.name: str = f"cifar{classes}"  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def task(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For reports: a part of the images bears its own name."""
        return f"{self.name}-subset" if self.source_used == "subset" else self.name

    @property
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        return {
            "official": partial(self._plan_files, "official"),
            "subset": partial(self._plan_files, "subset"),
            GENERATED: self._plan_generated,
        }

    def _plan_files(self, source: str) -> CachePlan:
        key: dict[str, Any] = {"validation_share": self.validation_share}
        folder = self._given(source)
        if folder is None:
            key["revision"], read = REVISIONS[self.classes], self._download
        else:
            key["files"] = {name: file_key(folder / f"{name}.parquet") for name in OFFICIAL}
            read = partial(self._read, partial(_read_parquet, folder))
        return self._plan(source, key, read)

    def _plan_generated(self) -> CachePlan:
        key = {"generator": GENERATOR_VERSION, "sizes": self.generated_size}
        return self._plan(GENERATED, key, self._generate)

    def _plan(
        self, source: str, key: dict[str, Any], read: Callable[[Path], Iterable[ImageTable]]
    ) -> CachePlan:
        key = {"format": CACHE_FORMAT, "seed": self.seed} | key
        about = {"task": self.name, "source": source}
        fill = partial(self._fill, read)
        return CachePlan(self.cache_dir / "cifar", f"{self.name}-{source}", key, about, fill)

    def _given(self, source: str) -> Path | None:
        """The folder of `data_dir` with a source's files, None if they are to be downloaded.

        Raises:
            DownloadError: they are not there and cannot be downloaded.
        """
        data_dir = self.given_folder()
        folder = data_dir / self.name if data_dir else None
        if folder is None or not folder.is_dir():
            whole = None
        else:
            whole = {name: _count_rows(folder, name) for name in OFFICIAL} == OFFICIAL
        if whole is not None and whole == (source == "official"):
            return folder
        if source == "official":
            return None
        raise DownloadError(
            f"Expected a folder {self.name} in DATA_DIR with a part of the images, found "
            f"{'none' if whole is None else 'all of them'}: set data.source=official."
        )

    def open_split(self, folder: Path, split: str) -> Images:
        return Images(ImageTable(**load_tensors(folder, split)))

    def _fill(
        self, read: Callable[[Path], Iterable[ImageTable]], ready: Path, scratch: Path
    ) -> dict[str, Any]:
        tables = dict(zip(SPLITS, read(scratch), strict=True))
        for split, table in tables.items():
            save_tensors(ready, split, vars(table))
        content = {split: table.content() for split, table in tables.items()}
        return {"content": content} | tables["train"].statistics()

    def _read(self, read: "Callable[[str], Table]", scratch: Path) -> Iterable[ImageTable]:
        """Training, validation and test images, given a file's table by its name."""
        train, test = (self._decode(read(name), name) for name in OFFICIAL)
        validates = held_out(train.label.numpy(), self.validation_share, self.seed)
        return train.select(~validates), train.select(validates), test

    def _decode(self, table: "Table", name: str) -> ImageTable:
        column = COLUMNS[self.classes]
        if not {"img", column} <= set(table.column_names) or not len(table):
            raise DataError(
                f"Expected images with img and {column} in {name} of {self.name}, got "
                f"{len(table)} with {', '.join(table.column_names)}: the file is not that of "
                f"uoft-cs/{self.name}."
            )
        label = table[column].to_pylist()
        if not all(isinstance(value, int) and 0 <= value < self.classes for value in label):
            raise DataError(
                f"Expected whole labels from 0 to {self.classes - 1} in {name} of {self.name}, but "
                "some are missing, fractional or out of range: download the file again."
            )
        _log.info("Decoding %d images of %s.", len(table), self.name)
        image = np.empty((len(table), 3, SIDE, SIDE), dtype=np.uint8)
        for i, one in enumerate(table["img"].to_pylist()):
            try:
                with Image.open(io.BytesIO(one["bytes"])) as picture:
                    image[i] = np.asarray(picture).transpose(2, 0, 1)
            # A damaged image fails with almost any exception.
            except Exception as error:
                raise DataError(
                    f"Expected an RGB image of {SIDE} × {SIDE} pixels in row {i} of {name} of "
                    f"{self.name}, but it cannot be read ({one_line(error)}): download the file "
                    "again."
                ) from error
        return ImageTable(torch.from_numpy(image), torch.tensor(label))

    def _download(self, scratch: Path) -> Iterable[ImageTable]:
        datasets = hub_datasets(self.name)
        _log.info("Downloading %s.", self.name)
        try:
            loaded = datasets.load_dataset(
                f"uoft-cs/{self.name}", revision=REVISIONS[self.classes], cache_dir=str(scratch)
            )
        # Whatever goes wrong on the way fails with almost any exception.
        except Exception as error:
            raise DownloadError(
                f"Cannot download {self.name} ({one_line(error)}): try again, or set DATA_DIR to a "
                f"folder with {self.name}/train.parquet and {self.name}/test.parquet."
            ) from error
        return self._read(lambda name: loaded[name].data.table, scratch)

    def _generate(self, scratch: Path) -> Iterable[ImageTable]:
        for i, size in enumerate(self.generated_size):
            # One stream a split: more training images leave the test images as they are.
            rng = np.random.default_rng([self.seed, i])
            image, label = shapes(size, self.classes, SIDE, rng)
            yield ImageTable(torch.from_numpy(image), torch.from_numpy(label))


def _count_rows(folder: Path, name: str) -> int:
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise DataError(
            f"Expected train.parquet and test.parquet side by side, but {path} is missing: add it, "
            "or unset DATA_DIR to download both."
        )
    return count_rows(path, "CIFAR")


def _read_parquet(folder: Path, name: str) -> "Table":
    path = folder / f"{name}.parquet"
    with readable(path, "CIFAR") as parquet:
        return parquet.read_table(path)
