"""Images a second: decoded and cut by one loading process, and augmented on the device."""

from collections.abc import Callable
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import pytest
import torch

from datamodules.images.augmentation import Augmentation, Mix, RandAugment, RandomErasing
from datamodules.images.files import FileTable, ImageFiles
from tests.benchmarks.timing import compare
from tests.datamodules.fabricated import photograph
from tests.kernels.comparing import DEVICE

pytestmark = pytest.mark.timeout(900)

GREEN = ("datamodules/images/test_imagenet.py", "datamodules/images/test_augmentation.py")
FILES = 24
IMAGENET = {"width": 500, "height": 375, "bytes": 110_000}
"""Of a mean file of ImageNet-1k."""
BATCHES = {"cifar10": (128, 32), "tiny_imagenet": (128, 64), "imagenet": (64, 224)}
"""Images of a batch, and their side."""


def write(folder: Path, width: int, height: int, size: int | None) -> list[Path]:
    """JPEG files of about `size` bytes; None takes the quality that PIL would."""
    rng, paths = np.random.default_rng(0), []
    for i in range(FILES):
        paths.append(folder / f"{i}.JPEG")
        picture = photograph(rng, width, height)
        picture.save(paths[-1])
        quality = 60
        while size is not None and paths[-1].stat().st_size < size and quality < 100:
            quality += 1
            picture.save(paths[-1], quality=quality)
    return paths


def reading(folder: Path, side: int, area: tuple[float, float] | None) -> Callable[[], None]:
    """Read every file once, in another random part each time where `area` is given."""
    paths = sorted(path.name for path in folder.iterdir())
    table = FileTable.of(paths, torch.zeros(len(paths)).long(), torch.zeros(len(paths), 3).long())
    files = ImageFiles(folder, table, side, 0.9, area, seed=0)

    def run() -> None:
        files.epoch += 1
        for _ in files:
            pass

    return run


def per_second(times: dict[str, dict], images: int) -> dict[str, float]:
    return {name: float(f"{1e3 * images / one['ms'][1]:.3g}") for name, one in times.items()}


def test_decoding(green, record, tmp_path):
    """One process: files of ImageNet's mean size, and of 64 × 64 pixels."""
    green(*GREEN)
    torch.set_num_threads(1)
    sets = {"photographs": (IMAGENET["width"], IMAGENET["height"], IMAGENET["bytes"])}
    sets["64 x 64"] = (64, 64, None)
    functions, size = {}, {}
    for name, (width, height, size_wanted) in sets.items():
        (tmp_path / name).mkdir()
        paths = write(tmp_path / name, width, height, size_wanted)
        size[name] = sum(path.stat().st_size for path in paths) / FILES
        side = min(224, height)
        functions[f"{name}, random part to {side}"] = reading(tmp_path / name, side, (0.08, 1.0))
        functions[f"{name}, middle to {side}"] = reading(tmp_path / name, side, None)
    times = compare(functions, rounds=5)
    rates = per_second(times, FILES)
    record("decoding of images", {"bytes": size, "images_per_second": rates, "times": times})


@pytest.mark.parametrize("data", BATCHES)
def test_augmentation(green, record, data):
    """Of one batch, normalisation included; on a CPU by one thread."""
    green(*GREEN)
    torch.set_num_threads(1)
    count, side = BATCHES[data]
    image = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, device=DEVICE)
    label = torch.randint(10, (count,), device=DEVICE)
    crop = K.RandomCrop((side, side), padding=side // 8)
    flip = K.RandomHorizontalFlip()
    recipes = {
        "none": Augmentation(),
        "crop and flip": Augmentation({"crop": crop, "flip": flip}),
        "full": Augmentation(
            {"flip": flip, "operations": RandAugment()}, {"erasing": RandomErasing()}, Mix()
        ),
    }

    def step(recipe: Augmentation) -> Callable[[], object]:
        return lambda: recipe(image.float() / 255, label, 10, lambda x: (x - 0.5) / 0.25)

    times = compare({name: step(recipe) for name, recipe in recipes.items()})
    rates = per_second(times, count)
    facts = {"images": count, "side": side, "images_per_second": rates, "times": times}
    record(f"augmentation of {data}", facts)
