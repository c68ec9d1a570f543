"""The moving average against the recursion by hand."""

import lightning as L
import torch
from torch.utils.data import DataLoader

from lit_models.callbacks.averaging import ExponentialMovingAverage


class Walk(L.LightningModule):
    """Its weight takes the values 1, 2, 3 … after the steps; it remembers what validation saw."""

    def __init__(self):
        super().__init__()
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
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_validation_sees_the_average_and_whole_integers():
    module, data = Walk(), DataLoader(torch.zeros(4, 1))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        callbacks=ExponentialMovingAverage(0.9),
    )
    trainer.fit(module, data, data)
    average = 1.0  # the first step starts the average
    for value in (2.0, 3.0, 4.0):
        average = 0.9 * average + 0.1 * value
    weight, offset, statistic = module.validated[-1]
    torch.testing.assert_close((weight, statistic), (average, average))
    assert offset == 119
