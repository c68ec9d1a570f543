"""Train an experiment: compose the config, fit, test the selected checkpoint, report.

python train.py experiment=chimera_lrgb scale=demo      (or: make train EXP=chimera_lrgb)
"""

import ctypes
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from checks import require_readable, require_valid, why_not_validated
from datamodules.base import DataModule
from errors import UNWRITABLE, UserError, one_sentence_errors
from lit_models.callbacks.checkpoint import BestCheckpoint
from lit_models.module import LitModule
from report import compare_with_baseline, print_summary, write_report

CONFIGS = Path(__file__).parent / "configs"
SCALES = ("smoke", "demo", "paper")
# Lightning starts the other processes of a distributed run with the environment of the first one,
# which leaves "<its process id>:<the run's folder>" there.
RUN_DIR_VARIABLE = "RESOLVENT_RUN_DIR"
REQUEUED = "hpc_ckpt_"
"""How Lightning names what it leaves in a run's folder when SLURM announces the end of its time."""
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def by_scale(values: dict[str, object], *, _root_: DictConfig, _parent_: BaseContainer) -> object:
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
    value = values.get(_root_.scale, values["demo"])
    # A bare list could not be resolved in place, as `--cfg job --resolve` does.
    if isinstance(value, list | dict):
        return OmegaConf.create(cast(Any, value), parent=_parent_)
    return value


OmegaConf.register_new_resolver("by_scale", by_scale, replace=True)


@hydra.main(config_path=str(CONFIGS), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Train the composed config; the selection metric on validation data, for Hydra's sweepers."""
    # Of a single run Hydra would say that there is an error before we say which. Of a sweep it says
    # in which run.
    single = HydraConfig.get().mode == RunMode.RUN
    with one_sentence_errors() if single else nullcontext():
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
    require_valid(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    with naming_full_disk(cfg.data.get("cache_dir") or "."):
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.prepare_data()
    with open_dict(cfg):
        if "source" in cfg.data:
            # From here on the run belongs to the source that was found, also when it is resumed.
            cfg.data.source = datamodule.source_used
        folder, is_new = run_folder(cfg, datamodule.source_used)
        cfg.run_dir = str(folder)
    trainer = None
    try:
        with naming_full_disk(folder):
            save_config(cfg)
            model = instantiate(cfg.model, _convert_="all")
            require_readable(model)
            trainer = build_trainer(cfg, model)
            start = resume_from or requeued_state(folder)
            trainer.fit(model, datamodule, ckpt_path=start, weights_only=True)
            return finish(cfg, trainer, model, datamodule)
    except BaseException:
        # What failed before its first step has nothing to be looked at.
        if is_new and (trainer is None or trainer.global_step == 0):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def finish(cfg: DictConfig, trainer: L.Trainer, model: LitModule, datamodule: DataModule) -> dict:
    """Test the selected checkpoint of a training and report; {} in all processes but the first.

    Raises:
        UserError: no checkpoint was selected.
    """
    checkpoints = trainer.checkpoint_callback
    assert isinstance(checkpoints, ModelCheckpoint)
    best_path = checkpoints.best_model_path
    if not best_path:
        raise UserError(why_not_validated(trainer))
    # Not by ckpt_path: Lightning's weight averaging would then put the raw weights back in place.
    best = torch.load(best_path, map_location="cpu", weights_only=True)
    # Lightning would test what SLURM stopped at, wherever it finds that.
    for state in Path(cfg.run_dir).glob(f"{REQUEUED}*.ckpt") if trainer.is_global_zero else ():
        state.unlink()
    trainer.strategy.barrier()
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
        ".*WeightAveraging callback(, but (saving|loading)| with a model that overrides).*",
        ".*LeafSpec.*is deprecated.*",
        ".*weights_only.*",
        ".*exists and is not empty.*",
        ".*sync_dist.*",
        ".*smaller than the logging interval.*",
        ".*single device to ensure each.*",
        ".*Sparse CSR tensor support is in beta.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def run_folder(cfg: DictConfig, source: str) -> tuple[Path, bool]:
    """The folder of this run, by experiment, scale, source and seed, and whether it is new.

    Raises:
        UserError: it cannot be made.
    """
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
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run's folder {folder} cannot be made ({error.strerror}): name another place by "
            "runs_dir or run_dir."
        ) from error
    return folder, is_new


def requeued_state(folder: Path) -> Path | None:
    """What this run goes on from where SLURM requeued its job, None where it starts anew.

    Raises:
        UserError: there is one and this job was not requeued.
    """
    if not any(folder.glob(f"{REQUEUED}*.ckpt")):
        return None
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        raise UserError(
            f"{folder} holds a run that SLURM stopped: go on with `make resume RUN={folder}`, or "
            "name another run_dir."
        )
    state = last_state(folder)
    print(f"Going on from {state}, as SLURM requeued this job.", flush=True)
    return state


def last_state(folder: Path) -> Path | None:
    """The checkpoint of a run's last step, its own or what Lightning left when SLURM stopped it."""
    own = folder / "checkpoints" / "last.ckpt"
    found = [path for path in (own, *folder.glob(f"{REQUEUED}*.ckpt")) if path.is_file()]
    if len(found) < 2:
        return found[0] if found else None
    # Lightning saves on the signal, amid a step or after an epoch's last: of equal steps our own.
    return max(found, key=lambda path: (_step(path), path == own))


def _step(path: Path) -> int:
    return torch.load(path, map_location="cpu", weights_only=True)["global_step"]


@contextmanager
def naming_full_disk(folder: str | Path) -> Iterator[None]:
    """Name the folder in errors of writing that name no file, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        if error.errno in UNWRITABLE and error.filename is None:
            error.filename = str(folder)
        raise


def save_config(cfg: DictConfig) -> None:
    """Write the resolved config, all that is needed to rebuild the model or resume the run.

    What lies in the run's folder is written as `${run_dir}/…`, as a run may be moved.
    """
    movable = cfg.copy()
    movable.run_dir = r"\${run_dir}"
    resolved = cast("dict[str, Any]", OmegaConf.to_container(movable, resolve=True))
    resolved |= {"run_dir": cfg.run_dir}
    partial = Path(cfg.run_dir) / f".config.{os.getpid()}.yaml"
    OmegaConf.save(OmegaConf.create(resolved), partial)
    partial.replace(Path(cfg.run_dir) / "config.yaml")


def build_trainer(cfg: DictConfig, model: LitModule) -> L.Trainer:
    """Lightning's trainer with the callbacks and logger of the config."""
    best = BestCheckpoint(
        Path(cfg.run_dir) / "checkpoints",
        monitor=f"val/{model.task.selection}",
        mode="max" if model.task.maximise else "min",
    )
    callbacks = [best, *(instantiate(c) for c in cfg.callbacks.values() if c is not None)]
    logger = instantiate(cfg.logger)
    logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    # Lightning leaves there, and looks there for, what a run that SLURM requeues goes on from.
    how = {"default_root_dir": cfg.run_dir, "callbacks": callbacks, "logger": logger}
    return instantiate(cfg.trainer, **how)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
