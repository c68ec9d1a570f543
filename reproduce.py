"""Test a paper's claim: tune, run what is missing, one statistic, one verdict, one JSON.

python reproduce.py reproduce edge_star     (or: make reproduce CLAIM=edge_star)
python reproduce.py tune edge_star          (or: make tune CLAIM=edge_star)
python reproduce.py results                 (or: make results)
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from errors import UserError, one_sentence_errors
from ledger import render
from ledger.claim import Claim, Planner, Run, claim_names, load_claim
from ledger.runner import Outcome, carry_out
from ledger.statistics import cells, estimates, verdict
from report import provenance, save
from train import SCALES, prepare_process

RESULTS = Path(__file__).parent / "results"
SAME_TIME = 0.05
"""By how much the training times of arms may differ that are called equal."""


def reproduce(
    claim: Claim,
    seeds: Sequence[int] | None = None,
    trainer: str | None = None,
    runs_dir: Path = Path("runs/claims"),
    results_dir: Path = RESULTS,
) -> dict[str, Any]:
    """Do the runs that a claim lacks, and write what they show to its JSON and figure.

    Args:
        claim: what is tested.
        seeds: instead of the protocol's; the verdict is then inconclusive unless all are there.
        trainer: config of configs/trainer.
        runs_dir: where runs are kept, and found again.
        results_dir: where `claims/<name>-<scale>.json` is written and tuning is read.

    Raises:
        UserError: the claim was not tuned, or is not as it was tuned.
    """
    seeds = tuple(seeds) if seeds else claim.seeds
    planner = Planner(claim, trainer)
    runs = planner.test_runs(seeds)
    tuning = read_tuning(claim, results_dir)
    require_tuned(claim, runs, tuning)
    title = f"{claim.name} ({claim.scale})"
    outcome = carry_out(runs, runs_dir, title=title, alone=claim.alone, minutes=claim.minutes)
    require_whole_epochs(claim, runs, outcome)
    result = assemble(claim, seeds, runs, outcome, tuning)
    short = "" if set(claim.seeds) <= set(seeds) else f"-{len(seeds)}-seeds"
    path = results_dir / "claims" / f"{claim.name}-{claim.scale}{short}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, result)
    render.figure(path)
    print(render.screen(result), f"\nwritten: {path}", sep="\n")
    return result


def assemble(
    claim: Claim,
    seeds: tuple[int, ...],
    runs: list[Run],
    outcome: Outcome,
    tuning: dict[str, Any] | None,
) -> dict[str, Any]:
    """The claim's JSON: verdict, statistics, table, every report, tuning and provenance."""
    found = estimates(claim, runs, outcome.reports)
    failures = [
        {"run": run.label, "key": run.key, "error": outcome.failures[run.key]}
        for run in runs
        if run.key in outcome.failures
    ]
    word, why = verdict(found, len(failures), seeds, claim.seeds)
    reports = list(outcome.reports.values())
    return {
        "claim": claim.to_json(),
        "verdict": word,
        "why": why,
        "seeds": seeds,
        "statistics": [asdict(estimate) for estimate in found],
        "table": [cell.to_json() for cell in cells(claim, runs, outcome.reports, claim.metric)],
        "failures": failures,
        "runs": [
            {"arm": run.arm, "case": run.case, "seed": run.seed, "chosen": run.chosen}
            | {"key": run.key, "report": outcome.reports.get(run.key)}
            for run in runs
        ],
        "tuning": tuning,
        "provenance": provenance()
        | {
            "devices": sorted({report["device"] for report in reports}),
            "sources": sorted({report["data"]["source"] for report in reports if "data" in report}),
            "commits of runs": sorted({str(report["commit"]) for report in reports}),
        },
    }


def verdict_of(result: dict[str, Any], claim: Claim) -> tuple[str, str]:
    """The verdict and its reason, computed again from the reports in a claim's JSON."""
    entries = result["runs"]
    runs = [
        Run(e["arm"], e["case"], e["seed"], e["chosen"], OmegaConf.create(), e["key"])
        for e in entries
    ]
    reports = {e["key"]: e["report"] for e in entries if e["report"] is not None}
    found = estimates(claim, runs, reports)
    return verdict(found, len(result["failures"]), tuple(result["seeds"]), claim.seeds)


def tune(
    claim: Claim,
    trainer: str | None = None,
    arms: Sequence[str] = (),
    runs_dir: Path = Path("runs/claims"),
    results_dir: Path = RESULTS,
) -> dict[str, Any]:
    """Try every setting of the claim's grid on validation data, measure every arm's pace.

    What was tried goes to `results/tuning/<name>-<scale>.json` and from there into the claim's
    JSON. The best settings are printed, to be written into the claim before its test seeds run.

    Args:
        claim: what is tuned.
        trainer: config of configs/trainer.
        arms: only these are tuned; what was recorded of the others is kept. Paces are measured of
            all arms, as they are compared.
        runs_dir, results_dir: see `reproduce`.

    Raises:
        UserError: the claim has nothing to tune, or a run failed.
    """
    if claim.tune is None and claim.pace is None:
        raise UserError(f"claim {claim.name} has nothing to tune: no `tune` and no `pace` in it.")
    planner, record = Planner(claim, trainer), {"claim": claim.name, "scale": claim.scale}
    title = f"{claim.name}, tuning"
    if claim.tune:
        known = (read_tuning(claim, results_dir) or {}).get("tried", []) if arms else []
        runs = [run for run in planner.tuning_runs() if not arms or run.arm in arms]
        outcome = carry_out(
            runs, runs_dir, title=title, alone=claim.alone, minutes=claim.minutes / 2
        )
        tried = [entry for entry in known if entry["arm"] not in arms] + [
            {"arm": run.arm, "setting": run.chosen, "seed": run.seed, "key": run.key}
            | ({"error": outcome.failures[run.key]} if run.key in outcome.failures else {})
            | {"validation": outcome.reports.get(run.key, {}).get("selected")}
            | {"commit": outcome.reports.get(run.key, {}).get("commit")}
            for run in runs
        ]
        record["tried"] = [entry for arm in claim.arms for entry in tried if entry["arm"] == arm]
        record["best"] = best_settings(claim, record["tried"])
    if claim.pace:
        runs = planner.pace_runs()
        outcome = carry_out(runs, runs_dir, title=f"{claim.name}, pace", alone=True, minutes=1)
        _require_all(runs, outcome)
        record["seconds_per_step"] = {
            run.arm: outcome.reports[run.key]["seconds_per_step"] for run in runs
        }
    record["provenance"] = provenance()
    path = _tuning_path(claim, results_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, record)
    for key in ("best", "seconds_per_step"):
        for arm, value in record.get(key, {}).items():
            print(f"{key.replace('_', ' ')}: {arm}: {value}")
    print(f"written: {path}; write the best settings into the claim's arms, then reproduce it.")
    return record


def best_settings(claim: Claim, tried: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of every arm, the setting that is best on validation data in the mean over tuning seeds.

    A setting one of whose runs failed cannot be chosen.
    """
    best = {}
    for arm in claim.arms:
        scores: dict[str, list[float | None]] = {}
        for entry in tried:
            if entry["arm"] == arm:
                value = entry["validation"]["value"] if entry["validation"] else None
                scores.setdefault(json.dumps(entry["setting"]), []).append(value)
        means = {setting: fmean(v) for setting, v in scores.items() if None not in v}
        if not means:
            raise UserError(f"every setting of arm {arm} failed: see the logs in runs/claims.")
        choose = max if claim.maximise else min
        best[arm] = json.loads(choose(means, key=means.__getitem__))
    return best


def read_tuning(claim: Claim, results_dir: Path) -> dict[str, Any] | None:
    """What `tune` wrote for this claim and scale, None if nothing."""
    path = _tuning_path(claim, results_dir)
    return json.loads(path.read_text()) if path.is_file() else None


def _tuning_path(claim: Claim, results_dir: Path) -> Path:
    return results_dir / "tuning" / f"{claim.name}-{claim.scale}.json"


def require_tuned(claim: Claim, runs: list[Run], tuning: dict[str, Any] | None) -> None:
    """Refuse a demo whose arms do not bear the settings, or do not take the time, of its tuning.

    Paper scale takes the published settings, smoke scale says nothing.
    """
    if claim.scale != "demo" or (claim.tune is None and claim.pace is None):
        return
    if tuning is None:
        raise UserError(
            f"claim {claim.name} is not tuned: run `make tune CLAIM={claim.name}` and write the "
            "best settings into its arms."
        )
    for run in runs:
        for key, best in tuning.get("best", {}).get(run.arm, {}).items():
            has = OmegaConf.select(run.config, key.removeprefix("+"))
            if has != best:
                raise UserError(
                    f"arm {run.arm} of claim {claim.name} has {key}={has}, but {best} was best "
                    "on validation data: write that into the claim, or tune again."
                )
    if claim.pace is None:
        return
    seconds = {}
    for run in runs:
        if claim.pace.equal in run.case.values():
            trainer = run.config.trainer
            steps = trainer.max_epochs * trainer.limit_train_batches
            seconds[run.arm] = steps * tuning["seconds_per_step"][run.arm]
    middle = fmean(seconds.values())
    for arm, second in seconds.items():
        if not math.isclose(second, middle, rel_tol=SAME_TIME):
            raise UserError(
                f"arm {arm} of claim {claim.name} trains for {second:.0f} s where all are to "
                f"train for the same time, {middle:.0f} s in the mean: change its number of steps."
            )


def require_whole_epochs(claim: Claim, runs: list[Run], outcome: Outcome) -> None:
    """Refuse a comparison at equal time in which an arm had fewer batches than it was to take."""
    for run in runs:
        report = outcome.reports.get(run.key)
        if report is None or claim.pace is None or claim.pace.equal not in run.case.values():
            continue
        trainer = run.config.trainer
        asked = trainer.max_epochs * trainer.limit_train_batches
        if report["steps"] != asked:
            raise UserError(
                f"{run.label} took {report['steps']} steps where {asked} were asked for: an epoch "
                "has fewer batches; lower trainer.limit_train_batches and raise max_epochs."
            )


def _require_all(runs: list[Run], outcome: Outcome) -> None:
    for run in runs:
        if run.key in outcome.failures:
            raise UserError(f"{run.label} failed: {outcome.failures[run.key]}.")


def parse_seeds(text: str | None, claim: Claim) -> tuple[int, ...] | None:
    """`3` means the protocol's first three seeds, `0,4` means these."""
    if not text:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"SEEDS is a number or a list such as 0,1,2, got {text!r}.") from None
    return claim.seeds[: numbers[0]] if "," not in text else numbers


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("reproduce", "tune"):
        command = commands.add_parser(name)
        command.add_argument("claim", help="a name from configs/claim, or all")
        command.add_argument("--scale", choices=SCALES, default="demo")
        command.add_argument("--trainer", help="a name from configs/trainer")
        if name == "tune":
            command.add_argument("--arms", nargs="+", default=(), help="only these")
        else:
            command.add_argument("--seeds", help="a number, or a list such as 0,1,2")
    commands.add_parser("results")
    given = parser.parse_args(arguments)
    prepare_process()
    if given.command != "results":
        names = claim_names() if given.claim == "all" else [given.claim]
        for name in names:
            claim = load_claim(name, given.scale)
            if given.command == "reproduce":
                reproduce(claim, parse_seeds(given.seeds, claim), given.trainer)
            elif given.claim != "all" or claim.tune or claim.pace:
                tune(claim, given.trainer, given.arms)
    render.all_results(RESULTS)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
