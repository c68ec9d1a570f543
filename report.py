"""What a finished run says: report.json for machines, a last screen for people."""

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.core.override_parser.types import Quote, QuotedString
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from checks import callbacks_of
from datamodules.base import DataModule
from lit_models.callbacks.averaging import ExponentialMovingAverage
from lit_models.callbacks.progress import RunProgress, peak_memory_mib
from lit_models.module import LitModule

CODE = ("configs", "datamodules", "kernels", "ledger", "lit_models", "studies", "tests", "tools")
LIBRARIES = ("torch", "lightning", "torch-geometric", "torchmetrics", "numpy")
TRIVIAL = {
    "constant": "constant predictor",
    "persistence": "persistence forecast",
    "mean_field": "mean training field",
    "majority": "most frequent class",
    "mean_label": "mean training label",
    "bigram": "bigram model",
}
"""What the last screen calls a task's trivial prediction."""


def write_report(
    cfg: DictConfig,
    trainer: L.Trainer,
    model: LitModule,
    datamodule: DataModule,
    test_metrics: Mapping[str, float],
) -> dict:
    """Collect the run's facts and write them to report.json."""
    progress = next(c for c in callbacks_of(trainer) if isinstance(c, RunProgress))
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    assert best.best_model_score is not None
    tested = {name.removeprefix("test/"): value for name, value in test_metrics.items()}
    task, whole = model.task, (datamodule.train_dataset, datamodule.test_dataset)
    batches = (datamodule.whole(dataset) for dataset in whole)
    report = {
        "experiment": cfg.experiment_name,
        "scale": cfg.scale,
        "seed": cfg.seed,
        "data": datamodule.provenance,
        "selected": {
            "metric": best.monitor,
            "value": float(best.best_model_score),
            "test": tested[task.selection],
            "checkpoint": "checkpoints/best.ckpt",
        },
        "test": tested,
        "trivial": task.trivial,
        task.trivial: task.score_trivial(*batches),
        "maximise": task.maximise,
        "averaging": averaging(trainer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "probes": {
            type(callback).__name__: cast(Any, callback).probe()
            for callback in callbacks_of(trainer)
            if hasattr(callback, "probe")
        },
        f"{datamodule.counted}_per_second": progress.samples_per_second,
        "seconds_per_step": progress.seconds_per_step,
        "peak_memory_mib": peak_memory_mib(),
        "device": device_name(trainer.strategy.root_device),
        **provenance(),
    }
    save(Path(cfg.run_dir) / "report.json", report)
    return report


def averaging(trainer: L.Trainer) -> float | None:
    """The decay of the moving average of weights that was tested; None if it was the weights."""
    averages = (c for c in callbacks_of(trainer) if isinstance(c, ExponentialMovingAverage))
    return next((average.decay for average in averages if average.decay), None)


def provenance() -> dict:
    """With which versions, from which commit and when something was measured."""
    return {
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in LIBRARIES},
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def save(path: Path, report: dict) -> None:
    """Write a JSON file, whole or not at all; NaN becomes null, as JSON has none."""
    partial = path.with_name(f".{path.name}.partial")
    text = json.dumps(_finite(report), indent=2, allow_nan=False, ensure_ascii=False)
    partial.write_text(text + "\n")
    partial.replace(path)


def number(value: float | None) -> float:
    """What a report's number was before it was written: NaN for null."""
    return math.nan if value is None else value


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor and the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str | None:
    """The commit of the code, with `-dirty` where the working tree, results aside, differs.

    Outside git it is the commit that `make gpu-bundle` packed; None where there is neither.
    """
    root = Path(__file__).parent
    if (root / ".git").exists() and shutil.which("git") is not None:
        git = partial(subprocess.run, cwd=root, capture_output=True, text=True, check=False)
        head = git(["git", "rev-parse", "HEAD"])
        if head.returncode == 0:
            # The first of several claims leaves its JSON, which is nothing that the second runs on.
            change = git(["git", "diff", "--quiet", "HEAD", "--", ".", ":(exclude)results"])
            return head.stdout.strip() + ("-dirty" if change.returncode else "")
    bundle = root / "gpu" / "bundle.json"
    if not bundle.is_file():
        return None
    packed = json.loads(bundle.read_text())
    changed = packed["code"] != code() and not str(packed["commit"]).endswith("-dirty")
    return f"{packed['commit']}-dirty" if changed else packed["commit"]


def code() -> str:
    """12 hex digits that are equal for equal code, configs and tests, with git or without."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    files = [
        path
        for folder in CODE
        for path in (root / folder).rglob("*.*")
        if path.suffix in (".py", ".yaml", ".json")
    ]
    for path in sorted([*files, *root.glob("*.py")]):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def compare_with_baseline(cfg: DictConfig, report: dict) -> dict:
    """Train the experiment `cfg.compare` on the same data and add its test metrics to the report.

    It runs in a process of its own, free of this run's distributed state, and leaves its run in a
    folder inside this one. Where it fails the report says so by a null.
    """
    if cfg.compare is None:
        return report
    print(f"\nMeasuring the baseline on the same data and split (EXP={cfg.compare}) …", flush=True)
    folder = Path(cfg.run_dir) / cfg.compare
    data = cast("dict[str, Any]", OmegaConf.to_container(cfg.data, resolve=True))
    # Everything else says which data these are.
    how = ("_target_", "batch_size", "num_workers", "size_jitter", "pre_transform")
    how += ("batch_transform", "augmentation", "repeats")
    overrides = [f"data.{k}={as_override(v)}" for k, v in data.items() if k not in how]
    overrides += [f"{key}={as_override(cfg[key])}" for key in ("scale", "seed")]
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    command = [sys.executable, str(Path(__file__).with_name("train.py"))]
    command += [f"experiment={cfg.compare}", f"run_dir={as_override(str(folder))}", *overrides]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    test = None
    if done.returncode == 0:
        test = json.loads((folder / "report.json").read_text())["test"]
    report["baseline"] = {"experiment": cfg.compare, "test": test}
    save(Path(cfg.run_dir) / "report.json", report)
    return report


def as_override(value: object) -> str:
    """A value in the grammar of Hydra's overrides, from which the same value is read again."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{as_override(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_override, value)) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    return "null" if value is None else str(value)


def print_summary(cfg: DictConfig, report: dict) -> None:
    """The last screen: what was measured, on which data, against what, and what to do next."""
    metric = report["selected"]["metric"].removeprefix("val/")
    value, trivial = number(report["test"][metric]), report["trivial"]
    decay = report.get("averaging")
    arrow = "higher is better" if report["maximise"] else "lower is better"
    data, run = report["data"], cfg.run_dir
    counted = "graphs" if "graphs" in data else "samples"
    lines = [
        f"{report['experiment']} at scale {report['scale']}, seed {report['seed']}: "
        f"{report['parameters']:,} parameters, {report['steps']} steps",
        f"data: {data['task']}, source {data['source'].upper()}"
        + (f", limited to {data['limit']} {counted} a split" if data["limit"] else ""),
        f"test {metric} ({arrow})"
        + (f", of weights averaged with decay {decay:g}" if decay else ""),
        f"  {report['experiment']:<24}{value:.4f}",
    ]
    rivals = {TRIVIAL[trivial]: number(report[trivial].get(metric))}
    failed = None
    if "baseline" in report:
        baseline = report["baseline"]
        rivals[baseline["experiment"]] = number((baseline["test"] or {}).get(metric))
        failed = baseline["experiment"] if baseline["test"] is None else None
    lines += [f"  {name:<24}{score:.4f}" for name, score in rivals.items()]
    for name, score in {report["experiment"]: value, **rivals}.items():
        if math.isnan(score):
            why = "it failed, see above" if name == failed else f"its {metric} is not defined"
            lines.append(f"The {name} has no score: {why}.")
    for name, score in rivals.items():
        if not (math.isnan(value) or math.isnan(score)) and (
            value <= score if report["maximise"] else value >= score
        ):
            lines.append(f"At this scale {report['experiment']} is NOT better than the {name}.")
    if data["source"] == "generated":
        lines.append("Generated data: this number may not be compared with published ones.")
    if data["source"] == "variant":
        lines.append("A variant of the official data: no published number may be compared.")
    lines += [
        f"report: {run}/report.json",
        f"next:   make tensorboard        make eval RUN={run}",
        f"        make predict RUN={run}",
        f"        make train EXP={report['experiment']} SCALE=paper TRAINER=gpu",
    ]
    width = max(map(len, lines))
    print("\n" + "─" * width, *lines, "─" * width, sep="\n")
