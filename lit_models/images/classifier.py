"""Classification of images by an encoder of any architecture.

A batch is what `lit_models.images.tasks` says. Shapes: B images, R × K patches, D width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_models.images.encoder import ImageEncoder
from lit_models.images.tasks import ImageBatch, ImageClassification
from lit_models.module import LitModule, Optimisation

PERMUTED = "permuted"


class ImageClassifier(nn.Module):
    """Encoder, mean of all patches, linear: a batch to [B, outputs].

    Args:
        encoder: maps images [B, 3, H, W] to features [B, R, K, D], of which D is its `width`.
        outputs: number of classes.
    """

    def __init__(self, encoder: nn.Module, outputs: int):
        super().__init__()
        self.encoder = encoder
        self.out = nn.Linear(cast(int, encoder.width), outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, batch: ImageBatch) -> Float[Tensor, "B outputs"]:
        return self.of_images(batch["image"])

    def of_images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B outputs"]:
        """Class scores of images."""
        return self._pooled(self.encoder(images))

    def permuted(
        self, images: Float[Tensor, "B 3 H W"], order: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B outputs"]:
        """Class scores of images whose patches were taken to other places, see `orders`."""
        encoder = cast(ImageEncoder, self.encoder)
        x = encoder.patches(images)
        patches = x.flatten(1, 2)
        moved = patches.gather(1, order.unsqueeze(-1).expand_as(patches)).view_as(x)
        return self._pooled(encoder.encode(moved))

    def _pooled(self, features: Float[Tensor, "B R K D"]) -> Float[Tensor, "B outputs"]:
        return self.out(features.mean(dim=(1, 2)))


class LitImageClassifier(LitModule):
    """Trains a network to tell what images show.

    Args:
        task: what is predicted, its loss and its metrics.
        net: encoder and classifier.
        optimisation: optimiser and schedule.
        test_resolutions: sides in pixels to which test images are also brought, bicubically, each
            of which adds `test/accuracy_<side>`.
        test_permuted: whether test images are also seen with their patches in random order, an
            order of its own for each, which adds `test/accuracy_permuted`.
        compile: torch.compile the network.

    Raises:
        ValueError: patches are to be permuted, of which the encoder has none.
    """

    task: ImageClassification
    net: ImageClassifier

    def __init__(
        self,
        task: ImageClassification,
        net: ImageClassifier,
        optimisation: Optimisation,
        *,
        test_resolutions: Sequence[int] = (),
        test_permuted: bool = False,
        compile: bool = False,
    ):
        super().__init__(task, net, optimisation, compile=compile)
        if test_permuted and not isinstance(net.encoder, ImageEncoder):
            raise ValueError(
                f"{type(net.encoder).__name__} has no patches that could be permuted: set "
                "model.test_permuted=false."
            )
        self.test_resolutions = tuple(test_resolutions)
        names = [*map(str, test_resolutions), *[PERMUTED] * test_permuted]
        self.view_metrics = MetricCollection(
            {
                f"accuracy_{name}": MulticlassAccuracy(task.num_outputs, average="micro")
                for name in names
            },
            compute_groups=False,
        )

    def training_loss(self, batch: ImageBatch) -> Tensor:
        return self.task.training_loss(self(batch), batch)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        images, label = self.in_precision(batch["image"]), batch["label"]
        for side in self.test_resolutions:
            prediction = self.net.of_images(resized(images, side))
            self.view_metrics[f"accuracy_{side}"].update(prediction, label)
        if f"accuracy_{PERMUTED}" in self.view_metrics:
            patch = cast(ImageEncoder, self.net.encoder).patch
            order = orders(batch["index"], images[0, 0].numel() // patch**2)
            prediction = self.net.permuted(images, order)
            self.view_metrics[f"accuracy_{PERMUTED}"].update(prediction, label)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        for name, value in self.view_metrics.compute().items():
            self.log(f"test/{name}", value)
        self.view_metrics.reset()


def resized(images: Float[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 side side"]:
    """Images of another size."""
    return F.interpolate(
        images, size=(side, side), mode="bicubic", align_corners=False, antialias=True
    )


def orders(index: Int[Tensor, " B"], patches: int) -> Int[Tensor, "B patches"]:
    """A random order of patches for every image, the same whenever the image is seen."""
    rows = []
    for number in index.tolist():
        generator = torch.Generator().manual_seed(number)
        rows.append(torch.randperm(patches, generator=generator))
    return torch.stack(rows).to(index.device)
