"""When the checkpoint that a run goes on from may be written."""

from unittest.mock import Mock

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_models.callbacks.checkpoint import LastCheckpoint


@pytest.mark.parametrize(
    ("batch", "accumulated", "is_last", "may"),
    [
        (4, 1, False, True),
        (4, 1, True, False),  # the end of the epoch writes its own
        (3, 2, False, True),
        (4, 2, False, False),  # amid a step, as after going on from an earlier checkpoint
    ],
)
def test_no_checkpoint_loses_a_gradient(tmp_path, monkeypatch, batch, accumulated, is_last, may):
    asked = Mock()
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", asked)
    trainer = Mock(spec=L.Trainer, accumulate_grad_batches=accumulated)
    trainer.fit_loop = Mock(batch_idx=batch)
    trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = is_last
    LastCheckpoint(tmp_path, "last", 1).on_train_batch_end(trainer, None, None, None, batch)
    assert asked.called == may
