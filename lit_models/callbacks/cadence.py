"""When a callback that draws is to draw."""

import lightning as L


def is_due(trainer: L.Trainer, every: int) -> bool:
    """Whether this validation, after a training step, is the first, the last or an `every`-th."""
    if trainer.fit_loop.epoch_loop.global_step == 0:
        return False
    between = trainer.check_val_every_n_epoch or 1
    epochs = trainer.current_epoch + 1
    is_last = epochs + between > trainer.max_epochs
    return is_last or (epochs // between - 1) % every == 0
