"""A training whose callbacks are looked at."""

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger


def fit(folder, model, data, *callbacks, epochs: int = 1, **options) -> L.Trainer:
    """Train on the CPU with events in `folder`; the trainer, when it is done."""
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[*callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        **options,
    )
    trainer.fit(model, data)
    trainer.logger.finalize("success")
    return trainer
