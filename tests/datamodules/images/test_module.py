"""What all data modules of images share: repeats, normalisation, augmentation that resumes."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import kornia.augmentation as K
import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules import batching
from datamodules.batching import RepeatingSampler
from datamodules.errors import DataError
from datamodules.images.augmentation import Augmentation, Mix, RandAugment, RandomErasing
from datamodules.images.cifar import CIFARDataModule
from datamodules.images.imagenet import ImageNetDataModule
from datamodules.images.module import ImageTable, held_out
from tests.datamodules.fabricated import photographs
from train import CONFIGS

SIZES = (50, 9, 7)


def full() -> Augmentation:
    return Augmentation(
        {"crop": K.RandomCrop((32, 32), padding=4), "flip": K.RandomHorizontalFlip()}
        | {"operations": RandAugment()},
        {"erasing": RandomErasing()},
        Mix(),
    )


def ready(tmp_path, **options) -> CIFARDataModule:
    how = {"source": "generated", "cache_dir": tmp_path, "generated_size": SIZES, "batch_size": 8}
    data = CIFARDataModule(**(how | options))
    data.prepare_data()
    data.setup()
    return data


def files(tmp_path, **options) -> ImageNetDataModule:
    """Of photographs that are decoded by the loader."""
    if not (tmp_path / "raw").exists():
        photographs(tmp_path / "raw" / "pets", train=10, val=3, classes=3)
    how = {"data_dir": tmp_path / "raw", "cache_dir": tmp_path / "cache", "batch_size": 4}
    data = ImageNetDataModule("pets", 3, 32, **(how | options))
    data.prepare_data()
    data.setup()
    return data


class Recording(L.LightningModule):
    """A model of one weight that keeps what it is given, and draws from its own random stream."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_batches, self.val_batches, self.drawn = [], [], []

    def on_train_batch_start(self, batch, batch_idx):
        self.drawn.append(float(torch.rand(())))

    def training_step(self, batch, batch_idx):
        self.train_batches.append({name: value.clone() for name, value in batch.items()})
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.val_batches.append(batch)

    def test_step(self, batch, batch_idx):
        self.val_batches.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(Callback):
    """Save a checkpoint after a step and end the training there."""

    def __init__(self, step: int, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(data, *callbacks, **options) -> Recording:
    model = Recording()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    L.seed_everything(0, verbose=False)
    try:
        trainer.fit(model, data, weights_only=True, **options)
    except (KeyboardInterrupt, SystemExit):
        assert callbacks
    return model


@pytest.mark.parametrize("make", [ready, files])
@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (7, 0), (10, 0), (10, 2)])  # 7 an epoch
def test_a_resumed_run_sees_the_very_same_batches(make, workers, stop, tmp_path):
    options = {"num_workers": workers, "repeats": 2}
    whole = fit(make(tmp_path, augmentation=full(), **options))
    path = tmp_path / "stopped.ckpt"
    before = fit(make(tmp_path, augmentation=full(), **options), StopAt(stop, path))
    after = fit(make(tmp_path, augmentation=full(), **options), ckpt_path=path)
    assert len(before.train_batches) == stop
    both = before.train_batches + after.train_batches
    assert len(both) == len(whole.train_batches) == 14
    for got, expected in zip(both, whole.train_batches, strict=True):
        assert got.keys() == expected.keys() == {"image", "label", "index", "target"}
        for name, value in expected.items():
            assert torch.equal(got[name], value), name


def test_the_models_random_stream_is_its_own(tmp_path):
    plain, augmented = (fit(ready(tmp_path, augmentation=a)) for a in (None, full()))
    assert plain.drawn == augmented.drawn
    for one, other in zip(plain.train_batches, augmented.train_batches, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert one.keys() == {"image", "label", "index"}
        assert not torch.equal(one["image"], other["image"])


def seed_of(data: CIFARDataModule, epoch: int) -> int:
    """Of the augmentation of the same few images."""
    training = SimpleNamespace(overfit_batches=0, training=True, current_epoch=epoch, global_rank=0)
    data.trainer = training
    return data.on_before_batch_transfer({"index": torch.arange(4)}, 0)["seed"]


def test_epochs_and_seeds_augment_the_same_images_differently(tmp_path):
    data = ready(tmp_path, augmentation=full())
    other = ready(tmp_path, augmentation=full(), shuffle_seed=1)
    assert seed_of(data, 0) == seed_of(data, 0)
    assert len({seed_of(data, 0), seed_of(data, 1), seed_of(other, 0)}) == 3


def test_overfitted_images_are_augmented_alike_in_every_epoch(tmp_path):
    data = ready(tmp_path, augmentation=full())
    seeds = set()
    for epoch in range(3):
        data.trainer = SimpleNamespace(
            overfit_batches=1, training=True, current_epoch=epoch, global_rank=0
        )
        seeds.add(data.on_before_batch_transfer({"index": torch.arange(4)}, 0)["seed"])
    assert seeds == {seed_of(data, 0)}


def expected_image(data: CIFARDataModule, raw: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    return (raw.float() / 255 - mean) / std


def test_validation_and_test_are_never_augmented(tmp_path):
    data = ready(tmp_path, augmentation=full())
    model = fit(data)
    assert len(model.val_batches) == 2 * 2 + 2  # two epochs, and the sanity check
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.test(model, data, verbose=False)
    for batch in model.val_batches:
        assert batch.keys() == {"image", "label", "index"}
        split = data.test_dataset if batch is model.val_batches[-1] else data.val_dataset
        raw = split.table.image[batch["index"]]
        torch.testing.assert_close(batch["image"], expected_image(data, raw), atol=1e-5, rtol=0)
        assert torch.equal(batch["label"], split.table.label[batch["index"]])


def test_training_images_have_mean_0_and_deviation_1_a_channel(tmp_path):
    data = ready(tmp_path)
    image = data.normalised(data.unit(data.train_dataset.table.image))
    torch.testing.assert_close(image.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        image.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0
    )


def test_a_constant_channel_is_not_divided_by_nothing():
    table = ImageTable(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).long())
    assert table.statistics() == {"mean": [0.0] * 3, "std": [1.0] * 3}


def test_another_resolution_is_scaled_to_on_the_device(tmp_path):
    data = ready(tmp_path, resolution=16)
    raw = data.train_dataset.table.image[:4]
    small = data.unit(raw)
    assert small.shape == (4, 3, 16, 16)
    torch.testing.assert_close(
        small.mean(dim=(2, 3)), raw.float().mean(dim=(2, 3)) / 255, atol=0.01, rtol=0
    )
    batch = fit(data).train_batches[0]
    assert batch["image"].shape[-2:] == (16, 16)


def test_a_loader_gives_bytes_and_whole_gives_labels(tmp_path):
    data = ready(tmp_path)
    batch = next(iter(data.train_dataloader()))
    assert {name: value.dtype for name, value in batch.items()} == {
        "image": torch.uint8,
        "label": torch.int64,
        "index": torch.int64,
    }
    assert batch["image"].shape[1:] == (3, 32, 32)
    labels = torch.cat([b["label"] for b in data.whole(data.train_dataset)])
    assert torch.equal(labels, data.train_dataset.table.label)


def test_a_limit_keeps_the_numbers_of_images(tmp_path):
    data = ready(tmp_path, limit=5)
    index = torch.cat([batch["index"] for batch in data.train_dataloader()])
    assert sorted(index.tolist()) == [0, 10, 20, 30, 40]
    labels = torch.cat([b["label"] for b in data.whole(data.train_dataset)])
    assert torch.equal(labels, data.train_dataset.table.label[::10])


def test_a_limit_of_training_images_keeps_the_share_of_every_class(tmp_path):
    whole, data = ready(tmp_path), ready(tmp_path, train_limit=20)
    kept = data.train_dataset.label
    shares = torch.bincount(whole.train_dataset.label) * 20 / 50
    assert len(kept) == 20
    assert (torch.bincount(kept) - shares).abs().max() < 1
    assert len(data.val_dataset) == len(whole.val_dataset)
    data.setup()
    assert torch.equal(data.train_dataset.label, kept), "once is enough"
    other = ready(tmp_path, train_limit=20, seed=1)
    assert len({whole.fingerprint, data.fingerprint, other.fingerprint}) == 3


@pytest.mark.parametrize("repeats", [2, 3])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_repeats_keep_an_epochs_length_and_meet_in_one_step(repeats, replicas):
    samples = 100
    samplers = [RepeatingSampler(samples, 8, repeats, 1, r, replicas) for r in range(replicas)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    assert all(batch for share in shares for batch in share)
    plain = batching.SizeBudgetSampler(torch.ones(samples), 8, True, 1, 0, replicas)
    assert len(samplers[0]) == len(plain)
    shown = [place for share in shares for batch in share for place in batch]
    assert len(shown) == len(set(shown)) == samples  # no copy is shown twice
    times = Counter(place % samples for place in shown)
    assert len(times) == -(-samples // repeats)
    assert sorted(times.values())[1:] == [repeats] * (len(times) - 1)
    steps = [{p % samples for share in shares for p in share[i]} for i in range(len(plain))]
    met_twice = sum(len(a & b) for a, b in pairwise(steps))
    assert met_twice < len(steps)  # only where a step ends between copies
    if replicas >= repeats:  # no process meets an image twice in a step
        for share in shares:
            assert all(len({p % samples for p in batch}) == len(batch) for batch in share)


def test_repeats_are_drawn_anew_every_epoch():
    sampler = RepeatingSampler(99, 8, 3)
    seen = [{p % 99 for batch in sampler.batches(epoch) for p in batch} for epoch in range(12)]
    assert seen[0] != seen[1]
    assert len(set().union(*seen)) > 95
    assert sampler.batches(4) == RepeatingSampler(99, 8, 3).batches(4)


def test_copies_of_an_image_are_cut_and_augmented_differently(tmp_path):
    data = files(tmp_path, repeats=3, batch_size=100)
    batch = next(iter(data.train_dataloader()))
    assert len(batch["index"]) == len(data.train_dataset)
    by_image: dict[int, list[Tensor]] = {}
    for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
        by_image.setdefault(index, []).append(image)
    assert max(len(copies) for copies in by_image.values()) == 3
    for first, *others in by_image.values():
        assert not any(torch.equal(first, other) for other in others)


def test_processes_share_the_images_and_augment_them_apart(tmp_path, monkeypatch):
    seen, seeds = [], []
    for rank in range(2):
        monkeypatch.setattr(batching, "_process_group", lambda rank=rank: (rank, 2))
        data = ready(tmp_path, augmentation=full())
        loader = data.train_dataloader()
        seen += [i for batch in loader for i in batch["index"].tolist()]
        data.trainer = SimpleNamespace(
            overfit_batches=0, training=True, current_epoch=0, global_rank=rank
        )
        seeds.append(data.on_before_batch_transfer({"index": torch.arange(4)}, 0)["seed"])
    assert sorted(seen) == list(range(SIZES[0]))
    assert seeds[0] != seeds[1]


def test_what_validates_is_stratified_exact_and_bounded():
    label = np.repeat(np.arange(10), np.random.default_rng(0).integers(30, 70, 10))
    chosen = held_out(label, 0.2, seed=0)
    assert chosen.sum() == np.floor(0.2 * len(label) + 0.5)
    for one in range(10):
        assert abs(chosen[label == one].sum() - 0.2 * (label == one).sum()) <= 1
    assert (held_out(label, 0.2, 0) == chosen).all()
    assert (held_out(label, 0.2, 1) != chosen).any()
    assert np.bincount(label[held_out(label, 0.2, 0, most=3)]).tolist() == [3] * 10
    with pytest.raises(DataError, match="leave none to train or to validate on"):
        held_out(label[:2], 0.1, 0)


def composed(data: str, *overrides: str) -> L.LightningDataModule:
    """The data module of a config of configs/data."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        how = ["experiment=chimera_cifar10", f"data={data}", *overrides]
        cfg = compose("train", how)
    assert cfg.task.num_outputs == cfg.data.classes
    return instantiate(cfg.data, _convert_="all")


@pytest.mark.parametrize("scale", ["smoke", "demo", "paper"])
@pytest.mark.parametrize("data", ["cifar10", "cifar100", "tiny_imagenet", "imagenet"])
def test_configs_compose_and_give_what_a_model_takes(data, scale, tmp_path):
    small = ["data.source=generated", "data.generated_size=[24,8,8]", "data.num_workers=0"]
    module = composed(data, f"scale={scale}", *small, f"data.cache_dir={tmp_path}")
    module.prepare_data()
    module.setup()
    batch = fit(module).train_batches[0]
    assert batch["image"].shape[1:] == (3, module.resolution, module.resolution)
    assert batch["image"].isfinite().all()
    assert len(module.label_names) == module.classes
    assert ("target" in batch) == (data == "imagenet")
    if "target" in batch:
        torch.testing.assert_close(batch["target"].sum(dim=1), torch.ones(len(batch["label"])))


@pytest.mark.parametrize(("name", "pixels"), [("none", 0), ("crop_flip", 2), ("full", 3)])
def test_augmentation_is_a_config_group(name, pixels):
    module = composed("cifar10", f"augmentation@data.augmentation={name}")
    assert len(module.augmentation.pixels) == pixels
    assert (module.augmentation.mix is not None) == (name == "full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 0}, "data.resolution is 0"),
        ({"repeats": 0}, "data.repeats is 0"),
        ({"train_limit": 0}, "data.train_limit is 0"),
        ({"limit": 0}, "data.limit is 0"),
        ({"generated_size": (1, 2)}, "data.generated_size"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(DataError, match=message):
        CIFARDataModule(**options)
