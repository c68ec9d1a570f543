"""Lengths of steps: of another gradient, of another run, or constant."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lit_models.callbacks.grafting import LOGGED, ConstantNorm, ExternalGrafting, IterativeGrafting
from lit_models.module import UnfitDataError
from tests.lit_models.callbacks.test_explicit_regularisation import batch_of, trained

LR = 0.1


def length(moved) -> float:
    return torch.cat([m.flatten() for m in moved]).norm().item()


def direction(moved) -> torch.Tensor:
    flat = torch.cat([m.flatten() for m in moved])
    return flat / flat.norm()


def test_a_constant_norm_keeps_the_direction():
    batches = [batch_of(4), batch_of(4)]
    _, plain, _ = trained(batches, lr=LR)
    _, moved, logged = trained(batches, ConstantNorm(0.3), lr=LR)
    assert length(moved) == pytest.approx(LR * 0.3)
    torch.testing.assert_close(direction(moved), direction(plain))
    assert logged["train/grad_norm"] == pytest.approx(0.3)


def test_iterative_grafting_takes_the_first_micro_batch_s_length():
    batches = [batch_of(4) for _ in range(3)]
    _, first, _ = trained(batches[:1], lr=LR)
    _, plain, _ = trained(batches, lr=LR)
    _, moved, _ = trained(batches, IterativeGrafting(), lr=LR)
    assert length(moved) == pytest.approx(length(first))
    assert length(moved) != pytest.approx(length(plain), rel=0.05)
    torch.testing.assert_close(direction(moved), direction(plain))


class Lengths(Callback):
    """Of the gradients with which every step is taken."""

    def __init__(self):
        self.found = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients and trainer.global_step == len(self.found) + 1:
            self.found.append(torch.nn.utils.get_total_norm(gradients).item())


def test_external_grafting_takes_the_other_run_s_lengths_step_by_step(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        # A resumed run repeated its last step.
        for step, norm in ((0, 0.5), (2, 7.0), (2, 0.1)):
            writer.add_scalar(LOGGED, norm, step)
    lengths = Lengths()
    trained([batch_of(4)], ExternalGrafting(str(tmp_path)), lengths, steps=5)
    assert lengths.found == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert ExternalGrafting(str(tmp_path), pace=0.5).length(1) == pytest.approx(0.4)


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_run_without_lengths_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnfitDataError, match="Expected"):
        ExternalGrafting(str(tmp_path / folder))


def test_iterative_grafting_of_batches_that_are_not_full_and_steps_that_are_not():
    batches = [batch_of(size) for size in (4, 3, 4)]
    lengths = Lengths()
    # Two steps an epoch, of two micro-batches and of one.
    trained(batches, IterativeGrafting(), lengths, batch_size=8, accumulate=2, steps=3)
    _, moved, _ = trained(batches[:1], lr=1.0)
    assert lengths.found[0] == pytest.approx(length(moved))
    # From where the first step led, with the gradient of the third batch.
    _, moved, _ = trained(batches[:2], IterativeGrafting(), batch_size=8, lr=LR)
    _, both, _ = trained(batches, IterativeGrafting(), batch_size=8, accumulate=2, steps=2, lr=LR)
    last = [b - m for b, m in zip(both, moved, strict=True)]
    assert LR * lengths.found[1] == pytest.approx(length(last))


def test_nothing_moves_where_there_is_no_gradient():
    network = nn.Linear(2, 1)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(network.parameters())
    module = L.LightningModule()
    module.net = network
    ConstantNorm(1.0).on_before_optimizer_step(
        Mock(spec=L.Trainer, global_step=0), module, optimizer
    )
    assert not any(parameter.grad.any() for parameter in network.parameters())


def test_another_optimiser_is_refused():
    with pytest.raises(UnfitDataError, match="algorithm=sgd"):
        trained([batch_of(4)], ConstantNorm(1.0), algorithm="adamw")


@pytest.mark.parametrize(
    ("options", "match"),
    [({"gradient_clip_val": 1.0}, "set it to null"), ({"precision": "16-mixed"}, "16-mixed")],
)
def test_other_lengths_are_refused(options, match):
    usual = {"precision": "32-true", "gradient_clip_val": None, "optimizers": []}
    trainer = Mock(spec=L.Trainer, **usual | options)
    with pytest.raises(UnfitDataError, match=match):
        ConstantNorm(1.0).on_fit_start(trainer, L.LightningModule())
