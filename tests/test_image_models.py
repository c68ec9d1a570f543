"""The configs of encoders of images: each composes into every experiment, all of one size."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from train import CONFIGS

ENCODERS = sorted(path.stem for path in (CONFIGS / "image_encoder").glob("*.yaml"))
EXPERIMENTS = ["chimera_cifar10", "chimera_imagenet", "chimera_tiny_imagenet"]


def make(experiment: str, encoder: str, *overrides: str):
    """The encoder of an experiment with another one's name, its weights without memory."""
    words = [f"experiment={experiment}", f"image_encoder@model.net.encoder={encoder}", *overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", words)
    with torch.device("meta"):
        return instantiate(cfg.model.net.encoder, _convert_="all")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("scale", ["demo", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_rivals_are_as_large_as_chimera(encoder, experiment, scale):
    rival, chimera = (make(experiment, e, f"scale={scale}") for e in (encoder, "chimera"))
    assert count(rival) == pytest.approx(count(chimera), rel=0.02)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_rival_is_one_word(encoder):
    assert count(make("chimera_cifar10", encoder, "scale=smoke")) > 0


def test_a_rival_without_positions():
    with_positions, without = (make("chimera_imagenet", e) for e in ("vit", "vit_no_positions"))
    grid = with_positions.positions.shape[1:3]
    assert count(with_positions) - count(without) == grid.numel() * with_positions.width


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["smoke", "demo", "paper"])
def test_positions_are_of_the_grid_that_images_are(experiment, scale):
    words = [f"experiment={experiment}", "image_encoder@model.net.encoder=vit", f"scale={scale}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", words)
    side = cfg.data.resolution // cfg.patch
    assert cfg.model.net.encoder.grid == [side, side]
    assert cfg.data.resolution % cfg.patch == 0
