"""Augmentation of image batches, on their device.

Pieces map images to images; a config may name those of kornia.augmentation as they are. Whatever is
drawn comes from torch's global random streams, which the data module seeds for every batch.

Shapes: B images of a batch; H, W height and width.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

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
        mix: "Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None" = None,
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
