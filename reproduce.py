"""Test a paper's claim: tune, run what is missing, one statistic, one verdict, one JSON.

python reproduce.py reproduce edge_star     (or: make reproduce CLAIM=edge_star)
python reproduce.py tune edge_star          (or: make tune CLAIM=edge_star)
python reproduce.py results                 (or: make results)
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from checks import require_device
from datamodules.errors import DataError
from errors import UserError, one_sentence_errors
from ledger import render
from ledger.claim import Claim, Planner, Run, claim_names, load_claim
from ledger.runner import Outcome, carry_out
from ledger.statistics import cells, estimates, verdict
from report import provenance, save
from train import SCALES, prepare_process

RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path("runs/claims/results")
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
        seeds: some of the protocol's; the verdict is then inconclusive, in a file of its own.
        trainer: config of configs/trainer.
        runs_dir: where runs are kept, and found again.
        results_dir: where `claims/<name>-<scale>.json` is written and tuning is read.

    Raises:
        UserError: the claim was not tuned, or is not as it was tuned.
    """
    seeds = claim.seeds if seeds is None else tuple(seeds)
    planner = Planner(claim, trainer)
    runs = planner.test_runs(seeds)
    for run in runs:
        if "trainer" in run.config:
            require_device(run.config.trainer.accelerator)
    tuning = read_tuning(claim, results_dir)
    require_tuned(claim, runs, tuning)
    title = f"{claim.name} ({claim.scale})"
    outcome = carry_out(runs, runs_dir, title=title, alone=claim.alone, minutes=claim.minutes)
    require_whole_epochs(claim, runs, outcome)
    result = assemble(claim, seeds, runs, outcome, tuning)
    short = "" if seeds == claim.seeds else f"-seeds-{'-'.join(map(str, seeds))}"
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
    failures = [
        {"run": run.label, "key": run.key, "error": outcome.failures[run.key]}
        for run in runs
        if run.key in outcome.failures
    ]
    judged = judge(claim, seeds, runs, outcome.reports)
    reports = list(outcome.reports.values())
    return {
        "claim": claim.to_json(),
        "seeds": seeds,
        **judged,
        "failures": failures,
        "runs": [
            {"arm": run.arm, "case": run.case, "seed": run.seed, "chosen": run.chosen}
            | ({"pretrained": run.after.key} if run.after else {})
            | {"key": run.key, "report": outcome.reports.get(run.key)}
            for run in runs
        ],
        "tuning": tuning,
        "provenance": provenance()
        | {
            "devices": sorted({report["device"] for report in reports}),
            "sources": sorted({report["data"]["source"] for report in reports if "data" in report}),
            "commits of runs": sorted({str(report["commit"]) for report in reports}),
            "versions of runs": unique(report["versions"] for report in reports),
        },
    }


def judge(
    claim: Claim, seeds: tuple[int, ...], runs: list[Run], reports: Mapping[str, dict]
) -> dict[str, Any]:
    """Verdict, statistics and table of a claim: all that follows from its reports."""
    found = estimates(claim, runs, reports)
    failed = len({run.key for run in runs} - reports.keys())
    data = unique(
        {key: value for key, value in report["data"].items() if key != "fingerprint"}
        | {"case": run.case}
        for run in runs
        if (report := reports.get(run.key)) and "data" in report
    )
    word, why = verdict(found, failed, seeds, claim.seeds)
    if len(data) > len(claim.all_cases()):
        word, why = "inconclusive", "arms saw different data."
    return {
        "verdict": word,
        "why": why,
        "statistics": [asdict(estimate) for estimate in found],
        "table": [cell.to_json() for cell in cells(claim, runs, reports, claim.metric)],
    }


def judge_again(result: dict[str, Any], claim: Claim) -> dict[str, Any]:
    """`judge` from a claim's JSON alone; what it says must be what stands there."""
    entries = result["runs"]
    runs = [
        Run(e["arm"], e["case"], e["seed"], e["chosen"], OmegaConf.create(), e["key"])
        for e in entries
    ]
    reports = {e["key"]: e["report"] for e in entries if e["report"] is not None}
    return judge(claim, tuple(result["seeds"]), runs, reports)


def unique(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each value once, in the order in which they first come."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


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
    planner = Planner(claim, trainer)
    record: dict[str, Any] = {"claim": claim.name, "scale": claim.scale}
    title = f"{claim.name}, tuning"
    before = read_tuning(claim, results_dir) or {}
    if claim.tune:
        runs = [run for run in planner.tuning_runs() if not arms or run.arm in arms]
        outcome = carry_out(
            runs, runs_dir, title=title, alone=claim.alone, minutes=claim.minutes / 2
        )
        tried = [
            {"arm": run.arm, "setting": run.chosen, "seed": run.seed, "key": run.key}
            | ({"error": outcome.failures[run.key]} if run.key in outcome.failures else {})
            | {"validation": outcome.reports.get(run.key, {}).get("selected")}
            | {"commit": outcome.reports.get(run.key, {}).get("commit")}
            for run in runs
        ]
        kept = [e for e in before.get("tried", []) if arms and e["arm"] not in arms]
        keys = {entry["key"] for entry in [*tried, *kept]}
        # What was tried earlier, on another grid or with other code, was tried all the same.
        earlier = [*before.get("earlier", []), *before.get("tried", [])]
        record["earlier"] = unique(entry for entry in earlier if entry["key"] not in keys)
        record["tried"] = [e for arm in claim.arms for e in [*kept, *tried] if e["arm"] == arm]
        record["best"] = best_settings(claim, record["tried"])
    if claim.pace:
        runs = planner.pace_runs()
        outcome = carry_out(
            runs, runs_dir, title=f"{claim.name}, pace", alone=True, minutes=3, anew=True
        )
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
    for arm in dict.fromkeys(entry["arm"] for entry in tried):
        scores: dict[str, list[float | None]] = {}
        for entry in tried:
            if entry["arm"] == arm:
                value = (entry["validation"] or {}).get("value")
                scores.setdefault(json.dumps(entry["setting"]), []).append(value)
        known = {setting: [x for x in v if x is not None] for setting, v in scores.items()}
        means = {
            setting: fmean(v) for setting, v in known.items() if len(v) == len(scores[setting])
        }
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
    advice = f"run `make tune CLAIM={claim.name}` and write the best settings into its arms."
    if tuning is None:
        raise UserError(f"claim {claim.name} is not tuned: {advice}")
    if claim.tune:
        asked = [
            {"arm": arm, "setting": setting, "seed": seed}
            for arm in claim.arms
            for seed in claim.tune.seeds
            for setting in claim.settings(arm)
        ]
        tried = [{key: e[key] for key in ("arm", "setting", "seed")} for e in tuning["tried"]]
        if unique(sorted(asked, key=json.dumps)) != unique(sorted(tried, key=json.dumps)):
            raise UserError(f"claim {claim.name} was tuned on another grid: {advice}")
        for arm, best in tuning["best"].items():
            if claim.arms[arm].tuned != best:
                raise UserError(
                    f"arm {arm} of claim {claim.name} has tuned: {claim.arms[arm].tuned}, but "
                    f"{best} was best on validation data: write that into the claim."
                )
    if claim.pace:
        require_equal_time(claim, runs, tuning)


def require_equal_time(claim: Claim, runs: list[Run], tuning: dict[str, Any]) -> None:
    """Refuse a comparison at equal time in which, at the measured paces, times differ."""
    assert claim.pace is not None
    paces = tuning.get("seconds_per_step", {})
    if paces.keys() != claim.arms.keys():
        raise UserError(f"claim {claim.name} has no pace of every arm: run `make tune` again.")
    seconds = {}
    for run in runs:
        if claim.pace.equal in run.case.values():
            trainer = run.config.trainer
            seconds[run.arm] = trainer.max_epochs * trainer.limit_train_batches * paces[run.arm]
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
        if not report or not claim.pace or claim.pace.equal not in run.case.values():
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
    """`3` means the protocol's first three seeds, `0,4` means these two of it."""
    if not text:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    chosen = claim.seeds[: max(0, numbers[0])] if len(numbers) == 1 else numbers
    if not chosen or not set(chosen) <= set(claim.seeds) or len(set(chosen)) < len(chosen):
        raise UserError(
            f"SEEDS is a number of seeds, or some of the protocol's {claim.seeds} such as 0,1; "
            f"got {text!r}."
        )
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
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
    failed = []
    if given.command != "results":
        names = claim_names() if given.claim == "all" else [given.claim]
        # What a few seconds show is no result.
        results = SMOKE_RESULTS if given.scale == "smoke" else RESULTS
        for name in names:
            try:
                claim = load_claim(name, given.scale)
                if given.command == "reproduce":
                    seeds = parse_seeds(given.seeds, claim)
                    reproduce(claim, seeds, given.trainer, results_dir=results)
                elif len(names) == 1 or claim.tune or claim.pace:
                    tune(claim, given.trainer, given.arms, results_dir=results)
            except (UserError, DataError) as error:
                if len(names) == 1:
                    raise
                print(f"error: {name}: {error}", file=sys.stderr)
                failed.append(name)
    render.all_results(RESULTS)
    if failed:
        raise UserError(f"{len(failed)} of the claims could not be tested: {', '.join(failed)}.")


if __name__ == "__main__":
    with one_sentence_errors():
        main()
