"""A large batch's step with a penalty on its micro-batches' gradients, against the plain step."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lit_models.callbacks.explicit_regularisation import (
    AverageJacobian,
    FisherTrace,
    GradientNorm,
    GradientPenalty,
    UnitJacobian,
)
from lit_models.images.classifier import LitImageClassifier
from lit_models.images.resnet import ResNet
from lit_models.images.vgg import VGG
from tests.benchmarks.timing import compare
from tests.kernels.comparing import DEVICE
from tests.lit_models.images.fabricated import image_model

pytestmark = pytest.mark.timeout(1800)

GREEN = (
    "lit_models/callbacks/test_explicit_regularisation.py",
    "lit_models/images/test_convolutional_networks.py",
)
CHANNELS, MICRO_BATCH, MICRO_BATCHES = (16, 100, 3) if DEVICE == "cpu" else (64, 100, 50)
NETWORKS = {
    "VGG-11": lambda: VGG(11, CHANNELS),
    "ResNet-18": lambda: ResNet(channels=CHANNELS),
    "VGG-16 with batch norm": lambda: VGG(16, CHANNELS, batch_norm=True),
}
PENALTIES = {
    "gradient norm": GradientNorm(0.01),
    "Fisher trace": FisherTrace(0.01),
    "average Jacobian": AverageJacobian(0.001),
    "unit Jacobian": UnitJacobian(0.001),
}


def step(
    model: LitImageClassifier, penalty: GradientPenalty | None, batches: list[dict]
) -> Callable[[], None]:
    """The gradient of a large batch, without the optimiser."""

    def run() -> None:
        model.zero_grad()
        for batch in batches:
            if penalty is None:
                objective = model.training_loss(batch)
            else:
                loss, term = penalty.losses(model, batch)
                objective = loss + penalty.weight * term
            (objective / len(batches)).backward()

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_step_with_a_penalty(green, record, name):
    """CIFAR's 32 x 32 pixels, ten classes; one micro-batch too, for its memory."""
    green(*GREEN)
    encoder = NETWORKS[name]()
    model = image_model(encoder, 10).to(DEVICE)
    nn.init.normal_(model.net.out.weight, std=0.1)
    batches = [
        {
            "image": torch.randn(MICRO_BATCH, 3, 32, 32, device=DEVICE),
            "label": torch.randint(10, (MICRO_BATCH,), device=DEVICE),
        }
        for _ in range(MICRO_BATCHES)
    ]
    steps = {"plain": step(model, None, batches)}
    steps |= {label: step(model, penalty, batches) for label, penalty in PENALTIES.items()}
    steps["gradient norm, one micro-batch"] = step(model, PENALTIES["gradient norm"], batches[:1])
    parameters = sum(p.numel() for p in model.parameters())
    result = {"parameters": parameters, "batch": MICRO_BATCH * MICRO_BATCHES}
    result |= {"micro_batch": MICRO_BATCH, "times": compare(steps, rounds=5)}
    record(f"step with a penalty, {name}", result)
