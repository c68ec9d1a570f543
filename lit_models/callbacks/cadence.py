"""When a callback is to draw, to measure or to write."""

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy


def is_due(trainer: L.Trainer, every: int) -> bool:
    """Whether this validation, after a training step, is the first, the last or an `every`-th.

    None is where processes share weights (trainer=fsdp), as none of them could draw by itself.
    """
    shared = isinstance(trainer.strategy, ModelParallelStrategy)
    if shared or trainer.fit_loop.epoch_loop.global_step == 0:
        return False
    between = trainer.check_val_every_n_epoch or 1
    epochs = trainer.current_epoch + 1
    # Where steps end the training (max_epochs=-1), its last epoch is not known before.
    most = trainer.max_epochs
    is_last = most is not None and epochs + between > most > 0
    return is_last or (epochs // between - 1) % every == 0


def is_amid_step(trainer: L.Trainer) -> bool:
    """Whether more batches add their gradients before the optimiser's step."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0


def batches_of_step(trainer: L.Trainer) -> int:
    """How many batches add their gradients in this step; an epoch's last step may have fewer."""
    together = trainer.accumulate_grad_batches
    first = trainer.fit_loop.batch_idx // together * together
    return int(min(together, trainer.num_training_batches - first))
