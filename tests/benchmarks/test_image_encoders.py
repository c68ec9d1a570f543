"""Layers that mix patches, of equal size, against their number; whole networks on a GPU."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from lit_models.images.chimera import ChimeraImage
from lit_models.images.classifier import ImageClassifier
from lit_models.images.encoder import ImageEncoder
from lit_models.images.scan import MambaScanImage, ScanImage
from lit_models.images.vit import ViT
from tests.benchmarks.timing import compare
from tests.kernels.comparing import DEVICE

pytestmark = pytest.mark.timeout(1800)

GREEN = ("lit_models/images/test_chimera.py", "lit_models/images/test_encoder.py")
GREEN += ("kernels/grid/test_grid_dags.py",)
IMAGES = {14: 16, 28: 4, 40: 2, 56: 1} if DEVICE == "cpu" else {14: 128, 28: 32, 40: 16, 56: 8}
# Two mixing layers stand for attention and its feed-forward network.
LAYERS = {
    "two Chimera layers": (ChimeraImage, {"layers": 2}),
    "two layers of a scan": (ScanImage, {"layers": 2}),
    "a ViT layer": (ViT, {"layers": 1, "grid": None}),
}


def step(encoder: ImageEncoder, images: int, side: int) -> Callable[[], None]:
    """Forward and backward pass on embedded patches, on a GPU in mixed precision."""
    x = torch.randn(images, side, side, encoder.width, device=DEVICE, requires_grad=True)

    def run() -> None:
        encoder.zero_grad()
        x.grad = None
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            features = encoder.encode(x)
        features.sum().backward()

    return run


@pytest.mark.parametrize("side", IMAGES)
def test_layers_of_equal_size(green, record, side):
    """Width 768, about as many patches at every size of the grid."""
    green(*GREEN)
    encoders = {name: encoder(**options).to(DEVICE) for name, (encoder, options) in LAYERS.items()}
    parameters = {
        name: sum(p.numel() for p in encoder.blocks.parameters())
        for name, encoder in encoders.items()
    }
    times = compare(
        {name: step(encoder, IMAGES[side], side) for name, encoder in encoders.items()},
        rounds=11 if DEVICE == "cuda" else 5,
    )
    result = {"images": IMAGES[side], "grid": side, "parameters": parameters, "times": times}
    record(f"layers of images, {side} x {side} patches", result)


BATCH, CLASSES = 128, 1000
NETWORKS = {
    "Chimera": ChimeraImage,
    "ViT": ViT,
    "a scan": ScanImage,
    "a scan by mamba-ssm": MambaScanImage,
}


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_training_step_at_paper_size(green, record):
    """ImageNet's 224 x 224 pixels, 16 x 16 a patch, in mixed precision; without the optimiser."""
    green(*GREEN)
    images = torch.randn(BATCH, 3, 224, 224, device=DEVICE)
    label = torch.randint(CLASSES, (BATCH,), device=DEVICE)

    def step(encoder: ImageEncoder) -> Callable[[], None]:
        net = ImageClassifier(encoder, CLASSES).to(DEVICE)

        def run() -> None:
            net.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16):
                scores = net.of_images(images)
            F.cross_entropy(scores.float(), label).backward()

        return run

    has_mamba = importlib.util.find_spec("mamba_ssm") is not None
    steps = {
        name: step(encoder())
        for name, encoder in NETWORKS.items()
        if has_mamba or encoder is not MambaScanImage
    }
    times = compare(steps, rounds=5)
    for time in times.values():
        time["images_per_second"] = float(f"{1e3 * BATCH / time['ms'][1]:.4g}")
    record("training step of images at paper size", {"images": BATCH, "times": times})
