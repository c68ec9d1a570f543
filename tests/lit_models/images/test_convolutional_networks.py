"""VGG and ResNet: their sizes as published, and what they make of images."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lit_models.images.resnet import ResNet
from lit_models.images.vgg import VGG
from tests.lit_models.images.fabricated import image_model

NETWORKS = {
    "resnet18": lambda channels: ResNet(channels=channels),
    "vgg11": lambda channels: VGG(11, channels),
    "vgg16_bn": lambda channels: VGG(16, channels, batch_norm=True),
}


def test_resnet18_has_the_published_number_of_parameters():
    model = image_model(ResNet(), 10)
    # 11.17 million, of which the linear layer has 512 · 10 + 10.
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


@pytest.mark.parametrize("depth", [11, 16])
def test_vgg_has_as_many_layers_with_weights_as_its_name_says(depth):
    model = image_model(VGG(depth, 2), 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_vgg11_has_the_published_convolutions():
    shapes = [m.weight.shape[:2] for m in VGG(11).modules() if isinstance(m, nn.Conv2d)]
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    assert shapes == [(after, before) for before, after in pairwise(widths)]


def test_no_patches_to_permute():
    with pytest.raises(ValueError, match="VGG has no patches"):
        image_model(VGG(11, 2), 10, test_permuted=True)


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match="depth 11 or 16, got 13"):
        VGG(13)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [32, 64])
def test_features_of_images_of_any_size(name, side):
    network = NETWORKS[name](2)
    step = 8 if name == "resnet18" else 32
    features = network(torch.randn(3, 3, side, side))
    assert features.shape == (3, side // step, side // step, network.width)


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_neither_vanish_nor_explode_when_new(name):
    torch.manual_seed(0)
    network = NETWORKS[name](16)
    assert 0.1 < network(torch.randn(16, 3, 32, 32)).std() < 10


def test_batch_norm_takes_the_place_of_biases():
    normed = VGG(16, 2, batch_norm=True)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in normed.modules()) == 13
    assert not any(m.bias is not None for m in normed.modules() if isinstance(m, nn.Conv2d))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in VGG(16, 2).modules())
