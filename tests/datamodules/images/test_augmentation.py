"""Every piece of augmentation does what its source says, in numbers."""

import kornia.augmentation as K
import pytest
import torch

from datamodules.errors import DataError
from datamodules.images import augmentation
from datamodules.images.augmentation import (
    OPERATIONS,
    Augmentation,
    Mix,
    RandAugment,
    RandomErasing,
)

B, SIDE, CLASSES = 64, 16, 5


@pytest.fixture
def image():
    return torch.rand(B, 3, SIDE, SIDE)


@pytest.fixture
def label():
    return torch.arange(B) % CLASSES


def nothing(image):
    return image


def recipe() -> Augmentation:
    return Augmentation(
        {"crop": K.RandomCrop((SIDE, SIDE), padding=2), "flip": K.RandomHorizontalFlip()}
        | {"operations": RandAugment()},
        {"erasing": RandomErasing()},
        Mix(),
    )


def test_one_seed_gives_one_batch(image, label):
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(recipe()(image, label, CLASSES, nothing))
    first, again, other = batches
    for name in ("image", "target"):
        assert torch.equal(first[name], again[name])
        assert first[name].shape == other[name].shape
        assert first[name].isfinite().all()
    assert not torch.equal(first["image"], other["image"])


def test_nothing_asked_for_is_nothing_done(image, label):
    plain = Augmentation({"crop": None}, {})(image, label, CLASSES, lambda x: 2 * x)
    assert plain.keys() == {"image"}
    assert torch.equal(plain["image"], 2 * image)
    assert torch.equal(RandAugment(probability=0.0)(image), image)
    assert torch.equal(RandAugment(operations=0)(image), image)
    assert torch.equal(RandomErasing(probability=0.0)(image), image)
    same, target = Mix(probability=0.0)(image, label, CLASSES)
    assert torch.equal(same, image)
    assert torch.equal(target.argmax(dim=1), label)


def test_pieces_come_before_and_after_normalisation(image, label):
    order = Augmentation({"a": lambda x: x + 1}, {"b": lambda x: x + 100})
    out = order(image, label, CLASSES, lambda x: 10 * x)["image"]
    torch.testing.assert_close(out, 10 * (image + 1) + 100)


def test_a_crop_shifts_whole_images_by_up_to_its_padding(image):
    image = image.repeat(8, 1, 1, 1)
    crop = K.RandomCrop((SIDE, SIDE), padding=2)(image)
    around = torch.nn.functional.pad(image, [2] * 4)
    windows = around.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # [B, 3, 5, 5, SIDE, SIDE]
    same = (windows == crop[:, :, None, None]).all(dim=(1, 4, 5))
    assert same.any(dim=(1, 2)).all()
    times = same.sum(dim=0)
    assert times.min() >= 8  # of 20.5 expected for each of 25 shifts
    assert times.max() <= 40


def test_half_the_images_are_flipped():
    image = torch.rand(1000, 3, 4, 4)
    flipped = K.RandomHorizontalFlip()(image)
    mirrored = (flipped == image.flip(-1)).all(dim=(1, 2, 3))
    assert (mirrored | (flipped == image).all(dim=(1, 2, 3))).all()
    assert 430 < mirrored.sum() < 570


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_shape_range_and_images_apart(name, image):
    strength, sign = torch.full((B,), 0.9), torch.ones(B)
    strength[0], sign[1] = 0.0, -1
    changed = OPERATIONS[name](image, strength, sign)
    assert changed.shape == image.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    alone = OPERATIONS[name](image[5:6], strength[5:6], sign[5:6])
    torch.testing.assert_close(changed[5:6], alone, atol=1e-5, rtol=0)
    if name not in ("auto_contrast", "equalize", "invert", "posterize"):
        torch.testing.assert_close(changed[0], image[0], atol=1e-5, rtol=0)
    assert (changed[1:] - image[1:]).abs().amax(dim=(1, 2, 3)).min() > 0


def known(name: str, value: float, strength: float, sign: float = 1.0) -> float:
    image = torch.full((1, 3, 4, 4), value)
    return float(OPERATIONS[name](image, torch.tensor([strength]), torch.tensor([sign])).mean())


def test_operations_have_the_ranges_of_timm():
    assert known("brightness", 0.4, 1.0) == pytest.approx(0.4 * 1.9)
    assert known("brightness", 0.4, 1.0, -1) == pytest.approx(0.4 * 0.1)
    assert known("solarize", 0.95, 0.1) == pytest.approx(0.05)  # threshold 1 − 0.1
    assert known("solarize", 0.85, 0.1) == pytest.approx(0.85)
    assert known("solarize_add", 0.2, 1.0) == pytest.approx(0.2 + 110 / 255)
    assert known("solarize_add", 0.7, 1.0) == pytest.approx(0.7)
    assert known("posterize", 200 / 255, 0.9) == pytest.approx(128 / 255)  # 1 bit is left
    assert known("posterize", 203 / 255, 0.0) == pytest.approx(192 / 255)  # 4 bits are left
    assert known("invert", 0.3, 0.5) == pytest.approx(0.7)
    bars = torch.zeros(1, 3, 10, 10)
    bars[..., 2] = 1
    moved = OPERATIONS["translate_x"](bars, torch.tensor([1 / 0.9]), torch.tensor([1.0]))
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor([0.5] * 5 + [0, 0, 1, 0, 0]))
    slant = OPERATIONS["rotate"](bars, torch.tensor([3.0]), torch.tensor([1.0]))  # 90°
    row = slant[0, 0].mean(dim=1)
    assert max(row[2], row[7]) > 0.9
    assert row.sum() == pytest.approx(1, abs=0.1)


def test_operations_are_drawn_for_every_image_and_their_strength_varies(image, monkeypatch):
    seen = []

    def note(image, strength, sign):
        seen.append(strength)
        return image + 1

    monkeypatch.setattr(augmentation, "OPERATIONS", {"a": note, "b": lambda x, *_: x - 1})
    many = torch.zeros(2000, 3, 1, 1)
    change = RandAugment(operations=1)(many)[:, 0, 0, 0]
    shares = [(change == v).float().mean().item() for v in (1, -1, 0)]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.04)
    strength = torch.cat(seen)
    assert strength.mean() == pytest.approx(0.9, abs=0.01)
    assert strength.std() == pytest.approx(0.05, abs=0.01)
    assert strength.max() <= 1


def test_a_quarter_of_the_images_lose_a_rectangle_to_noise():
    image = torch.full((1000, 3, 20, 20), 7.0)
    erased = RandomErasing()(image) != 7
    assert torch.equal(erased[:, 0], erased[:, 1])  # the same place in all channels
    hit = erased[:, 0].flatten(1).any(dim=1)
    assert 190 < hit.sum() < 310
    mask = erased[hit, 0]
    rows, columns = mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)
    area = mask.sum(dim=(1, 2))
    assert torch.equal(area, rows * columns)
    assert 0.01 < area.min() / 400 < area.max() / 400 < 0.4
    noise = RandomErasing(probability=1.0)(image)
    noise = noise[noise != 7]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_mixup_mixes_labels_as_it_mixes_pixels(image, label):
    shares = []
    for _ in range(200):
        mixed, target = Mix(switch=0.0)(image, label, CLASSES)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(B))
        share = float(target[0, label[0]])  # label[0] is not label[-1]
        torch.testing.assert_close(mixed, share * image + (1 - share) * image.flip(0))
        shares.append(share)
    shares = torch.tensor(shares)
    # Beta(.8, .8): variance 1 / (4 (2 · .8 + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.07)
    assert shares.var() == pytest.approx(1 / 10.4, abs=0.03)


def test_cutmix_labels_are_the_pasted_area(image, label):
    for _ in range(100):
        mixed, target = Mix(switch=1.0)(image, label, CLASSES)
        other = (mixed != image).any(dim=1)
        assert torch.equal(mixed.movedim(1, -1)[other], image.flip(0).movedim(1, -1)[other])
        area = other[0].float().mean()
        assert (other == other[0]).all()
        expected = (1 - area) * torch.eye(CLASSES)[label] + area * torch.eye(CLASSES)[label.flip(0)]
        torch.testing.assert_close(target, expected)


def test_half_the_batches_are_cut(image, label):
    both = Mix()
    cut = 0
    for _ in range(200):
        mixed, _ = both(image, label, CLASSES)
        cut += bool((mixed == image).all(dim=1).any())
    assert 65 < cut < 135


def test_a_single_image_mixes_with_itself(label):
    image = torch.rand(1, 3, 8, 8)
    for switch in (0.0, 1.0):
        mixed, target = Mix(switch=switch)(image, label[:1], CLASSES)
        torch.testing.assert_close(mixed, image)
        torch.testing.assert_close(target, torch.eye(CLASSES)[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RandAugment(magnitude=11),
            "but that of RandAugment is 11",
        ),
        (lambda: RandAugment(probability=2.0), "one of RandAugment is 2.0"),
        (lambda: RandomErasing(probability=-1), "one of RandomErasing is -1"),
        (lambda: Mix(mixup=0), "set switch to 0 or 1"),
        (lambda: Mix(switch=1.5), "one of Mix is 1.5"),
    ],
)
def test_wrong_options_are_one_sentence(make, message):
    with pytest.raises(DataError, match=message):
        make()
