"""Carries out runs: what is done is reused, what was interrupted goes on, side by side or alone.

Every run is a process of its own, forked from a server that has imported the libraries, and leaves
the folder `<runs_dir>/<what>-<key>`; it is done when the folder holds a report.json.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from datamodules.cores import cores
from errors import UserError, explain
from ledger.claim import Run, key_of
from report import device_name, provenance, save
from train import prepare_process, train


@dataclass
class Outcome:
    """What came of some runs.

    Attributes:
        reports: report.json of every run that is done, by the run's key.
        failures: of every other run by key, what went wrong, in one sentence.
    """

    reports: dict[str, dict] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def carry_out(
    runs: Iterable[Run],
    runs_dir: Path,
    *,
    title: str,
    alone: bool,
    minutes: float,
    anew: bool = False,
) -> Outcome:
    """Do the runs that are not done, and return the reports of all.

    Args:
        runs: what is wanted; runs of equal keys are one. A run that another goes on from is done
            before it.
        runs_dir: where their folders are.
        title: what the progress display calls them.
        alone: one at once and never from a checkpoint, because a time is measured; otherwise as
            many side by side as there are cores, or GPUs. A run has one thread.
        minutes: about how long all of them take, shown until the first is finished.
        anew: also do what is done.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(runs_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"Waiting for another command that is at work in {runs_dir} …", flush=True)
        lock.acquire()
    try:
        return _carry_out(list(runs), runs_dir, title, alone, minutes, anew)
    finally:
        lock.release()


def _carry_out(
    runs: list[Run], runs_dir: Path, title: str, alone: bool, minutes: float, anew: bool
) -> Outcome:
    wanted = {run.key: run for wish in runs for run in wish.line}
    outcome = Outcome()
    missing = []
    for run in wanted.values():
        if anew:
            shutil.rmtree(runs_dir / run.folder, ignore_errors=True)
        report = _read(runs_dir / run.folder)
        if report is None:
            missing.append(run)
        else:
            outcome.reports[run.key] = report
    if not missing:
        return outcome
    progress = Progress(title, len(wanted), missing, minutes)
    slots = _slots(missing[0].config, alone)
    waiting, running = missing.copy(), {}
    try:
        while waiting or running:
            while slots and (run := _next(waiting, outcome)):
                waiting.remove(run)
                slot = slots.pop()
                process = _start(run, runs_dir / run.folder, slot, resume=not alone)
                running[process.sentinel] = (run, slot, process, time.monotonic())
                progress.show(entry[0] for entry in running.values())
            for sentinel in wait(list(running), timeout=5):
                run, slot, process, began = running.pop(sentinel)
                process.join()
                slots.append(slot)
                folder = runs_dir / run.folder
                report = _read(folder)
                if report is None:
                    outcome.failures[run.key] = _failure(folder, process.exitcode)
                else:
                    outcome.reports[run.key] = report
                progress.finished(run, time.monotonic() - began, outcome, folder)
            progress.show(entry[0] for entry in running.values())
    finally:
        for _, _, process, _ in running.values():
            process.terminate()
        for _, _, process, _ in running.values():
            process.join()
        progress.close()
    return outcome


def _next(waiting: list[Run], outcome: Outcome) -> Run | None:
    """The first run that waits for no other; one whose pretraining failed finds out itself."""
    ended = outcome.reports.keys() | outcome.failures.keys()
    return next((run for run in waiting if run.after is None or run.after.key in ended), None)


def _slots(config: DictConfig, alone: bool) -> list[dict[str, str]]:
    """The environment of each process that may run beside others."""
    on_gpu = "trainer" in config and config.trainer.accelerator != "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count() if on_gpu else 0
    gpus = visible[:count] if any(visible) else range(count)
    places = [{"CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in gpus] or [{}] * cores()
    return places[:1] if alone else places


def _start(run: Run, folder: Path, slot: dict[str, str], resume: bool) -> BaseProcess:
    # Forked from a server that imports once, so that a short training is not mostly imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ledger.runner"])
    resolved = OmegaConf.to_container(run.config, resolve=False)
    process = context.Process(target=work, args=(resolved, run.key, folder, slot, resume))
    process.start()
    return process


def work(config: dict, key: str, folder: Path, slot: dict[str, str], resume: bool) -> None:
    """Do one run in its folder, or go on with it; the body of a run's process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its runs itself
    os.environ.update(slot)
    # One thread whatever the machine and however many runs there are: sums in one order.
    torch.set_num_threads(1)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _read(folder) is not None:
            return
        last = folder / "checkpoints" / "last.ckpt"
        resume = resume and last.is_file()
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)
        with (folder / "log.txt").open("a", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                _execute(OmegaConf.create(config), folder, last if resume else None)
                _require_same_code(config, key)
            except Exception as error:
                traceback.print_exc()
                sentence = explain(error) or f"{type(error).__name__}: {error}".splitlines()[0]
                (folder / "error.txt").write_text(sentence)
                (folder / "report.json").unlink(missing_ok=True)
                sys.exit(1)


def _require_same_code(config: dict, key: str) -> None:
    """Refuse what was measured while the code it names was being changed."""
    resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    if key_of(cast("dict[str, Any]", resolved)) != key:
        raise UserError("the code changed while claims were being tested: leave it, or use a copy.")


def _die_with_parent() -> None:
    """End this process when the one that wanted the run is gone, which may start it again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _execute(cfg: DictConfig, folder: Path, last: Path | None) -> None:
    if "study" in cfg:
        prepare_process()
        report = instantiate(cfg.study, _convert_="all")
        save(
            folder / "report.json",
            report | {"device": device_name(torch.device("cpu"))} | provenance(),
        )
        return
    with open_dict(cfg):
        cfg.run_dir = str(folder)
    train(cfg, resume_from=last)


def _read(folder: Path) -> dict | None:
    path = folder / "report.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _failure(folder: Path, exit_code: int | None) -> str:
    path = folder / "error.txt"
    if path.is_file():
        return path.read_text()
    return f"its process ended with exit code {exit_code} (out of memory, or killed)"


class Progress:
    """Names what is running, what came of it and how long is left.

    Args:
        title: what the runs are for.
        wanted: number of runs, done ones included.
        missing: the runs to be done.
        minutes: about how long all `wanted` take.
    """

    def __init__(self, title: str, wanted: int, missing: list[Run], minutes: float):
        self.missing = {run.key: run for run in missing}
        self.estimate = minutes * 60 * len(missing) / wanted
        self.seconds: dict[str, list[float]] = {}
        self.began = time.monotonic()
        done = wanted - len(missing)
        self.bar = tqdm(
            total=wanted,
            initial=done,
            desc=title,
            bar_format="{desc} {n}/{total}{postfix}",
            disable=None,  # where nobody watches: lines alone
        )
        if done:
            tqdm.write(f"{title}: {done} of {wanted} runs are done already and reused.")

    def show(self, running: Iterable[Run]) -> None:
        """What is running now."""
        names = "; ".join(run.label for run in running)
        self.bar.set_postfix_str(f"about {self.left()} left | {names}")

    def finished(self, run: Run, seconds: float, outcome: Outcome, folder: Path) -> None:
        """A line on a run that has ended."""
        del self.missing[run.key]
        self.seconds.setdefault(run.arm, []).append(seconds)
        self.bar.update()
        failure = outcome.failures.get(run.key)
        told = f"FAILED: {failure} (see {folder}/log.txt)" if failure else "done"
        at = datetime.now(UTC).astimezone().strftime("%H:%M")
        tqdm.write(f"{at} {run.label}: {told} in {seconds:.0f} s; about {self.left()} left")

    def left(self) -> timedelta:
        """Time that the missing runs will take at the pace so far."""
        elapsed = time.monotonic() - self.began
        done = sum(map(len, self.seconds.values()))
        if not done:
            return timedelta(seconds=round(max(0.0, self.estimate - elapsed)))
        spent = [second for seconds in self.seconds.values() for second in seconds]
        typical = sum(spent) / done
        work = sum(_mean(self.seconds.get(run.arm, [typical])) for run in self.missing.values())
        side_by_side = max(1.0, sum(spent) / elapsed)
        return timedelta(seconds=round(work / side_by_side))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.bar.close()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
