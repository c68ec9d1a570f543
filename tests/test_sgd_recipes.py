"""Every cell of the tables of Novack et al., arXiv:2211.15853, is one experiment and one word."""

import pytest
from hydra.utils import instantiate

from lit_models.images.resnet import ResNet
from lit_models.images.vgg import VGG
from tests.running import report_of, train_here
from tests.test_text_models import composed
from train import CONFIGS

METHODS = sorted(path.stem for path in (CONFIGS / "sgd").glob("*.yaml"))
PUBLISHED = {
    # learning rates of small, large and penalised large batches; λ of the penalties
    "resnet18_cifar10": ((0.1, 0.1, 0.1), (0.01, 0.01, 0.001, 0.001)),
    "resnet18_cifar100": ((0.1, 0.5, 0.1), (0.01, 0.01, 5e-5, 1e-3)),
    "vgg11_cifar10": ((0.15, 0.01, 0.01), (0.5, 0.5, 2e-5)),
}
PENALTIES = ("gradient_norm", "fisher_trace", "average_jacobian", "unit_jacobian")
BATCHES = {"vgg11": (100, 5000), "resnet18": (128, 5120), "vgg16": (128, 5120)}
NETWORKS = {"vgg11": (VGG, False), "resnet18": (ResNet, True), "vgg16": (VGG, True)}
CELLS = [
    *(f"{network}_{data}" for network in ("resnet18", "vgg16") for data in ("cifar10", "cifar100")),
    "vgg11_cifar10",
]


def of_cell(cell: str, method: str):
    run = ["callbacks.grafting.run=runs/small"] if method == "external_grafting" else []
    return composed(f"sgd_{cell}", f"sgd={method}", *run)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method", METHODS)
def test_batches_steps_and_network_of_a_cell(cell, method):
    cfg = of_cell(cell, method)
    network, data = cell.split("_")
    kind, normed = NETWORKS[network]
    encoder = instantiate(cfg.model.net.encoder)
    assert isinstance(encoder, kind)
    assert bool([*encoder.buffers()]) is normed
    assert f"cifar{cfg.data.classes}" == data
    micro, large = BATCHES[network]
    together = cfg.trainer.get("accumulate_grad_batches", 1)
    assert cfg.data.batch_size == micro
    assert micro * together == (micro if method == "small" else large)
    batches = cfg.trainer.limit_train_batches or 40_000 // micro
    assert batches % together == 0, "every step of the epoch is of a whole batch"
    assert cfg.trainer.max_epochs * batches / together == pytest.approx(5000, rel=0.05)
    assert cfg.model.optimisation.algorithm == "sgd"
    assert cfg.trainer.gradient_clip_val is None
    assert cfg.callbacks.averaging.decay == 0, "the last weights are tested"


@pytest.mark.parametrize("cell", PUBLISHED)
def test_published_rates_and_weights(cell):
    (small, large, penalised), weights = PUBLISHED[cell]
    rates = {"small": small, "large": large} | dict.fromkeys(PENALTIES, penalised)
    for method, rate in rates.items():
        assert of_cell(cell, method).model.optimisation.lr == rate
    for penalty, weight in zip(PENALTIES, weights, strict=False):
        assert of_cell(cell, penalty).callbacks.penalty.weight == weight


@pytest.mark.parametrize("method", [m for m in METHODS if m != "external_grafting"])
def test_every_method_trains(tmp_path, method):
    report = report_of(train_here(tmp_path, "sgd_vgg11_cifar10", f"sgd={method}"))
    assert report["steps"] == (2 if method == "small" else 1)
