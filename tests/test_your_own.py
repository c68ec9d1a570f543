"""docs/your_own.md, executed: its files are written into a copy of the repository and trained."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import h5py
import pytest

from tests.running import ROOT

PAGE = (ROOT / "docs/your_own.md").read_text()
ROOMS = ("configs", "datamodules", "kernels", "lit_models")
# One process trains, tests again and predicts, so that torch is imported once.
ALL_COMMANDS = """
import sys
from pathlib import Path

import runs, train

train.main()
(run,) = Path("runs").glob(sys.argv[1].removeprefix("experiment=") + "-demo-*")
runs.evaluate(run)
runs.predict(run)
"""


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
    ("experiment", "metric", "trivial", "margin", "pictures"),
    [
        ("path_start", "ap", "constant", 0.3, []),
        ("allen_cahn", "nrmse", "persistence", 0.3, ["error_by_step", "spectrum"]),
        ("who_sees", "accuracy", "majority", 0.4, []),
        ("balls", "accuracy", "majority", 0.4, ["augmented", "receptive_field"]),
        pytest.param(
            *("path_start_chimera", "ap", "constant", 0.3, ["resolvent"]), marks=pytest.mark.slow
        ),
    ],
)
def test_the_page_works(copy, experiment, metric, trivial, margin, pictures):
    done = subprocess.run(
        [sys.executable, "-c", ALL_COMMANDS, f"experiment={experiment}", "trainer=cpu"],
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
    print(report["test"], report[trivial], report["seconds_per_step"], report["steps"])
