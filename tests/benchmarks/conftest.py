"""`pytest --benchmark`: no op is timed while its tests fail; results go to results/benchmarks."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from report import commit
from tests.benchmarks.plots import draw_growth
from tests.benchmarks.timing import device_name
from train import prepare_process

prepare_process()

ROOT = Path(__file__).parents[2]
RESULTS = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def green():
    """Fails a benchmark whose op's own tests, run once a session, are red.

    On a GPU those that `make gpu-test` has passed with the same code are not run again.
    """
    verdicts: dict[str, bool] = {}
    how = ["-p", "tools.gpu_tests"] if torch.cuda.is_available() else ["-n", "logical"]

    def require(*tests: str) -> None:
        if new := [f"tests/{test}" for test in tests if f"tests/{test}" not in verdicts]:
            command = [sys.executable, "-m", "pytest", "-qx", "-m", "", *how, *new]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
            verdicts.update(dict.fromkeys(new, done.returncode == 0))
        if red := [test for test in tests if not verdicts[f"tests/{test}"]]:
            pytest.fail(f"{' or '.join(red)} is red: what is wrong is not timed.", pytrace=False)

    return require


@pytest.fixture(scope="session")
def about():
    """What made the results; the commit before they change the working tree."""
    versions = {name: version(name) for name in ("torch", "torch-geometric", "numpy")}
    return {"commit": commit(), "versions": versions}


@pytest.fixture
def record(request, about):
    """Write the result of a benchmark at once, and keep it for the summary."""

    def keep(name: str, result: dict) -> None:
        request.config.stash.setdefault(RESULTS, {})[name] = result
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        write(name, about | {"finished": finished} | result)

    return keep


def pytest_terminal_summary(terminalreporter, config) -> None:
    measured = config.stash.get(RESULTS, {})
    for name, result in measured.items():
        terminalreporter.section(name)
        for row in result.get("rows", [result]):
            if "leaves" in row:
                terminalreporter.write_line(f"{row['leaves']:,} leaves")
            for peer, numbers in row.get("times", {}).items():
                ms, ratio = numbers["ms"], numbers["ratio"]
                terminalreporter.write_line(
                    f"{peer:<28}{ms[1]:>10.2f} ms  ({ms[0]:.2f} … {ms[2]:.2f})  x {ratio[1]:<6.2f}"
                    f"{numbers['peak_mib']:>9.1f} MiB"
                )
    if measured:
        path = results_path()
        draw_growth(json.loads(path.read_text()), path.with_name(f"{path.stem}-growth.png"))


def results_path() -> Path:
    """The results of this device."""
    return ROOT / "results" / "benchmarks" / f"{device_name()}.json"


def write(name: str, result: dict) -> None:
    """Put a result into the device's file, whole or not at all, beside those of earlier runs."""
    path = results_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(known | {name: result}, indent=1) + "\n")
    partial.replace(path)
