"""What a classifier of images does, in TensorBoard: what it sees, from where, and what it mistakes.

Shapes: B images, H × W pixels, R × K patches, N = R · K.
"""

from functools import partial
from typing import Any, cast

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from torch import Tensor, nn

from kernels.grid import GridDag, grid_dags
from lit_models.callbacks.cadence import is_due
from lit_models.callbacks.untouched import untouched
from lit_models.images.chimera import ChimeraGridMixer
from lit_models.images.classifier import ImageClassifier
from lit_models.images.tasks import ImageBatch
from lit_models.module import LitModule
from lit_models.trainer import board_of, data_of


class ImagePictures(Callback):
    """Shows images, by the weights that are validated.

    `augmented`: a training batch as the network gets it. `receptive_field`: how much every pixel
    counts for the features of the patch amid the image, of any encoder. `dags`, of Chimera's first
    and last layer: how much every patch weighs there on the way to that patch, by each DAG.
    `most_confused`: the validation images whose class was held for the least likely.

    The data module has `mean` and `std`, by which its images are normalised, and `label_names`.

    Args:
        every_n_epochs: validation epochs between two drawings; the first and the last are drawn.
        images: number of images in a picture, and of those that receptive fields are a mean of.
    """

    def __init__(self, every_n_epochs: int = 5, images: int = 16):
        self.every_n_epochs, self.images = every_n_epochs, images
        self.hook = None

    @rank_zero_only
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0:
            data = data_of(trainer)
            shown = shown_images(batch["image"][: self.images], data)
            titles = [self._title(batch, i, data) for i in range(len(shown))]
            figure = draw_images(shown, titles)
            board_of(trainer).add_figure("augmented", figure, trainer.global_step)

    def _title(self, batch: ImageBatch, i: int, data: L.LightningDataModule) -> str:
        if "target" not in batch:
            return name_of(int(batch["label"][i]), data)
        shares, classes = batch["target"][i].topk(2)
        pairs = zip(shares.tolist(), classes.tolist(), strict=True)
        return ", ".join(f"{share:.2f} {name_of(label, data)}" for share, label in pairs if share)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Averaged weights are in place now; when the epoch ends, they are taken away before this
        # callback's turn.
        if not (trainer.is_global_zero and is_due(trainer, self.every_n_epochs)):
            return
        module = cast(LitModule, pl_module)
        self.confused: list[tuple[float, Tensor, int, int]] = []
        self.hook = module.net.register_forward_hook(self._keep)
        self._draw_fields(trainer, module)

    def _keep(self, net: nn.Module, inputs: tuple, prediction: Tensor) -> None:
        self.prediction = prediction

    def _draw_fields(self, trainer: L.Trainer, module: LitModule) -> None:
        data, board = data_of(trainer), board_of(trainer)
        batch = next(iter(data.val_dataloader()))
        batch = {name: value[: self.images] for name, value in batch.items()}
        batch = module.in_precision(trainer.strategy.batch_to_device(batch))
        encoder, step = cast(ImageClassifier, module.net).encoder, trainer.global_step
        figure = draw_maps({"|∂ features / ∂ pixels|": receptive_field(encoder, batch["image"])})
        board.add_figure("receptive_field", figure, step)
        fields = dag_fields(encoder, batch["image"])
        if fields:
            board.add_figure("dags", draw_maps(fields), step)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.hook is None:
            return
        label = batch["label"]
        surprise = -self.prediction.float().log_softmax(dim=1).gather(1, label[:, None])[:, 0]
        worst = surprise.topk(min(self.images, len(label))).indices
        guess = self.prediction.argmax(dim=1)
        for i in worst.tolist():
            self.confused.append(
                (float(surprise[i]), batch["image"][i].cpu(), int(label[i]), int(guess[i]))
            )
        self.confused = sorted(self.confused, key=lambda one: -one[0])[: self.images]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.hook is None:
            return
        self.hook.remove()
        self.hook = None
        data = data_of(trainer)
        images = shown_images(torch.stack([image for _, image, _, _ in self.confused]), data)
        titles = [
            f"{name_of(label, data)} → {name_of(guess, data)}"
            for _, _, label, guess in self.confused
        ]
        figure = draw_images(images, titles)
        board_of(trainer).add_figure("most_confused", figure, trainer.global_step)


def name_of(label: int, data: L.LightningDataModule) -> str:
    """A class's name, cut where it is long."""
    names = getattr(data, "label_names", [])
    return str(names[label] if names else label)[:24]


def shown_images(images: Float[Tensor, "B 3 H W"], data: Any) -> Float[Tensor, "B H W 3"]:
    """Normalised images as colours from 0 to 1."""
    mean, std = (torch.tensor(list(x)).view(3, 1, 1) for x in (data.mean, data.std))
    return (images.float().cpu() * std + mean).clamp(0, 1).movedim(1, -1)


def receptive_field(encoder: nn.Module, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "H W"]:
    """How much each pixel counts for the patch amid the image, the mean of images; at most 1.

    It is the gradient by the pixel of the sum of that patch's features.

    Source: Luo et al., "Understanding the Effective Receptive Field", arXiv:1701.04128.
    """
    with torch.inference_mode(False), untouched(encoder):
        pixels = images.clone().requires_grad_()
        features = encoder(pixels)
        middle = features[:, features.shape[1] // 2, features.shape[2] // 2]
        (gradient,) = torch.autograd.grad(middle.sum(), pixels)
    field = gradient.float().abs().mean(dim=(0, 1)).cpu()
    return field / field.max().clamp(min=1e-30)


def dag_fields(
    encoder: nn.Module, images: Float[Tensor, "B 3 H W"]
) -> dict[str, Float[Tensor, "R K"]]:
    """What each patch weighs on the way to the one amid the image, by layer and DAG.

    Of the first and the last Chimera layer, the mean over images and heads of the entries of
    (I − A)⁻¹ times the factor of the values; {} without such layers.
    """
    layers = {n: m for n, m in encoder.named_modules() if isinstance(m, ChimeraGridMixer)}
    chosen = {name: layers[name] for name in (*layers,)[:: len(layers) - 1 or 1]}
    seen: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple) -> None:
        seen[name] = inputs[0]

    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in chosen.items()]
    try:
        with torch.no_grad():
            encoder(images)
            return {
                f"{name}, from {dag.root}": weights_of_middle(dag)
                for name, layer in chosen.items()
                for dag in layer.operands(seen[name])
            }
    finally:
        for hook in hooks:
            hook.remove()


def weights_of_middle(dag: GridDag) -> Float[Tensor, "R K"]:
    """Of the patch amid the image, the mean over images and heads of its row of the resolvent."""
    images, rows, columns, heads = dag.left.shape
    nodes = rows * columns
    one = dag.left.new_ones(images, rows, columns, 1)
    each = torch.eye(nodes, device=one.device).view(1, rows, columns, 1, nodes)
    mixed = grid_dags(
        [dag._replace(B=one, C=one)], each.expand(images, -1, -1, heads, -1).contiguous()
    )
    return mixed[:, rows // 2, columns // 2].mean(dim=(0, 1)).view(rows, columns).cpu()


def draw_images(images: Float[Tensor, "B H W 3"], titles: list[str]) -> Figure:
    """Images in a square, each with its title."""
    columns = max(1, int(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.8 * columns, 2 * rows), layout="constrained")
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axes in panels:
        axes.axis("off")
    for axes, image, title in zip(panels, images, titles):
        axes.imshow(image.numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=7)
    return figure


def draw_maps(maps: dict[str, Tensor]) -> Figure:
    """Maps of positive numbers, up to four in a row, each with a scale of its own."""
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, maps.items()
    ):
        figure.colorbar(axes.imshow(values.numpy(), interpolation="nearest"), ax=axes, shrink=0.8)
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return figure
