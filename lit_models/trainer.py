"""What a trainer has of which Lightning's own types do not tell."""

from typing import Any

from torch.utils.tensorboard import SummaryWriter


def data_of(trainer: Any) -> Any:
    """The data module that the trainer was given; None if it was given loaders."""
    return trainer.datamodule


def board_of(trainer: Any) -> SummaryWriter:
    """TensorBoard, to which every run logs."""
    return trainer.logger.experiment
