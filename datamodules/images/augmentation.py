"""Augmentation of image batches, on their device.

Pieces map images to images; a config may name those of kornia.augmentation as they are. Whatever is
drawn comes from torch's global random streams, which the data module seeds for every batch.

Shapes: B images of a batch; H, W height and width.
"""

import math
from collections.abc import Callable, Mapping
from typing import cast

import kornia
import torch
import torch.nn.functional as F
from kornia import enhance
from torch import Tensor
from torch.distributions import Beta

from datamodules.errors import DataError

Piece = Callable[[Tensor], Tensor]
"""Images float32 [B, 3, H, W] → the same shape."""


class Augmentation:
    """Pieces on pixels in [0, 1], then normalisation, pieces on normalised pixels, and mixing.

    Args:
        pixels: pieces by name, applied in this order to values in [0, 1]; None for one left out.
        normalised: pieces by name, applied in this order after normalisation.
        mix: of images and labels of a batch.
    """

    def __init__(
        self,
        pixels: Mapping[str, Piece | None] | None = None,
        normalised: Mapping[str, Piece | None] | None = None,
        mix: "Mix | None" = None,
    ):
        self.pixels, self.normalised = _present(pixels), _present(normalised)
        self.mix = mix

    def __call__(
        self, image: Tensor, label: Tensor, classes: int, normalise: Piece
    ) -> dict[str, Tensor]:
        """The augmented "image" and, where labels are mixed, "target" float32 [B, classes].

        Args:
            image: float32 [B, 3, H, W] in [0, 1].
            label: int64 [B].
            classes: their number.
            normalise: maps values in [0, 1] to what the model takes.
        """
        for piece in self.pixels:
            image = piece(image)
        image = normalise(image)
        for piece in self.normalised:
            image = piece(image)
        if self.mix is None:
            return {"image": image}
        image, target = self.mix(image, label, classes)
        return {"image": image, "target": target}


def _present(pieces: Mapping[str, Piece | None] | None) -> list[Piece]:
    return [piece for piece in (pieces or {}).values() if piece is not None]


GREATEST_MAGNITUDE = 10
GREY = 0.5
"""Stands where a moved image leaves room."""


def _brightness(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return enhance.adjust_brightness_accumulative(image, _factor(strength, sign))


def _contrast(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return enhance.adjust_contrast_with_mean_subtraction(image, _factor(strength, sign))


def _colour(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return enhance.adjust_saturation_with_gray_subtraction(image, _factor(strength, sign))


def _sharpness(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return enhance.sharpness(image, _factor(strength, sign))


def _posterize(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    # kornia's shifts in floating numbers, which drops a level now and then.
    step = 2 ** (4 + (4 * strength).floor()).view(-1, 1, 1, 1)  # 4 to 0 bits are kept
    return ((image * 255).round() / step).floor() * step / 255


def _solarize(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return enhance.solarize(image, 1 - strength)


def _solarize_add(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    # kornia's adds to bright pixels too, and then inverts them.
    brighter = (image + 110 / 255 * strength.view(-1, 1, 1, 1)).clamp(max=1)
    return torch.where(image < 128 / 255, brighter, image)


def _auto_contrast(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return enhance.normalize_min_max(image)


def _equalize(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return enhance.equalize(image)


def _invert(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return 1 - image


def _rotate(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    angle = math.radians(30) * strength * sign
    return _moved(image, [[angle.cos(), angle.sin(), 0], [-angle.sin(), angle.cos(), 0]])


def _shear_x(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _moved(image, [[1, 0.3 * strength * sign, 0], [0, 1, 0]])


def _shear_y(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _moved(image, [[1, 0, 0], [0.3 * strength * sign, 1, 0]])


def _translate_x(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _moved(image, [[1, 0, 0.45 * image.shape[-1] * strength * sign], [0, 1, 0]])


def _translate_y(image: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _moved(image, [[1, 0, 0], [0, 1, 0.45 * image.shape[-2] * strength * sign]])


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _colour,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""Of images float32 [B, 3, H, W] in [0, 1], each with a strength in [0, 1] and a sign, [B]."""


def _factor(strength: Tensor, sign: Tensor) -> Tensor:
    """0.1 to 1.9, where 1 leaves an image as it is."""
    return 1 + 0.9 * strength * sign


def _moved(image: Tensor, rows: list[list[Tensor | float]]) -> Tensor:
    """Moved by matrices [B, 2, 3] of pixels about the middle, given by their entries."""
    _, _, height, width = image.shape
    entries = [torch.as_tensor(e, device=image.device).expand(len(image)) for r in rows for e in r]
    matrix = torch.stack(entries, dim=1).view(-1, 2, 3).to(image)
    middle = image.new_tensor([(width - 1) / 2, (height - 1) / 2])
    shift = matrix[:, :, 2] + middle - matrix[:, :, :2] @ middle
    matrix = torch.cat([matrix[:, :, :2], shift.unsqueeze(2)], dim=2)
    return kornia.geometry.warp_affine(
        image,
        matrix,
        (height, width),
        padding_mode="fill",
        fill_value=image.new_full((3,), GREY),
    )


class RandAugment:
    """A few random operations on every image, all of about one magnitude.

    Every image draws its own operations, with replacement, as in timm's rand-m9-mstd0.5-inc1, the
    recipe of DeiT; kornia.augmentation.auto.RandAugment draws them once for a whole batch, has no
    noise in the magnitude and counts it out of 30, so only the operations are kornia's.

    Args:
        operations: a layer after the other, for each image.
        magnitude: mean strength, 10 at most.
        spread: standard deviation of the magnitude, drawn anew for every operation.
        probability: that an operation drawn is applied.

    Raises:
        DataError: a magnitude or a probability out of range.

    Source: Cubuk et al., arXiv:1909.13719; ranges as timm's "increasing" ones, whose magnitudes
    end at 10. A moved image leaves room for grey.
    """

    def __init__(
        self,
        operations: int = 2,
        magnitude: float = 9.0,
        spread: float = 0.5,
        probability: float = 0.5,
    ):
        if not 0 <= magnitude <= GREATEST_MAGNITUDE:
            raise DataError(
                f"Expected a magnitude from 0 to {GREATEST_MAGNITUDE}, but that of RandAugment is "
                f"{magnitude}."
            )
        _check_probability("RandAugment", probability)
        self.operations, self.magnitude = operations, magnitude
        self.spread, self.probability = spread, probability

    def __call__(self, image: Tensor) -> Tensor:
        for _ in range(self.operations):
            image = self._layer(image)
        return image

    def _layer(self, image: Tensor) -> Tensor:
        # All is drawn on the CPU, where it is equal for every device and asks no GPU to wait.
        count = len(image)
        drawn = torch.randint(len(OPERATIONS), (count,))
        strength = self.magnitude + self.spread * torch.randn(count)
        strength = strength.clamp(0, GREATEST_MAGNITUDE) / GREATEST_MAGNITUDE
        sign = torch.randint(2, (count,)) * 2.0 - 1
        drawn[torch.rand(count) >= self.probability] = -1
        changed = image.clone()
        for i, change in enumerate(OPERATIONS.values()):
            rows = (drawn == i).nonzero().squeeze(1)
            if len(rows):
                there = rows.to(image.device)
                how = (strength[rows].to(image), sign[rows].to(image))
                changed[there] = change(image[there], *how)
        return changed


class RandomErasing:
    """A random rectangle of some images becomes noise; of normalised images.

    The rectangle is that of kornia.augmentation.RandomErasing, which would fill it with one value.

    Args:
        probability: that an image is changed.
        area: least and largest share of the image.
        ratio: least and largest height over width.

    Raises:
        DataError: a probability out of range.

    Source: Zhong et al., arXiv:1708.04896; with noise of mean 0 and standard deviation 1 in every
    pixel, as DeiT, arXiv:2012.12877.
    """

    def __init__(
        self,
        probability: float = 0.25,
        area: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 10 / 3),
    ):
        _check_probability("RandomErasing", probability)
        self.rectangle = kornia.augmentation.RandomErasing(
            cast("tuple[float, float]", tuple(area)),
            cast("tuple[float, float]", tuple(ratio)),
            value=1.0,
            p=probability,
        )

    def __call__(self, image: Tensor) -> Tensor:
        erased = self.rectangle(torch.zeros_like(image[:, :1]))
        return torch.where(erased > 0, torch.randn_like(image), image)


class Mix:
    """Mixup or CutMix of a batch with itself in reverse order, and soft labels that say how much.

    One share λ and one rectangle hold for a batch, as in timm; kornia's RandomMixUpV2 draws λ
    evenly and cannot draw it from a Beta distribution, and neither chooses between the two.

    Args:
        mixup: α of Mixup's λ ~ Beta(α, α).
        cutmix: α of CutMix's λ ~ Beta(α, α), the share of the area that stays.
        switch: probability of CutMix, where a batch is mixed.
        probability: that a batch is mixed.

    Raises:
        DataError: an α that is not positive or a probability out of range.

    Source: Zhang et al., arXiv:1710.09412; Yun et al., arXiv:1905.04899.
    """

    def __init__(
        self,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        switch: float = 0.5,
        probability: float = 1.0,
    ):
        if min(mixup, cutmix) <= 0:
            raise DataError(
                f"Expected positive parameters of Beta distributions, but those of Mix are {mixup} "
                f"and {cutmix}: set switch to 0 or 1 to leave one way of mixing out."
            )
        for value in (switch, probability):
            _check_probability("Mix", value)
        self.mixup, self.cutmix = mixup, cutmix
        self.switch, self.probability = switch, probability

    def __call__(self, image: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Mixed images float32 [B, 3, H, W] and labels float32 [B, classes].

        Args:
            image: float32 [B, 3, H, W].
            label: int64 [B].
            classes: their number.
        """
        target = F.one_hot(label, classes).float()
        if torch.rand(()) >= self.probability:
            return image, target
        if torch.rand(()) < self.switch:
            image, share = self._cut(image)
        else:
            share = float(Beta(self.mixup, self.mixup).sample())
            image = share * image + (1 - share) * image.flip(0)
        return image, share * target + (1 - share) * target.flip(0)

    def _cut(self, image: Tensor) -> tuple[Tensor, float]:
        """Images with a rectangle of others, and the share of the area that is their own."""
        height, width = image.shape[-2:]
        side = math.sqrt(1 - float(Beta(self.cutmix, self.cutmix).sample()))
        # The middle is anywhere, so that the rectangle may be cut off at an edge.
        spans = []
        for length in (height, width):
            half, middle = int(length * side) // 2, int(torch.randint(length, ()))
            spans.append(slice(max(0, middle - half), min(length, middle + half)))
        image, other = image.clone(), image.flip(0)
        image[:, :, spans[0], spans[1]] = other[:, :, spans[0], spans[1]]
        area = math.prod(span.stop - span.start for span in spans)
        return image, 1 - area / (height * width)


def _check_probability(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise DataError(f"Expected a probability from 0 to 1, but one of {what} is {value}.")
