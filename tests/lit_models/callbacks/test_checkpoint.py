"""When the checkpoint that a run goes on from may be written."""

from unittest.mock import Mock

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_models.callbacks.checkpoint import BestCheckpoint, LastCheckpoint


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
    LastCheckpoint(tmp_path, "last", 1).on_train_batch_end(
        trainer, L.LightningModule(), None, None, batch
    )
    assert asked.called == may


def test_a_checkpoint_that_was_moved_knows_where_it_is_and_its_score(tmp_path):
    kept, moved = (BestCheckpoint(tmp_path / name, "val/ap", "max") for name in ("a", "b"))
    path = str(tmp_path / "a/best.ckpt")
    kept.best_model_path = kept.kth_best_model_path = path
    kept.best_k_models, kept.best_model_score = {path: 0.5}, 0.5
    state = kept.state_dict()
    assert str(tmp_path) not in str(state)
    moved.load_state_dict(state)
    path = str(tmp_path / "b/best.ckpt")
    assert moved.best_k_models == {path: 0.5}
    assert (moved.best_model_path, moved.kth_best_model_path) == (path, path)
    assert (moved.best_model_score, moved.last_model_path) == (0.5, "")
