"""Trees of image files of any size: what is in them, whether it can be read, and reading it.

Shapes: N images of a split.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.cache_folder import file_key
from datamodules.cores import cores
from datamodules.errors import DataError, one_line
from datamodules.images.module import LabelledImages

S = TypeVar("S")
T = TypeVar("T")
ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
HIDDEN = (".", "@")
"""What names begin with that programs give to their own files."""
ANNOTATIONS = "val_annotations.txt"
"""Tiny-ImageNet's own file of the classes of its validation images."""
ITEMS_AT_ONCE = 256
CROP_TRIES = 10
CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of random crops."""


class Listed(NamedTuple):
    """An image file: its path below the tree's root, and the name of its class."""

    path: str
    name: str


class Header(NamedTuple):
    """What the first bytes of an image file say: pixels, and PIL's mode such as "RGB"."""

    width: int
    height: int
    mode: str


def image_files(root: Path, split: str) -> list[Listed]:
    """The image files of `<root>/<split>/<class>/…`, at any depth, in the order of their paths.

    Files and folders whose names begin with "." or "@" are left out: they hold copies of images
    that other programs made, such as .ipynb_checkpoints, @eaDir and ._1.jpg.
    """
    found = []
    for kind in (root / split).iterdir():
        if not kind.is_dir() or kind.name.startswith(HIDDEN):
            continue
        for parent, folders, names in os.walk(kind):
            folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            inside = Path(parent).relative_to(root).as_posix()
            found += [
                Listed(f"{inside}/{name}", kind.name)
                for name in names
                if name.lower().endswith(ENDINGS) and not name.startswith(HIDDEN)
            ]
    return sorted(found)


def listed(root: Path, split: str) -> list[Listed]:
    """The images of `<root>/<split>`, see `image_files`, in the order of their paths.

    Of `<root>/<split>/val_annotations.txt`, the layout of Tiny-ImageNet's own archive, where there
    is one.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"Expected a folder of classes at {folder}, found none: add it.")
    if (folder / ANNOTATIONS).exists():
        rows = [line.split("\t") for line in (folder / ANNOTATIONS).read_text().splitlines()]
        found = [Listed(f"{split}/images/{row[0]}", row[1]) for row in rows if len(row) > 1]
    else:
        found = image_files(root, split)
    if not found:
        raise DataError(
            f"Expected images in {folder}/<class>/, found none: check that the archive was "
            "unpacked there."
        )
    return sorted(found)


def tree_key(root: Path, splits: Sequence[str]) -> str:
    """SHA-256 of the path, size and time of change of every image file of a tree, none of it read.

    For a million files on a local disk this takes some seconds.
    """
    digest = hashlib.sha256()
    for split in splits:
        folder = root / split
        paths = [one.path for one in image_files(root, split)] if folder.is_dir() else []
        if (folder / ANNOTATIONS).exists():
            paths.append(f"{split}/{ANNOTATIONS}")
        for path in paths:
            try:
                about = file_key(root / path)
            except OSError:  # a link to a file that is gone
                about = []
            digest.update(f"{path} {about}\n".encode())
    return digest.hexdigest()


def attempt(path: Path, look: Callable[[Image.Image], T]) -> T | None:
    """What `look` makes of an image file, None where the file cannot be read."""
    try:
        with Image.open(path) as picture:
            return look(picture)
    # A damaged image fails with almost any exception.
    except Exception:
        return None


def header(path: Path) -> Header | None:
    """Of an image file, None where it has none."""
    return attempt(path, lambda picture: Header(*picture.size, picture.mode))


def decodes(path: Path) -> bool:
    """Whether all of an image can be read."""
    return attempt(path, lambda picture: picture.load() is not None) or False


def ends(path: Path) -> bool:
    """Whether an image file, whose header is sound, is there up to its end; its pixels unread."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 64), 2)
        tail = file.read()
    if path.suffix.lower() in (".jpeg", ".jpg"):
        return b"\xff\xd9" in tail or b"IEND" in tail  # one of ImageNet's JPEG files is a PNG
    return path.suffix.lower() != ".png" or b"IEND" in tail


def for_each(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """What `work` gives for every item, on all cores: PIL decodes beside other threads."""
    parts = [items[i : i + ITEMS_AT_ONCE] for i in range(0, len(items), ITEMS_AT_ONCE)]
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore")  # of damaged EXIF data and very large images
        done = pool.map(lambda part: [work(item) for item in part], parts)
        return list(chain.from_iterable(done))


def rgb(picture: Image.Image) -> Image.Image:
    """In RGB with 8 bits, whatever it was; transparency is left out."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):  # 16 bits, which PIL would clip and not scale
        deep = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray((deep >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def pixels(picture: Image.Image) -> Tensor:
    """uint8 [3, H, W] of an image in RGB."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


def random_box(width: int, height: int, area: tuple[float, float], rng: np.random.Generator) -> Box:
    """A random part of an image, as Inception was trained on.

    Args:
        width, height: of the image, in pixels.
        area: least and largest share of the image's area.
        rng: what is drawn comes from.

    Source: Szegedy et al., arXiv:1409.4842; the rule is that of torchvision's RandomResizedCrop.
    """
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    for _ in range(CROP_TRIES):
        target = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    w = min(width, height * CROP_RATIO[1])
    h = min(height, width / CROP_RATIO[0])
    return middle_box(width, height, w, h)


def middle_box(width: int, height: int, w: float, h: float) -> Box:
    """The w × h pixels in the middle of an image."""
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def cut(path: Path, side: int, choose: Callable[[int, int], Box]) -> Tensor:
    """A part of an image file, scaled: uint8 [3, side, side].

    A JPEG file is decoded at a half, quarter or eighth of its size where that suffices.

    Args:
        path: of the file.
        side: in pixels.
        choose: the part, given width and height.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF data
        with Image.open(path) as picture:
            width, height = picture.size
            box = choose(width, height)
            shrink = min(box[2] - box[0], box[3] - box[1]) / side
            if shrink > 1:
                asked = (math.ceil(width / shrink), math.ceil(height / shrink))
                drafted = picture.draft(None, asked)
                if drafted is not None:
                    scale = drafted[1][2] / width
                    left, top, right, bottom = (scale * edge for edge in box)
                    box = left, top, right, bottom
            return pixels(rgb(picture).resize((side, side), Image.Resampling.BICUBIC, box=box))


@dataclass
class FileTable:
    """The image files of one split; what a cached file holds.

    Attributes:
        paths: uint8, in UTF-8 below the tree's root, one after the other.
        starts: int64 [N + 1], where each begins.
        label: int64 [N], number of the class.
        size: int64 [N, 3], width and height in pixels, bytes of the file.
    """

    # One block of bytes and no list: processes that load share its memory.
    paths: Tensor
    starts: Tensor
    label: Tensor
    size: Tensor

    @classmethod
    def of(cls, paths: list[str], label: Tensor, size: Tensor) -> Self:
        """Pack paths."""
        encoded = [path.encode() for path in paths]
        starts = torch.tensor([0, *map(len, encoded)]).cumsum(0)
        joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
        return cls(torch.from_numpy(joined), starts, label, size)

    def select(self, rows: np.ndarray) -> Self:
        """The rows where `rows`, bool [N], is true."""
        kept = np.flatnonzero(rows)
        paths = [self.path(int(row)) for row in kept]
        return self.of(paths, self.label[kept], self.size[kept])

    def path(self, row: int) -> str:
        """Of an image, below the tree's root."""
        start, end = self.starts[row : row + 2].tolist()
        return self.paths[start:end].numpy().tobytes().decode()

    def content(self) -> str:
        """SHA-256 of paths, labels and sizes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(vars(self).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


class ImageFiles(LabelledImages):
    """Rows of a FileTable, read from disk at one size, see LabelledImages.

    In training a random part of an image is shown, a function of seed, epoch, image and copy alone;
    else the middle.

    Args:
        root: of the tree.
        table: its files.
        side: of an image, in pixels.
        crop_fraction: side of the middle part over the shorter side of the image.
        crop_area: least and largest share of the image in a random part; None for evaluation.
        seed: of the random parts.
        rows: that are taken; None for all.

    Attributes:
        epoch: of training, set by the loader.
    """

    def __init__(
        self,
        root: Path,
        table: FileTable,
        side: int,
        crop_fraction: float,
        crop_area: tuple[float, float] | None,
        seed: int,
        rows: Tensor | None = None,
    ):
        super().__init__(table.label, rows)
        self.root, self.table, self.side = root, table, side
        self.crop_fraction, self.crop_area, self.seed = crop_fraction, crop_area, seed
        self.epoch = 0

    def index_select(self, rows: Tensor) -> "ImageFiles":
        """These rows alone."""
        how = (self.side, self.crop_fraction, self.crop_area, self.seed)
        return ImageFiles(self.root, self.table, *how, self.rows[rows])

    def image(self, row: int, copy: int) -> Tensor:
        if self.crop_area is None:
            return self._read(row, copy)
        try:
            return self._read(row, copy)
        except DataError as error:
            warnings.warn(
                f"{error} In training the next of its class is shown in its place.", stacklevel=2
            )
            return self._replacement(row, copy)

    def _replacement(self, row: int, copy: int) -> Tensor:
        """The next image of a class that can be read."""
        alike = self.rows[self.label == self.table.label[row]]
        start = int(torch.searchsorted(alike, row)) + 1
        for other in alike.roll(-start)[:-1].tolist():
            try:
                return self._read(other, copy)
            except DataError:
                continue
        raise DataError(
            f"Expected images in {self.root}, but {self.table.path(row)} cannot be read, and no "
            "other of its class: restore them."
        )

    def _read(self, row: int, copy: int) -> Tensor:
        path = self.root / self.table.path(row)
        try:
            return cut(path, self.side, lambda w, h: self._box(w, h, row, copy))
        # A damaged image fails with almost any exception.
        except Exception as error:
            raise DataError(
                f"Expected the image that {path} held when it was prepared, but it cannot be read "
                f"({one_line(error)}): restore it, or delete the cached folder of its set in "
                "data.cache_dir."
            ) from error

    def _box(self, width: int, height: int, row: int, copy: int) -> Box:
        if self.crop_area is None:
            side = min(width, height) * self.crop_fraction
            return middle_box(width, height, side, side)
        rng = np.random.default_rng([self.seed, self.epoch, row, copy])
        return random_box(width, height, self.crop_area, rng)
