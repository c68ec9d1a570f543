"""Train on a machine that may be taken away: stop in time, leave what is needed to go on.

python -m tools.gpu_train EXPERIMENT --minutes 8 --out FOLDER scale=paper …   (or: make gpu-train)

The run's folder has a fixed name. What is there is gone on with, else what an earlier call left in
gpu/. Every minute, and at the end, four files are left in FOLDER: <run>-last.ckpt, <run>-best.ckpt,
<run>.tar.gz with the rest of the run's folder, and, of a finished run, its report <run>.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from errors import UserError, one_sentence_errors
from train import CONFIGS

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ("last", "best")
DELIVERY_SECONDS = 60
PATIENCE_SECONDS = 60  # to end after SIGTERM


def main() -> None:
    """Go on with the run of the command line, or begin it."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_train", allow_abbrev=False)
    parser.add_argument("experiment")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE=VALUE")
    options = parser.parse_intermixed_args()
    with one_sentence_errors():
        name, source = name_of(options.experiment, options.overrides)
        run, out = Path("runs") / name, options.out
        restore(run, ROOT / "gpu")
        if (run / "report.json").is_file():
            print(f"{run} is finished already: its report is in {out / name}.json.")
        elif (run / "checkpoints" / "last.ckpt").is_file():
            print(f"Going on with {run} from step {step_of(run)}.", flush=True)
            work([sys.executable, "runs.py", "resume", str(run)], run, out, options.minutes)
        else:
            # The baseline is an experiment to be trained here by itself, so that it too can stop.
            words = [f"experiment={options.experiment}", f"run_dir={run}", f"data.source={source}"]
            command = [sys.executable, "train.py", *words, "compare=null", *options.overrides]
            work(command, run, out, options.minutes)
        deliver(run, out)


def name_of(experiment: str, overrides: list[str]) -> tuple[str, str]:
    """The run's name, as train.py names runs but without a time, and its source of data."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}", *overrides])
    source = cfg.data.source
    if source == "auto":
        packed = json.loads((ROOT / "gpu" / "bundle.json").read_text())["data"]
        if cfg.data.task not in packed:
            raise UserError(
                f"The bundle holds data of {', '.join(packed)}, not of {cfg.data.task}: pack it "
                f'by make gpu-bundle EXP="{experiment} …".'
            )
        source = packed[cfg.data.task]["source"]
    return f"gpu-{experiment}-{cfg.scale}-{source}-seed{cfg.seed}", source


def work(command: list[str], run: Path, out: Path, minutes: float) -> None:
    """Run a training command for so many minutes, then stop it as a scheduler would.

    Exits with the command's status where it fails by itself.
    """
    end = time.monotonic() + 60 * minutes
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            process.wait(max(0.0, min(DELIVERY_SECONDS, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() < end:
                deliver(run, out)
                continue
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if (run / "report.json").is_file():
                return
            print(f"Stopped after {minutes:g} minutes; the same command goes on ", end="")
            print(f"from step {step_of(run)}." if step_of(run) else "from the start: give it more.")
            return
    if process.returncode != 0:
        deliver(run, out)
        sys.exit(process.returncode)


def step_of(run: Path) -> int:
    """The step of a run's last checkpoint, 0 without one."""
    path = run / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return 0
    return torch.load(path, map_location="cpu", weights_only=True)["global_step"]


def deliver(run: Path, out: Path) -> None:
    """Leave a run in `out`, every file whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    files = {f"{run.name}-{c}.ckpt": run / "checkpoints" / f"{c}.ckpt" for c in CHECKPOINTS}
    files[f"{run.name}.json"] = run / "report.json"
    for name, path in files.items():
        if path.is_file():
            shutil.copyfile(path, out / f".{name}")
            (out / f".{name}").replace(out / name)
    if run.is_dir():
        partial = out / f".{run.name}.tar.gz"
        with tarfile.open(partial, "w:gz") as tar:
            tar.add(run, run.name, filter=lambda m: None if m.name.endswith(".ckpt") else m)
        partial.replace(out / f"{run.name}.tar.gz")


def restore(run: Path, folder: Path) -> None:
    """Put the run that an earlier call left in `folder` in its place, unless one is there."""
    packed = folder / f"{run.name}.tar.gz"
    if run.exists() or not packed.is_file():
        return
    partial = run.with_name(f".{run.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(packed) as tar:
        tar.extractall(partial, filter="data")
    checkpoints = partial / run.name / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    for name in CHECKPOINTS:
        path = folder / f"{run.name}-{name}.ckpt"
        if path.is_file():
            shutil.copyfile(path, checkpoints / f"{name}.ckpt")
    (partial / run.name).replace(run)
    partial.rmdir()


if __name__ == "__main__":
    main()
