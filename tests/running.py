"""Run the entry points as a user does, on a few generated peptides, in a folder of the test's."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import runs
import train
from errors import one_sentence_errors
from report import as_override

ROOT = Path(__file__).parent.parent
FEW = "data.generated_size=[60,20,20]"


def arguments(folder: Path, *overrides: str, few: Sequence[str] = (FEW,)) -> list[str]:
    """Overrides for a smoke run on few generated data, below `folder`, on the CPU."""
    cache = os.environ.get("RESOLVENT_TEST_CACHE", folder / "data")
    return [
        "scale=smoke",
        "trainer=cpu",
        "data.source=generated",
        *few,
        "compare=null",
        f"runs_dir={as_override(str(folder / 'runs'))}",
        f"data.cache_dir={as_override(str(cache))}",
        *overrides,
    ]


def few_of(experiment: str) -> list[str]:
    """What makes an experiment's generated data few; at smoke scale trajectories are few anyway."""
    config = ROOT / f"configs/experiment/{experiment}.yaml"  # a misspelt one there is not
    return [] if config.is_file() and "/data: pde/" in config.read_text() else [FEW]


def train_here(folder: Path, experiment: str, *overrides: str) -> Path:
    """Train in this process; the run's folder."""
    before = set((folder / "runs").glob(f"{experiment}-*"))
    call_main(f"experiment={experiment}", *arguments(folder, *overrides, few=few_of(experiment)))
    (run,) = set((folder / "runs").glob(f"{experiment}-*")) - before
    return run


def call_main(*overrides: str) -> None:
    """train.main() with a command line, errors told as to a user."""
    with pytest.MonkeyPatch.context() as patch, one_sentence_errors():
        patch.setattr(sys, "argv", ["train.py", *overrides])
        for variable in ("RESOLVENT_RUN_DIR", "LOCAL_RANK", "PL_GLOBAL_SEED"):
            patch.delenv(variable, raising=False)
        train.main()


def call_runs(command: str, run: Path) -> object:
    """A command of runs.py, errors told as to a user."""
    with one_sentence_errors():
        return runs.COMMANDS[command](run)


def train_outside(folder: Path, experiment: str, *overrides: str):
    """Train in a process of its own; the finished process."""
    flags = [override for override in overrides if override.startswith("-")]
    overrides = tuple(override for override in overrides if override not in flags)
    command = [sys.executable, str(ROOT / "train.py"), *flags, f"experiment={experiment}"]
    return subprocess.run(
        [*command, *arguments(folder, *overrides, few=few_of(experiment))],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


def report_of(run: Path) -> dict:
    """The run's report."""
    return json.loads((run / "report.json").read_text())


def scalars(run: Path, tag: str) -> dict[int, float]:
    """What TensorBoard shows for a tag, by step; of a step logged twice, the later value."""
    found = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        if tag in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars(tag)}
    return found


def compose_model(experiment: str, *overrides: str):
    """The resolved model config of an experiment."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}", *overrides])
    return OmegaConf.create(OmegaConf.to_container(cfg.model, resolve=True)), cfg
