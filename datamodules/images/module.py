"""What data modules of images share: splits, and normalisation and augmentation on the device.

Shapes: B images of a batch, N of a split; H, W height and width of an image.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.loader import DataLoader

from datamodules.batching import Samples
from datamodules.cached import CachedDataModule
from datamodules.errors import DataError
from datamodules.images.augmentation import Augmentation

IMAGES_AT_ONCE = 4096
CHANNELS = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet-1k's red, green and blue, which are in [0, 1]."""


@dataclass
class ImageTable:
    """The images of one split, all of one size; what a cached file holds.

    Attributes:
        image: uint8 [N, 3, H, W].
        label: int64 [N], number of the class.
    """

    image: Tensor
    label: Tensor

    def content(self) -> str:
        """SHA-256 of the images and their labels."""
        digest = hashlib.sha256()
        for name, tensor in sorted(vars(self).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(memoryview(tensor.contiguous().numpy()).cast("B"))
        return digest.hexdigest()

    def select(self, rows: np.ndarray) -> "ImageTable":
        """The rows where `rows`, bool [N], is true."""
        kept = torch.from_numpy(rows)
        return ImageTable(self.image[kept], self.label[kept])

    def statistics(self) -> dict[str, list[float]]:
        """`mean` and `std` of every channel over all pixels, for values in [0, 1]."""
        # A histogram of 256 values holds all that is needed, and no image as floating numbers.
        counts = torch.zeros(CHANNELS, 256, dtype=torch.int64)
        for part in self.image.split(IMAGES_AT_ONCE):
            for channel in range(CHANNELS):
                counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
        return channel_statistics(counts)


def channel_statistics(counts: Tensor) -> dict[str, list[float]]:
    """`mean` and `std` for values in [0, 1], given how often each value occurs, int64 [3, 256]."""
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ value
    std = (share @ value.square() - mean.square()).clamp(min=0).sqrt()
    # A channel that never changes is left as it is.
    return {"mean": mean.tolist(), "std": torch.where(std > 0, std, 1.0).tolist()}


class LabelledImages(Dataset, ABC):
    """Images of one class each: image uint8 [3, H, W], label and index scalars.

    `index` is the number of the image in its split, whatever rows are taken. Place
    `i + c · len(self)` is copy c of image i, see RepeatingSampler.

    Args:
        label: int64 [N], number of the class of every image of the split.
        rows: that are taken; None for all.
    """

    def __init__(self, label: Tensor, rows: Tensor | None = None):
        self.rows = torch.arange(len(label)) if rows is None else rows
        self.label = label[self.rows]

    @abstractmethod
    def image(self, row: int, copy: int) -> Tensor:
        """uint8 [3, H, W]: a copy of an image of the split."""

    @abstractmethod
    def index_select(self, rows: Tensor) -> "LabelledImages":
        """These rows alone."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        copy, place = divmod(index, len(self))
        image = self.image(int(self.rows[place]), copy)
        return {"image": image, "label": self.label[place], "index": self.rows[place]}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # No place is out of range, by which an iteration would otherwise know its end.
        return (self[i] for i in range(len(self)))


class Images(LabelledImages):
    """Rows of an ImageTable, see LabelledImages."""

    def __init__(self, table: ImageTable, rows: Tensor | None = None):
        super().__init__(table.label, rows)
        self.table = table

    def image(self, row: int, copy: int) -> Tensor:
        return self.table.image[row]

    def index_select(self, rows: Tensor) -> "Images":
        """These rows alone."""
        return Images(self.table, self.rows[rows])


class Labels(Dataset):
    """The labels alone, int64 [N], of images that need not be decoded."""

    def __init__(self, label: Tensor):
        self.label = label

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"label": self.label[index]}


class ImageDataModule(CachedDataModule):
    """Images of one class each, normalised and, in training, augmented on the model's device.

    A loader's batches are {"image": uint8 [B, 3, H, W]; "label": int64 [B]; "index": int64 [B], the
    number of the image in its split}. Lightning's hooks make "image" float32 [B, 3, resolution,
    resolution] of mean 0 and standard deviation 1 a channel, and in training apply `augmentation`,
    which may add "target": float32 [B, classes], the share of each class in a mixed image. What it
    draws is a function of the seed, the epoch, the process and the images of the batch: a resumed
    run augments as one that was never interrupted, and the model's random stream stays its own.

    A subclass sets `task` and `classes`, and writes "mean" and "std" to the folder's meta.json.

    Args:
        resolution: side of the model's images, in pixels.
        augmentation: of training batches; None for none.
        train_limit: at most so many training images, each class with its share; None for all.
        repeats: times that an epoch shows each of the images it draws, 1 / repeats of them all, see
            RepeatingSampler.
        cached: see CachedDataModule; `seed` is also of the choice of what validates, and of what
            is left out.

    Attributes:
        classes: their number.
        label_names: of the classes.
        mean, std: of the training images' channels, which are in [0, 1].

    Raises:
        DataError: a resolution, a limit or a number of repeats that is not positive, and as
            CachedDataModule says.
    """

    classes: int
    # Only read, so a subclass may compute it: a checker cannot be told that.
    label_names: list[str]

    def __init__(
        self,
        resolution: int,
        augmentation: Augmentation | None = None,
        repeats: int = 1,
        train_limit: int | None = None,
        **cached: Any,
    ):
        super().__init__(**cached)
        positive = {"resolution": resolution, "repeats": repeats, "train_limit": train_limit}
        for name, value in positive.items():
            if value is not None and value < 1:
                raise DataError(f"Expected a positive number, but data.{name} is {value}.")
        self.resolution, self.augmentation, self.repeats = resolution, augmentation, repeats
        self.train_limit = train_limit

    @property
    def mean(self) -> list[float]:
        """Of red, green and blue in [0, 1]; known after `setup()`."""
        self.cached_folder()
        return self._meta["mean"]

    @property
    def std(self) -> list[float]:
        """Of red, green and blue in [0, 1]; known after `setup()`."""
        self.cached_folder()
        return self._meta["std"]

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        train = self.train_dataset
        assert isinstance(train, LabelledImages)
        if self.train_limit is not None and self.train_limit < len(train):
            kept = held_out(train.label.numpy(), self.train_limit / len(train), self.seed)
            self.train_dataset = train.index_select(torch.from_numpy(kept).nonzero().flatten())

    @property
    def fingerprint(self) -> str:
        whole = super().fingerprint
        if self.train_limit is None:
            return whole
        return hashlib.sha256(f"{whole} {self.train_limit} {self.seed}".encode()).hexdigest()[:12]

    @property
    def provenance(self) -> dict[str, Any]:
        return super().provenance | {"resolution": self.resolution}

    def whole(self, dataset: Samples) -> DataLoader:
        """All labels of a split, without images: scores that need no model need no more."""
        assert isinstance(dataset, LabelledImages)
        # torch-geometric collates samples of any dataset, though it declares only its own.
        return DataLoader(
            Labels(dataset.label),  # pyright: ignore[reportArgumentType]
            self.batch_size,
        )

    def on_before_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """In training, with the "seed" of its augmentation."""
        if self.augmentation is None or not (self.trainer and self.trainer.training):
            return batch
        epoch = 0 if self.overfits else self.trainer.current_epoch
        key = (self.shuffle_seed, epoch, self.trainer.global_rank)
        digest = hashlib.blake2b(f"{key}".encode(), digest_size=8)
        digest.update(batch["index"].numpy().tobytes())
        return batch | {"seed": int.from_bytes(digest.digest(), "big") >> 1}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """As the model takes it."""
        batch = dict(batch)
        seed, image = batch.pop("seed", None), self.unit(batch["image"])
        if seed is None:
            return batch | {"image": self.normalised(image)}
        cuda = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            assert self.augmentation is not None  # for which the batch has a seed
            return batch | self.augmentation(image, batch["label"], self.classes, self.normalised)

    def unit(self, image: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → float32 in [0, 1], [B, 3, resolution, resolution]."""
        image = image.float() / 255
        side = (self.resolution, self.resolution)
        if image.shape[-2:] == side:
            return image
        return F.interpolate(image, side, mode="bilinear", antialias=True)

    def normalised(self, image: Tensor) -> Tensor:
        """Values in [0, 1], float32 [B, 3, H, W] → mean 0 and standard deviation 1 a channel."""
        mean, std = (image.new_tensor(v).view(CHANNELS, 1, 1) for v in (self.mean, self.std))
        return (image - mean) / std


def held_out(label: np.ndarray, share: float, seed: int, most: int | None = None) -> np.ndarray:
    """Which samples validate: a random `share` of every class, bool [N].

    Args:
        label: int [N].
        share: of all samples; of every class as many as come nearest to it.
        seed: of the choice.
        most: of a class, None for no bound.

    Raises:
        DataError: none or all are chosen.
    """
    classes, counts = np.unique(label, return_counts=True)
    # Rounded in the sum, so that the shares add up: 4,000 of 20,000 where classes are uneven too.
    taken = np.diff(np.floor(np.cumsum(share * counts) + 0.5).astype(int), prepend=0)
    chosen = np.zeros(len(label), dtype=bool)
    rng = np.random.default_rng(seed)
    if most is not None:
        taken = np.minimum(taken, most)
    for one, count in zip(classes, taken, strict=True):
        chosen[rng.permutation(np.flatnonzero(label == one))[:count]] = True
    if not 0 < chosen.sum() < len(label):
        raise DataError(
            f"{share} of {len(label)} images leave none to train or to validate on: change "
            "data.validation_share."
        )
    return chosen


def check_share(share: float) -> None:
    """Refuse what is no share of the training images."""
    if not 0 < share < 1:
        raise DataError(f"Expected a share between 0 and 1, but data.validation_share is {share}.")
