"""Train an experiment: compose the config, fit, test the selected checkpoint, report.

python train.py experiment=chimera_lrgb scale=demo      (or: make train EXP=chimera_lrgb)
"""

import ctypes
import logging
import math
import os
import time
import warnings
from pathlib import Path

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from errors import UserError, one_sentence_errors
from report import compare_with_baseline, print_summary, write_report

CONFIGS = Path(__file__).parent / "configs"
SCALES = ("smoke", "demo", "paper")
# Lightning starts the other processes of a distributed run with the environment of the first one,
# which leaves "<its process id>:<the run's folder>" there.
RUN_DIR_VARIABLE = "RESOLVENT_RUN_DIR"
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def by_scale(values: dict[str, object], *, _root_: DictConfig) -> object:
    """Config resolver: the value for the chosen scale, `${by_scale:{smoke:1, demo:2, paper:3}}`.

    A scale that is left out has demo's value.

    Raises:
        UserError: there is no such scale, or the values have none for demo.
    """
    if _root_.scale not in SCALES:
        raise UserError(f"scale must be one of {', '.join(SCALES)}, got {_root_.scale!r}.")
    if "demo" not in values or not set(values) <= set(SCALES):
        raise UserError(
            f"by_scale takes a value for demo and, where theirs differ, for smoke and paper, got "
            f"{', '.join(map(str, values))}: correct the names of the scales in the config."
        )
    return values.get(_root_.scale, values["demo"])


OmegaConf.register_new_resolver("by_scale", by_scale, replace=True)


@hydra.main(config_path=str(CONFIGS), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Train the composed config; the selection metric on validation data, for Hydra's sweepers."""
    report = train(cfg)
    return report["selected"]["value"] if report else math.nan


def train(cfg: DictConfig, resume_from: Path | None = None) -> dict:
    """Run one experiment from its composed config to its report, and return the report.

    Args:
        cfg: the composed config; `cfg.run_dir` names the folder of an interrupted run.
        resume_from: checkpoint to go on from.

    Raises:
        UserError: the config asks for what cannot be had, in one sentence.
    """
    prepare_process()
    require_device(cfg.trainer.accelerator)
    L.seed_everything(cfg.seed, verbose=False)
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.prepare_data()
    with open_dict(cfg):
        if "source" in cfg.data:
            # From here on the run belongs to the source that was found, also when it is resumed.
            cfg.data.source = datamodule.source_used
        cfg.run_dir = str(run_folder(cfg, datamodule.source_used))
    save_config(cfg)
    model = instantiate(cfg.model, _convert_="all")
    trainer = build_trainer(cfg, model)
    trainer.fit(model, datamodule, ckpt_path=resume_from, weights_only=True)
    if not trainer.checkpoint_callback.best_model_path:
        raise UserError(
            f"No epoch was validated, so no model was selected: trainer.max_epochs is "
            f"{trainer.max_epochs} and trainer.check_val_every_n_epoch "
            f"{trainer.check_val_every_n_epoch}; raise the first or lower the second."
        )
    # Not by ckpt_path: Lightning's weight averaging would then put the raw weights back in place.
    best = torch.load(
        trainer.checkpoint_callback.best_model_path, map_location="cpu", weights_only=True
    )
    # Of a model whose weights are shared among processes too.
    set_model_state_dict(model, best["state_dict"], options=StateDictOptions(full_state_dict=True))
    test_metrics = trainer.test(model, datamodule, verbose=False)[0]
    report = {}
    if trainer.is_global_zero:
        report = write_report(cfg, trainer, model, datamodule, test_metrics)
        report = compare_with_baseline(cfg, report)
        print_summary(cfg, report)
    return report


def prepare_process() -> None:
    """Make CPUs treat denormal numbers as zero and keep memory; silence idle warnings."""
    # A resolvent decays exponentially with distance; its denormal entries cost a CPU up to ten
    # times the time of a product. Threads inherit the setting, so it comes before any work.
    torch.set_flush_denormal(True)
    # glibc hands memory of more than 32 MB back at every release, and the system clears each page
    # of the next allocation: up to two fifths of a step on long sentences. So all of it is kept, in
    # one arena, as those of other threads, such as autograd's, are handed back all the same.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_ARENA_MAX, 1)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*WeightAveraging callback, but (saving|loading).*",
        ".*LeafSpec.*is deprecated.*",
        ".*weights_only.*",
        ".*exists and is not empty.*",
        ".*sync_dist.*",
        ".*smaller than the logging interval.*",
        ".*single device to ensure each.*",
        ".*Sparse CSR tensor support is in beta.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def require_device(accelerator: str) -> None:
    """Fail early, in one sentence, where a GPU is asked for and torch sees none."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            "This configuration asks for a GPU and torch sees none: leave TRAINER out to run on "
            "the CPU, or see `make doctor`."
        )


def run_folder(cfg: DictConfig, source: str) -> Path:
    """The folder of this run, named by experiment, scale, data source and seed."""
    owner, _, inherited = os.environ.get(RUN_DIR_VARIABLE, "").partition(":")
    if cfg.run_dir is not None:
        folder = Path(cfg.run_dir)
    elif "LOCAL_RANK" in os.environ and owner not in ("", str(os.getpid())):
        folder = Path(inherited)
    else:
        name = f"{cfg.experiment_name}-{cfg.scale}-{source}-seed{cfg.seed}"
        swept = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        parent = Path(HydraConfig.get().runtime.output_dir if swept else cfg.runs_dir)
        folder = parent / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        while folder.exists():
            folder = folder.with_name(folder.name + "+")
    os.environ[RUN_DIR_VARIABLE] = f"{os.getpid()}:{folder}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_config(cfg: DictConfig) -> None:
    """Write the resolved config, all that is needed to rebuild the model or resume the run."""
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    partial = Path(cfg.run_dir) / f".config.{os.getpid()}.yaml"
    OmegaConf.save(resolved, partial)
    partial.replace(Path(cfg.run_dir) / "config.yaml")


def build_trainer(cfg: DictConfig, model: L.LightningModule) -> L.Trainer:
    """Lightning's trainer with the callbacks and logger of the config."""
    mode = "max" if model.task.maximise else "min"
    best = ModelCheckpoint(
        dirpath=Path(cfg.run_dir) / "checkpoints",
        filename="best",
        monitor=f"val/{model.task.selection}",
        mode=mode,
        enable_version_counter=False,
    )
    callbacks = [best, *(instantiate(c) for c in cfg.callbacks.values() if c is not None)]
    logger = instantiate(cfg.logger)
    logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    return instantiate(cfg.trainer, callbacks=callbacks, logger=logger)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
