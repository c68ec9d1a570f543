"""Penalties of micro-batches against finite differences, closed forms, and in training."""

import math
from copy import deepcopy
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data

from kernels.autograd import FirstDerivativesOnlyError
from lit_models.callbacks.explicit_regularisation import (
    AverageJacobian,
    FisherTrace,
    GradientNorm,
    UnitJacobian,
)
from lit_models.graphs.tasks import MultilabelClassification, Regression
from lit_models.images.classifier import LitImageClassifier
from lit_models.images.vgg import VGG
from lit_models.layers.fixed_point import FixedPoint
from lit_models.module import LitModule, Optimisation, UnfitDataError
from lit_models.operators.operator import LitOperator
from lit_models.operators.tasks import Forecast
from tests.lit_models.images.fabricated import ENCODERS, GRID, image_model, pixels

PENALTIES = [GradientNorm, FisherTrace, AverageJacobian, UnitJacobian]
of_each_kind = pytest.mark.parametrize("kind", PENALTIES, ids=lambda kind: kind.__name__)
CLASSES, SIDE = 3, 4


class Smooth(nn.Module):
    """A small network that can be differentiated everywhere."""

    width = 5

    def __init__(self, norm: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, self.width, 3, padding=1)
        self.norm = nn.BatchNorm2d(self.width) if norm else nn.Identity()

    def forward(self, images):
        return self.norm(self.conv(images)).tanh().movedim(1, -1)


class Flat(nn.Module):
    """No features but the pixels, so that the classifier is logistic regression."""

    width = 3

    def forward(self, images):
        return images.movedim(1, -1)


def classifier(encoder: nn.Module, **options) -> LitImageClassifier:
    model = image_model(encoder, CLASSES, **options)
    nn.init.normal_(model.net.out.weight)
    return model.double()


def batch_of(images: int) -> dict[str, torch.Tensor]:
    return {
        "image": torch.randn(images, 3, SIDE, SIDE, dtype=torch.float64),
        "label": torch.randint(CLASSES, (images,)),
    }


def objective(model, penalty, batch, seed: int = 0) -> torch.Tensor:
    """The loss of a step, with the same draws whenever it is computed."""
    torch.manual_seed(seed)
    loss, term = penalty.losses(model, batch)
    return loss + penalty.weight * term


@of_each_kind
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("together", [1, 2])
def test_gradient_is_that_of_finite_differences(kind, norm, together):
    model, penalty, batch = classifier(Smooth(norm)), kind(0.7, together), batch_of(6)
    # A step of 1e-6 changes no label that is drawn: the draws are frozen.
    parameters = list(model.parameters())
    got = torch.autograd.grad(objective(model, penalty, batch), parameters)
    for _ in range(3):
        direction = [torch.randn_like(p) for p in parameters]
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
            values.append(objective(model, penalty, batch).item())
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.sub_(d, alpha=step)
        slope = sum((g * d).sum() for g, d in zip(got, direction, strict=True)).item()
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


class TestLogisticRegression:
    """x, the mean of an image's pixels with a one for the bias; p, the softmax of W x."""

    def parts(self):
        model, batch = classifier(Flat()), batch_of(7)
        x = batch["image"].mean(dim=(2, 3))
        x = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], dim=1)
        out = model.net.out
        W = torch.cat([out.weight, out.bias.unsqueeze(1)], dim=1).detach().requires_grad_()
        return model, batch, x, W, (x @ W.T).softmax(dim=1)

    def gradient_in(self, model, value):
        weight, bias = torch.autograd.grad(value, [model.net.out.weight, model.net.out.bias])
        return torch.cat([weight, bias.unsqueeze(1)], dim=1)

    def test_gradient_norm(self):
        model, batch, x, W, p = self.parts()
        residual = p - nn.functional.one_hot(batch["label"], CLASSES)
        expected = (residual.T @ x / 7).square().sum()
        _, term = GradientNorm(1.0).losses(model, batch)
        torch.testing.assert_close(term, expected)
        (slope,) = torch.autograd.grad(expected, W)
        torch.testing.assert_close(self.gradient_in(model, term), slope)

    @pytest.mark.slow
    def test_the_mean_of_the_fisher_penalty_is_the_trace_over_the_samples(self):
        model, batch, x, _, p = self.parts()
        # tr F of a sample: |x|² (1 − Σ p²), as labels are drawn from p.
        trace = (x.square().sum(dim=1) * (1 - p.square().sum(dim=1))).mean()
        torch.manual_seed(0)
        penalty = FisherTrace(1.0)
        draws = torch.stack([penalty.losses(model, batch)[1].detach() for _ in range(4000)])
        error = draws.std() / math.sqrt(len(draws))
        assert abs(draws.mean() - trace.detach() / 7) < 4 * error
        assert error < 0.02 * draws.mean()

    def test_average_jacobian(self):
        model, batch, x, *_ = self.parts()
        # Σ_k f_k has the gradient of x̄ for every class.
        _, term = AverageJacobian(1.0).losses(model, batch)
        torch.testing.assert_close(term, CLASSES * x.mean(dim=0).square().sum())

    def test_unit_jacobian(self):
        model, batch, x, *_ = self.parts()
        # A unit vector's outer product with x̄ is as long as x̄.
        _, term = UnitJacobian(1.0).losses(model, batch)
        torch.testing.assert_close(term, x.mean(dim=0).square().sum())


@pytest.mark.parametrize("kind", [GradientNorm, AverageJacobian])
def test_a_loop_over_micro_batches_and_vmap_agree(kind):
    model, batch = classifier(Smooth()), batch_of(12)
    parameters = list(model.parameters())
    whole = torch.autograd.grad(objective(model, kind(0.7, together=3), batch), parameters)
    parts = [
        torch.autograd.grad(objective(model, kind(0.7), part), parameters)
        for part in (
            {name: x[first : first + 4] for name, x in batch.items()} for first in (0, 4, 8)
        )
    ]
    for vectorised, *looped in zip(whole, *parts, strict=True):
        torch.testing.assert_close(vectorised, sum(looped) / 3)


def test_vmap_draws_for_every_micro_batch():
    model, batch = classifier(Smooth()), batch_of(2)
    # Twice the same micro-batch: only draws of their own make two different penalties.
    batch = {name: torch.cat([x, x]) for name, x in batch.items()}
    torch.manual_seed(0)
    one = UnitJacobian(1.0).losses(model, {name: x[:2] for name, x in batch.items()})[1]
    torch.manual_seed(0)
    two = UnitJacobian(1.0, together=2).losses(model, batch)[1]
    assert not torch.isclose(one, two)


@pytest.mark.parametrize("norm", [False, True], ids=["unequal", "batch norm"])
def test_what_vmap_cannot_do_is_looped(norm):
    model, batch = classifier(Smooth(norm)), batch_of(6 if norm else 7)
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(4), slice(4, 7))]
    if norm:
        parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(3), slice(3, 6))]
    loss, term = GradientNorm(1.0, together=2).losses(model, batch)
    found = [GradientNorm(1.0).losses(model, part) for part in parts]
    sizes = [len(part["label"]) for part in parts]
    mean = sum(n * each for n, (each, _) in zip(sizes, found, strict=True)) / sum(sizes)
    torch.testing.assert_close(loss, mean)
    torch.testing.assert_close(term, sum(each for _, each in found) / 2)


def test_graphs_are_not_divided():
    with pytest.raises(UnfitDataError, match="got DataBatch"):
        GradientNorm(1.0, together=2).losses(classifier(Smooth()), Batch.from_data_list([Data()]))


@pytest.mark.slow
def test_the_fisher_trace_of_several_labels_is_that_of_one():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5, bias=False)

        def forward(self, batch):
            return self.linear(batch.x)

    torch.manual_seed(0)
    model = LitModule(MultilabelClassification(5), nn.Identity(), Optimisation())
    model.net = Linear()
    batch = Batch(x=torch.randn(6, 4), y=torch.ones(6, 5))
    batch.y[0, 1] = math.nan
    penalty = FisherTrace(1.0)
    draws = torch.stack([penalty.losses(model, batch)[1].detach() for _ in range(3000)])
    p = model(batch).detach().sigmoid()
    traces = batch.x.square().sum(dim=1, keepdim=True) * p * (1 - p)
    n = model.task.targets(batch)
    assert n == 29
    trace = traces[~batch.y.isnan()].mean()
    assert draws.mean() * n == pytest.approx(trace.item(), rel=0.05)


@pytest.mark.parametrize("together", [1, 2])
def test_attention_is_differentiated_twice(together):
    model = image_model(ENCODERS["vit"](), CLASSES)
    nn.init.normal_(model.net.out.weight)
    images = torch.randn(4, 3, *pixels(model.net.encoder, *GRID))
    batch = {"image": images, "label": torch.randint(CLASSES, (4,))}
    objective(model, GradientNorm(1.0, together), batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("gradient", ["implicit", "phantom"])
def test_a_fixed_point_is_not_differentiated_twice(gradient):
    w = torch.tensor(0.3, requires_grad=True)
    z, _ = FixedPoint(gradient=gradient)(lambda z: (w * z).tanh() + w, torch.zeros(2, 3))
    with pytest.raises(FirstDerivativesOnlyError):
        torch.autograd.grad(z.sum(), w, create_graph=True)


@pytest.mark.parametrize(
    ("options", "words", "match"),
    [
        ({"precision": "16-mixed"}, {}, "do not vanish"),
        ({}, {"compile": True}, "model.compile=false"),
    ],
)
def test_what_cannot_be_penalised_is_refused(options, words, match):
    model = image_model(Smooth(), 2, **words)
    trainer = Mock(spec=L.Trainer, **{"precision": "32-true"} | options)
    with pytest.raises(UnfitDataError, match=match):
        GradientNorm(1.0).setup(trainer, model, "fit")


def test_two_penalties_are_refused_and_one_goes_with_its_trainer():
    model, trainer = classifier(Smooth()), Mock(spec=L.Trainer, precision="32-true")
    one = GradientNorm(1.0)
    one.setup(trainer, model, "fit")
    with pytest.raises(UnfitDataError, match="one penalty"):
        UnitJacobian(1.0).setup(trainer, model, "fit")
    one.teardown(trainer, model, "fit")
    assert model.penalty is None


class Batches(L.LightningDataModule):
    def __init__(self, batches: list, batch_size: int):
        super().__init__()
        self.batches, self.batch_size = batches, batch_size

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def trained(
    batches: list[dict], *callbacks, encoder=None, steps: int = 1, lr=0.1, batch_size=None,
    accumulate=None, algorithm="sgd",
):  # fmt: skip
    """A model after steps of all batches each, how its weights moved, and what it logged."""
    torch.manual_seed(0)
    how = Optimisation(lr=lr, warmup=0.0, decay="none", algorithm=algorithm)
    model = image_model(encoder or Smooth(), CLASSES, how)
    nn.init.normal_(model.net.out.weight)
    model.double()
    begin = [p.detach().clone() for p in model.parameters()]
    trainer = L.Trainer(
        accelerator="cpu", precision="64-true", max_steps=steps, max_epochs=-1, logger=False,
        callbacks=[*callbacks], accumulate_grad_batches=accumulate or len(batches),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, Batches(batches, batch_size or len(batches[0]["label"])))
    moved = [p.detach() - b for p, b in zip(model.parameters(), begin, strict=True)]
    return model, moved, trainer.logged_metrics


def test_a_step_is_the_mean_over_micro_batches_in_any_order():
    batches = [batch_of(4) for _ in range(3)]
    model, moved, logged = trained(batches, GradientNorm(0.7))
    torch.manual_seed(0)
    fresh = classifier(Smooth()).requires_grad_()
    with torch.no_grad():
        for p, q, m in zip(fresh.parameters(), model.parameters(), moved, strict=True):
            p.copy_(q - m)
    mean = sum(objective(fresh, GradientNorm(0.7), batch) for batch in batches) / 3
    for m, g in zip(moved, torch.autograd.grad(mean, list(fresh.parameters())), strict=True):
        torch.testing.assert_close(m, -0.1 * g)
    _, other, _ = trained(batches[::-1], GradientNorm(0.7))
    for m, o in zip(moved, other, strict=True):
        torch.testing.assert_close(m, o)
    assert logged["train/penalty"] > 0


def test_the_penalty_makes_gradients_smaller():
    batches = [batch_of(8)]
    norms = []
    for weight in (0.0, 10.0):
        model, *_ = trained(batches, GradientNorm(weight), steps=60, lr=0.05)
        norms.append(GradientNorm(1.0).losses(model, batches[0])[1].item())
    assert norms[1] < 0.5 * norms[0]


def test_batch_norm_has_the_statistics_of_a_micro_batch():
    batches = [batch_of(4), batch_of(4)]
    encoder = Smooth(norm=True)
    before = deepcopy(encoder).double()
    trained(batches, GradientNorm(0.7), encoder=encoder)
    # One step, of two micro-batches, each of which is forgotten by a tenth.
    one, two = (before.conv(batch["image"]).mean(dim=(0, 2, 3)) for batch in batches)
    torch.testing.assert_close(encoder.norm.running_mean, 0.09 * one + 0.1 * two)


def test_vgg_is_differentiated_twice():
    model = image_model(VGG(11, 2), CLASSES)
    batch = {"image": torch.randn(2, 3, 32, 32), "label": torch.tensor([0, 2])}
    nn.init.normal_(model.net.out.weight)
    objective(model, GradientNorm(1.0), batch).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_task_without_a_distribution_says_so():
    model = classifier(Smooth())
    model.task = Regression(CLASSES)
    prediction = torch.zeros(2, CLASSES, requires_grad=True)
    with pytest.raises(UnfitDataError, match="Regression has no distribution"):
        FisherTrace(1.0).scalar(model, prediction.sum(), [prediction], {})


def test_a_model_that_makes_no_one_prediction_says_so():
    model = LitOperator(
        Forecast(), nn.Conv1d(1, 1, 1), Optimisation(), channels=1, training="rollout"
    )
    batch = {"input": torch.randn(2, 1, 1, 8), "target": torch.randn(2, 3, 1, 8)}
    loss, term = GradientNorm(1.0).losses(model, batch)
    assert loss > 0
    assert term > 0
    with pytest.raises(UnfitDataError, match="GradientNorm"):
        UnitJacobian(1.0).losses(model, batch)


def test_drawn_labels_follow_the_prediction_and_miss_where_labels_miss():
    y = torch.tensor([[0.0, math.nan]]).expand(3000, 2)
    torch.manual_seed(0)
    chance = 0.3
    prediction = torch.full((3000, 2), math.log(chance / (1 - chance)))
    drawn = MultilabelClassification(2).drawn(prediction, batch := Batch(y=y))
    assert drawn.y[:, 0].mean() == pytest.approx(chance, abs=0.04)
    assert drawn.y[:, 1].isnan().all()
    assert batch.y is y
    assert not y[:, 0].any()
