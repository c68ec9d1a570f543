"""What is refused before it costs any time, and why a training was for nothing."""

import io
import pickle

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig, OmegaConf

from errors import UserError


def require_valid(cfg: DictConfig) -> None:
    """Refuse, before any data are made, what would fail only after they are.

    Raises:
        UserError: a GPU is asked for and there is none, a seed is none, nothing ends the training,
            or nothing is trained or validated.
    """
    require_device(cfg.trainer.accelerator)
    require_seeds(OmegaConf.to_container(cfg, resolve=True))
    require_end(cfg.trainer)
    if cfg.trainer.get("fast_dev_run"):
        raise UserError(
            "No epoch would be validated and no checkpoint kept, as trainer.fast_dev_run is "
            f"{cfg.trainer.fast_dev_run}: leave it out, and take scale=smoke for a short run."
        )
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        # Lightning takes a whole number for batches and a fraction for a share of them.
        if cfg.trainer.get(key) == 0:
            what = {"limit_val_batches": "validated", "limit_test_batches": "tested"}
            raise UserError(
                f"No epoch would be {what.get(key, 'trained')}, as trainer.{key} is 0: give it at "
                "least one batch, or null for all."
            )


def require_device(accelerator: str) -> None:
    """Fail early, in one sentence, where a GPU is asked for and torch sees none."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            "This configuration asks for a GPU and torch sees none: leave TRAINER out to run on "
            "the CPU, or see `make doctor`."
        )


def require_seeds(config: object, place: str = "") -> None:
    """Refuse a resolved config with a seed, anywhere in it, that a random generator cannot take.

    Raises:
        UserError: a value under `seed` or `…_seed` is no whole number from 0 to 2³² − 1.
    """
    parts = config.items() if isinstance(config, dict) else ()
    if isinstance(config, list):
        parts = enumerate(config)
    for key, value in parts:
        where = f"{place}.{key}" if place else str(key)
        if str(key) != "seed" and not str(key).endswith("_seed"):
            require_seeds(value, where)
        elif type(value) is not int or not 0 <= value < 2**32:
            raise UserError(f"{where} must be a whole number from 0 to 2**32 - 1, got {value!r}.")


def require_end(trainer: DictConfig) -> None:
    """Refuse a training of an unknown number of steps, which no learning rate can follow.

    Raises:
        UserError: neither epochs nor steps are limited.
    """
    endless = trainer.max_epochs == -1 or (trainer.max_epochs is None and trainer.get("max_time"))
    if endless and trainer.get("max_steps") in (None, -1):
        raise UserError(
            "Expected a number of epochs or steps, over which the learning rate decays, but "
            f"trainer.max_epochs is {trainer.max_epochs}: give it, or +trainer.max_steps; "
            "trainer.max_time may end the training earlier."
        )


def require_readable(model: L.LightningModule) -> None:
    """Fail before training where the checkpoints could not be read, as a foreign network's may.

    Raises:
        UserError: the model's state holds objects that `torch.load(weights_only=True)` refuses.
    """
    # Values of tensors are left out, as they are many and never the reason.
    plain = (torch.Tensor, torch.nn.Parameter)
    state = {k: v.new_empty(0) if type(v) in plain else v for k, v in model.state_dict().items()}
    for key, value in state.items():
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise UserError(
                f"The model's state_dict holds {key}, of type {type(value).__name__}, which cannot "
                "be saved and read with weights_only=True: let get_extra_state of that network "
                "return tensors, numbers and strings alone."
            ) from error


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The callbacks of a trainer, an attribute that Lightning sets but does not declare."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def why_not_validated(trainer: L.Trainer) -> str:
    """Say why a training that has ended selected no model."""
    if trainer.max_epochs == 0 or trainer.max_steps == 0:
        why = f"trainer.max_epochs is {trainer.max_epochs} and max_steps {trainer.max_steps}"
        return f"No epoch was validated, so no model was selected: {why}; raise them."
    timer = next((c for c in callbacks_of(trainer) if isinstance(c, Timer)), None)
    left = None if timer is None else timer.time_remaining()
    if left is not None and left <= 0:
        return (
            "No epoch was validated, so no model was selected: trainer.max_time was over after "
            f"{trainer.global_step} steps; raise it, or lower trainer.limit_train_batches."
        )
    return (
        f"No epoch was validated, so no model was selected: trainer.max_epochs is "
        f"{trainer.max_epochs}, max_steps {trainer.max_steps}, check_val_every_n_epoch "
        f"{trainer.check_val_every_n_epoch} and val_check_interval {trainer.val_check_interval}, "
        f"with {trainer.num_training_batches} batches an epoch; raise the first two or lower the "
        "others."
    )
