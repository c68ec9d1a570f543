"""The moving average against the recursion by hand, in every precision."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_models.callbacks.averaging import ExponentialMovingAverage


class Walk(L.LightningModule):
    """Its weight takes the values 1, 2, 3 … after the steps; it remembers what validation saw."""

    def __init__(self, lr: float = 1.0):
        super().__init__()
        self.lr = lr
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("offset", torch.tensor(119))
        self.register_buffer("statistic", torch.tensor(0.0))
        self.validated = []

    def training_step(self, batch, batch_idx):
        self.statistic += 1
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.weight.item(), self.offset.item(), self.statistic.item()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def walk(module: Walk, steps: int, decay: float, **options) -> L.Trainer:
    data = DataLoader(torch.zeros(steps, 1))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        callbacks=ExponentialMovingAverage(decay),
        **options,
    )
    trainer.fit(module, data, data)
    return trainer


def test_validation_sees_the_average_and_whole_integers():
    module = Walk()
    walk(module, 4, 0.2)
    average = 1.0  # the first step starts the average
    for value, kept in ((2.0, 2 / 11), (3.0, 0.2), (4.0, 0.2)):
        average = kept * average + (1 - kept) * value
    weight, offset, statistic = module.validated[-1]
    torch.testing.assert_close((weight, statistic), (average, average))
    assert offset == 119


class Leap(Walk):
    """Its weight is 1 after the first step and stays 0 after all others."""

    def training_step(self, batch, batch_idx):
        return (self.weight - float(batch_idx == 0)) ** 2 / 2


def test_after_75_steps_nothing_is_left_of_the_beginning():
    """With a fixed decay of .99 the first of 75 steps would weigh .99⁷⁴ = .475."""
    module = Leap()
    walk(module, 75, 0.99)
    assert 0 < module.validated[-1][0] < 1e-6


def test_after_many_steps_the_decay_is_the_given_one():
    module = Leap()
    walk(module, 1000, 0.9)
    # From step 81 on .9 is kept: 1 + t ≥ .9 (10 + t).
    kept = [min(0.9, (1 + t) / (10 + t)) for t in range(1, 1000)]
    assert kept[80:] == [0.9] * 919
    torch.testing.assert_close(module.validated[-1][0], torch.tensor(kept).double().prod().item())


def test_a_decay_of_zero_is_no_average():
    module = Walk()
    walk(module, 4, 0.0)
    assert module.validated[-1] == (4.0, 119, 4.0)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions_average_alike(precision):
    """In bfloat16, 1/64 · 1/10 would be lost against 1, and the average stand still."""
    module, reference = Walk(lr=1 / 64), Walk(lr=1 / 64)
    options = {"val_check_interval": 20}
    trainer = walk(module, 100, 0.9, precision=precision, **options)
    walk(reference, 100, 0.9, **options)
    error = {"bf16-true": 2**-8, "64-true": 1e-6}[precision]
    for seen, expected in zip(module.validated, reference.validated, strict=True):
        assert seen[0] == pytest.approx(expected[0], rel=error)
    (callback,) = (c for c in trainer.callbacks if isinstance(c, ExponentialMovingAverage))
    (average, *_) = callback._average_model.module.parameters()
    assert average.dtype == (torch.float64 if precision == "64-true" else torch.float32)
