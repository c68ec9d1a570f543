"""Layers that mix patches, of equal size, against the number of patches; on a GPU if any."""

from collections.abc import Callable

import pytest
import torch

from lit_models.chimera_image import ChimeraImage
from lit_models.layers.image_encoder import ImageEncoder
from lit_models.scan_image import ScanImage
from lit_models.vit import ViT
from tests.benchmarks.timing import compare
from tests.kernels.comparing import DEVICE

pytestmark = pytest.mark.timeout(1800)

GREEN = ("lit_models/test_chimera_image.py", "lit_models/layers/test_image_encoder.py")
GREEN += ("kernels/test_grid_dags.py",)
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
    encoders = {
        name: encoder(**options).to(DEVICE) for name, (encoder, options) in LAYERS.items()
    }
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
