"""docs/your_own.md, executed: its files are written into a copy of the repository and trained."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.running import ROOT

PAGE = (ROOT / "docs/your_own.md").read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the files of the page."""
    folder = tmp_path_factory.mktemp("your_own") / "repository"
    folder.mkdir()
    for room in ("configs", "datamodules", "kernels", "lit_models"):
        shutil.copytree(ROOT / room, folder / room)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    for path, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("experiment", "least"),
    [
        ("path_start", 0.8),
        pytest.param("path_start_chimera", 0.9, marks=pytest.mark.slow),
    ],
)
def test_the_page_works(copy, experiment, least):
    environment = os.environ | {"PYTHONPATH": str(copy)}

    def call(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    call("train.py", f"experiment={experiment}", "trainer=cpu")
    (run,) = (copy / "runs").glob(f"{experiment}-demo-*")
    report = json.loads((run / "report.json").read_text())
    assert report["test"]["ap"] > least > report["constant"]["ap"] + 0.3
    call("runs.py", "eval", str(run))
