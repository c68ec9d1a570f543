"""docs/your_own.md, executed: its files are written into a copy of the repository and trained."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.running import ROOT

PAGE = (ROOT / "docs/your_own.md").read_text()
ROOMS = ("configs", "datamodules", "kernels", "lit_models")
COMMANDS = """
import json, sys
from pathlib import Path

import runs, train

train.main()
(run,) = Path("runs").glob(sys.argv[1].removeprefix("experiment=") + "-demo-generated-*")
print("again", json.dumps(runs.evaluate(run)))
runs.predict(run)
"""
"""All in one process, as most of the time goes into importing torch."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the files of the page."""
    folder = tmp_path_factory.mktemp("your_own") / "repository"
    folder.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    for path, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("experiment", "metric", "least_gain", "pictures"),
    [
        ("path_start", "ap", 0.3, set()),
        ("allen_cahn", "nrmse", 0.2, {"error_by_step", "spectrum", "space_time/sample_0"}),
        ("who_sees", "accuracy", 0.3, set()),
        ("balls", "accuracy", 0.3, {"augmented", "receptive_field", "confusion"}),
        pytest.param("path_start_chimera", "ap", 0.3, {"resolvent"}, marks=pytest.mark.slow),
    ],
)
def test_the_page_works(copy, experiment, metric, least_gain, pictures):
    """It trains, draws what its subject draws, beats the trivial prediction, and is used again."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, f"experiment={experiment}", "trainer=cpu"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (run,) = (copy / "runs").glob(f"{experiment}-demo-generated-*")
    report = json.loads((run / "report.json").read_text())
    gain = report["test"][metric] - report[report["trivial"]][metric]
    assert (gain if report["maximise"] else -gain) > least_gain
    (again,) = (line for line in done.stdout.splitlines() if line.startswith("again "))
    assert json.loads(again.removeprefix("again ")) == pytest.approx(report["test"], abs=1e-6)
    assert len([*run.glob("predictions.*")]) == 1
    assert pictures <= drawn(run)
    assert bool(pictures) == bool(drawn(run))


def drawn(run: Path) -> set[str]:
    """The tags of a run's pictures."""
    tags = set()
    for path in run.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        tags |= {*events.Tags()["images"]}
    return tags
