"""Lengths of steps: of another gradient, of another run, or constant."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.tensorboard import SummaryWriter

from lit_models.grafting import LOGGED, ConstantNorm, ExternalGrafting, IterativeGrafting
from lit_models.module import UnfitDataError
from tests.lit_models.test_explicit_regularisation import batch_of, trained

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
        for step, norm in ((0, 0.5), (2, 0.1)):
            writer.add_scalar(LOGGED, norm, step)
    lengths = Lengths()
    trained([batch_of(4)], ExternalGrafting(str(tmp_path)), lengths, steps=5)
    assert lengths.found == pytest.approx([0.5, 0.3, 0.1, 0.1])


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_run_without_lengths_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnfitDataError, match="Expected"):
        ExternalGrafting(str(tmp_path / folder))


def test_clipping_is_refused():
    trainer = L.Trainer(accelerator="cpu", gradient_clip_val=1.0, logger=False)
    with pytest.raises(UnfitDataError, match="set it to null"):
        ConstantNorm(1.0).on_fit_start(trainer, L.LightningModule())
