"""Claims carried out: reused, killed and continued, crashed, tuned, rendered."""

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

import reproduce
from errors import UserError
from ledger import render
from ledger.claim import Planner, load_claim
from ledger.runner import carry_out
from tests.ledger.conftest import SMALL, write_claim
from tests.running import ROOT

pytestmark = pytest.mark.timeout(600)

DRIVER = """
import sys
from pathlib import Path

import ledger.claim

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ledger.claim.CLAIMS = folder / "claim"
    from reproduce import load_claim, reproduce
    from train import prepare_process

    prepare_process()
    claim = load_claim("small", "smoke")
    reproduce(claim, runs_dir=Path(sys.argv[2]), results_dir=Path(sys.argv[3]))
"""
OF_TIME = (
    "provenance",
    "graphs_per_second",
    "seconds_per_step",
    "peak_memory_mib",
    "finished",
    "commit",
)


def without_times(value: object) -> object:
    """A claim's JSON but for timings and provenance."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in OF_TIME}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def start(folder: Path, name: str) -> subprocess.Popen:
    """Carry out the small claim in a process of its own, runs and results under `name`."""
    (folder / "driver.py").write_text(DRIVER)
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "driver.py",
                folder,
                folder / name / "runs",
                folder / name / "results",
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def result_of(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "results/claims/small-smoke.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The small claim carried out without interruption, in `whole`."""
    folder = tmp_path_factory.mktemp("claim")
    (folder / "claim").mkdir()
    write_claim(folder / "claim", SMALL.replace("CACHE", str(folder / "data")))
    process = start(folder, "whole")
    assert process.wait(400) == 0, (folder / "whole.log").read_text()
    return folder


def test_a_claim_ends_in_a_verdict_with_all_that_led_to_it(finished):
    result = result_of(finished, "whole")
    assert result["verdict"] == "reproduced"
    assert result["why"] == "2 of 2 comparisons hold."
    assert len(result["runs"]) == 16
    for run in result["runs"]:
        assert run["report"]["seed"] == run["seed"]
        assert run["report"]["data"]["source"] == "generated"
    for cell in result["table"]:
        for seed, value in cell["values"].items():
            siblings = [
                run
                for run in result["runs"]
                if (run["arm"], run["case"], run["seed"]) == (cell["arm"], cell["case"], int(seed))
            ]
            best = max(siblings, key=lambda run: run["report"]["selected"]["value"])
            assert value == best["report"]["test"]["ap"]
            assert cell["chosen"][seed] == best["chosen"]
    assert result["provenance"]["sources"] == ["generated"]
    assert set(result["provenance"]["versions"]) >= {"python", "torch", "lightning"}
    log = (finished / "whole.log").read_text()
    assert "about " in log
    assert "narrow · training long" in log
    assert "VERDICT: REPRODUCED" in log


def test_a_second_time_nothing_runs(finished):
    stamps = {path: path.stat().st_mtime for path in finished.glob("whole/runs/*/report.json")}
    before = result_of(finished, "whole")
    assert start(finished, "whole").wait(100) == 0
    assert stamps == {p: p.stat().st_mtime for p in finished.glob("whole/runs/*/report.json")}
    assert without_times(result_of(finished, "whole")) == without_times(before)


@pytest.mark.slow
def test_killed_at_random_moments_it_gives_the_same(finished):
    """kill −9 of the claim and, with it, of the runs it has started."""
    moment = random.Random(5)
    reports = finished / "killed" / "runs"
    for stop_after in (1, 9):
        process = start(finished, "killed")
        deadline = time.monotonic() + 200
        while len(list(reports.glob("*/report.json"))) < stop_after:
            assert process.poll() is None, (finished / "killed.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(moment.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(finished, "killed").wait(300) == 0, (finished / "killed.log").read_text()
    expected, got = (without_times(result_of(finished, name)) for name in ("whole", "killed"))
    assert got == expected


def test_fewer_seeds_are_inconclusive_and_do_not_replace_the_result(small, tmp_path):
    small = load_claim("small", "smoke")
    result = reproduce.reproduce(small, (1,), None, tmp_path / "runs", tmp_path / "results")
    assert result["verdict"] == "inconclusive"
    assert "1 of the protocol's 2 seeds" in result["why"]
    assert {estimate["said"] for estimate in result["statistics"]} == {"open"}
    assert [p.name for p in (tmp_path / "results/claims").glob("*.json")] == [
        "small-smoke-seeds-1.json"
    ]


def test_a_crashed_arm_makes_a_claim_inconclusive(claims, tmp_path):
    text = SMALL.replace("CACHE", str(tmp_path / "data")).replace("[1e-3, 1e-2]", "[1e-2]")
    text = text.replace(
        "when: {long: {model.net.dropout: 0.1}}", "when: {long: {model.net.width: -1}}"
    )
    write_claim(claims, text)
    claim = load_claim("small", "smoke")
    result = reproduce.reproduce(claim, None, None, tmp_path / "runs", tmp_path / "results")
    assert result["verdict"] == "inconclusive"
    assert result["why"] == "2 runs failed."
    assert len(result["failures"]) == 2
    for failure in result["failures"]:
        assert failure["run"].startswith("narrow · training long")
        assert failure["error"]
    (broken,) = [c for c in result["table"] if c["mean"] is None]
    assert set(broken["values"].values()) == {None}
    page = render.section("small-smoke", json.loads(json.dumps(result)))
    assert "failed" in page


def test_tuning_records_what_it_tried_and_binds_the_claim(claims, tmp_path):
    text = SMALL.replace("CACHE", str(tmp_path / "data"))
    text = text.replace("[0.5, 0.9]", "[0.5, 0.999]").replace("seeds: [7]", "seeds: [7, 8]")
    write_claim(claims, text)
    claim = load_claim("small", "smoke")
    results = tmp_path / "results"
    record = reproduce.tune(claim, None, (), tmp_path / "runs", results)
    assert len(record["tried"]) == 2 * 2 * 2
    again = reproduce.tune(claim, None, ("narrow",), tmp_path / "runs", results)
    assert again["tried"] == record["tried"]
    for arm in claim.arms:
        mean = {
            value: sum(
                entry["validation"]["value"]
                for entry in record["tried"]
                if entry["arm"] == arm and entry["setting"] == {"callbacks.averaging.decay": value}
            )
            for value in (0.5, 0.999)
        }
        assert record["best"][arm] == {"callbacks.averaging.decay": max(mean, key=mean.get)}
    other = claims / "small.yaml"
    other.write_text(other.read_text().replace("[0.5, 0.999]", "[0.5, 0.9]"))
    moved = reproduce.tune(load_claim("small", "smoke"), None, (), tmp_path / "runs", results)
    assert {e["setting"]["callbacks.averaging.decay"] for e in moved["earlier"]} == {0.999}
    write_claim(claims, text)
    demo = load_claim("small", "demo")
    with pytest.raises(UserError, match="not tuned"):
        reproduce.require_tuned(demo, [], None)
    with pytest.raises(UserError, match="another grid"):
        reproduce.require_tuned(demo, [], moved)
    with pytest.raises(UserError, match=r"arm narrow .* was best"):
        reproduce.require_tuned(demo, [], record | {"best": {"narrow": {"some": 1}}})
    for arm in demo.arms:
        demo.arms[arm].tuned.update(record["best"][arm])
    reproduce.require_tuned(demo, [], record)


def test_equal_time_is_checked_against_the_measured_pace(claims, tmp_path):
    text = SMALL.replace("CACHE", str(tmp_path / "data")).replace("tune:", "ignored:")
    text = text[: text.index("ignored:")] + text[text.index("statistics:") :]
    text = text.replace("when: {long: {", "when: {long: {trainer.limit_train_batches: 4, ")
    text = text.replace("long: {trainer.max_epochs: 2}", "long: {trainer.limit_train_batches: 2}")
    write_claim(claims, text + "pace: {steps: 2, equal: long, case: {training: long}}\n")
    claim = load_claim("small", "demo")
    runs = reproduce.Planner(claim).test_runs((0,))
    record = {"seconds_per_step": {"wide": 0.2, "narrow": 0.1}}
    reproduce.require_tuned(claim, runs, record)
    record["seconds_per_step"]["narrow"] = 0.15
    with pytest.raises(UserError, match="same time"):
        reproduce.require_tuned(claim, runs, record)


def test_seeds_on_the_command_line(small):
    assert reproduce.parse_seeds(None, small) is None
    assert reproduce.parse_seeds("1", small) == (0,)
    assert reproduce.parse_seeds("1,0", small) == (1, 0)
    for text in ("some", "0", "-1", "0,0", "0,7"):
        with pytest.raises(UserError, match="SEEDS"):
            reproduce.parse_seeds(text, small)


def test_all_claims_are_tried_though_one_cannot_be(claims, tmp_path, monkeypatch):
    text = SMALL.replace("CACHE", str(tmp_path / "data")).replace("[1e-3, 1e-2]", "[1e-2]")
    write_claim(claims, text, "good")
    write_claim(claims, text.replace("model.net.width: 4", "model.net.breadth: 4"), "bad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    with pytest.raises(UserError, match="1 of the claims could not be tested: bad"):
        reproduce.main(["reproduce", "all", "--scale", "smoke"])
    smoke = tmp_path / "runs/claims/results/claims"
    assert [path.name for path in smoke.glob("*.json")] == ["good-smoke.json"]
    assert not list((tmp_path / "results").glob("claims/*"))


def test_a_run_whose_code_changed_meanwhile_does_not_count(small, tmp_path):
    run = reproduce.Planner(small).test_runs((0,))[0]
    changed = dataclasses.replace(run, key="0" * 12)
    outcome = carry_out([changed], tmp_path, title="changed", alone=False, minutes=1)
    assert "the code changed" in outcome.failures[changed.key]
    assert not list(tmp_path.glob("*/report.json"))


def test_what_is_timed_runs_alone_and_never_from_a_checkpoint(small, tmp_path):
    runs = reproduce.Planner(small).test_runs((0,))[:3]
    half = tmp_path / runs[0].folder
    (half / "checkpoints").mkdir(parents=True)
    (half / "checkpoints/last.ckpt").write_text("would not load")
    outcome = carry_out(runs, tmp_path, title="timed", alone=True, minutes=1)
    assert not outcome.failures
    spans = sorted(
        (path.with_name("config.yaml").stat().st_mtime, path.stat().st_mtime)
        for path in tmp_path.glob("*/report.json")
    )
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    again = carry_out(runs, tmp_path, title="anew", alone=True, minutes=1, anew=True)
    assert all(
        again.reports[k]["finished"] >= outcome.reports[k]["finished"] for k in again.reports
    )
    assert again.reports != outcome.reports


def test_a_second_command_waits_for_the_first(small, tmp_path, capsys):
    runs = reproduce.Planner(small).test_runs((0,))[:1]
    at_work = threading.Event()

    def first() -> None:
        with FileLock(tmp_path / ".lock"):
            at_work.set()
            time.sleep(1.0)

    threading.Thread(target=first).start()
    at_work.wait()
    assert not carry_out(runs, tmp_path, title="second", alone=False, minutes=1).failures
    assert "Waiting for another command" in capsys.readouterr().out


RESULTS = ROOT / "results"


def test_the_paper_s_table_stands_below_ours(small):
    small.paper_table["all of LRGB"] = {"wide": 0.6543}
    cell = {"case": {}, "mean": 0.5, "sd": 0.01, "values": {0: 0.5}}
    table = [cell | {"arm": "wide"}, cell | {"arm": "narrow"}]
    shown = render.metric_table({"claim": small.to_json(), "table": table}).splitlines()
    assert shown[-1] == "| the paper: all of LRGB | 0.6543 |  |"
    small.paper_table.clear()
    assert "paper_table" not in small.to_json()


STEMS = [path.stem for path in render.claim_files(RESULTS)]


def test_results_md_says_what_the_json_says():
    assert (RESULTS / "RESULTS.md").read_text() == render.page(RESULTS), "run `make results`"


@pytest.mark.parametrize("stem", STEMS)
def test_a_figure_is_of_its_json(stem):
    path = RESULTS / "claims" / f"{stem}.json"
    drawn = render.figures.digest_in(path.with_suffix(".png"))
    assert drawn == render.digest_of(path), "run `make results`"


@pytest.mark.parametrize("stem", STEMS)
def test_a_committed_verdict_follows_from_its_reports(stem, monkeypatch):
    """Statistics, table and verdict, computed again from the reports, which are the protocol's."""
    monkeypatch.setattr(Planner, "_source", lambda self, data: "generated")
    result = json.loads((RESULTS / "claims" / f"{stem}.json").read_text())
    claim = load_claim(result["claim"]["name"], result["claim"]["scale"])
    assert result["claim"] == json.loads(json.dumps(claim.to_json())), "the claim has changed"
    again = json.loads(json.dumps(reproduce.judge_again(result, claim)))
    assert {key: result[key] for key in again} == again

    def places(runs: list) -> list:
        return [json.dumps([r["arm"], r["case"], r["seed"], r["chosen"]]) for r in runs]

    protocol = [vars(run) for run in Planner(claim).test_runs(claim.seeds)]
    assert places(result["runs"]) == places(protocol)
    failed = {run["key"] for run in result["runs"] if run["report"] is None}
    assert {failure["key"] for failure in result["failures"]} == failed


def test_there_are_results():
    assert STEMS


def test_a_changed_number_is_noticed(finished, tmp_path):
    (tmp_path / "claims").mkdir()
    result = result_of(finished, "whole")
    path = tmp_path / "claims" / "small-smoke.json"
    path.write_text(json.dumps(result))
    render.all_results(tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert page == render.page(tmp_path)
    assert "**reproduced**" in page
    digest = render.digest_of(path)
    assert render.figures.digest_in(path.with_suffix(".png")) == digest
    result["table"][0]["mean"] += 0.1
    path.write_text(json.dumps(result))
    assert page != render.page(tmp_path)
    assert render.digest_of(path) != digest
