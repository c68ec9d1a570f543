"""A pytest plugin for a machine that may be taken away: what has passed is not run again.

pytest -p tools.gpu_tests …     (or: make gpu-test, make gpu-benchmark)

After each test its outcome is written to tests-<device>.json, here in .gpu/ and in $OUT, from where
it comes back; benchmarks' results are left in $OUT as benchmarks-<device>.json. A later session
with the same code goes on from what it finds in .gpu/ or, on a bare machine, in gpu/.
"""

import json
import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".gpu"
CAME_BACK = ROOT / "gpu"
LONGEST_FAILURE = 4000  # characters kept of a traceback's end


class Progress:
    """Outcomes of the tests of this device and this code, in all sessions so far.

    Args:
        facts: provenance for the record: device, code, commit, versions.
        benchmark: whether benchmarks are run, whose results come back too.
        writes: False for a worker of pytest-xdist, whose tests its controller hears of.
    """

    def __init__(self, facts: dict, benchmark: bool, writes: bool):
        self.facts, self.benchmark, self.writes = facts, benchmark, writes
        device = facts["device"]
        self.name, self.results_name = f"tests-{device}.json", f"benchmarks-{device}.json"
        self.results = ROOT / "results" / "benchmarks" / f"{device}.json"
        self.out = Path(os.environ.get("OUT") or CAME_BACK)
        self.running: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        for folder in (KEPT, CAME_BACK):
            record = read(folder / self.name)
            if record.get("code") == facts["code"]:
                self.outcomes, self.failures = record["outcomes"], record["failures"]
                if measured := read(folder / self.results_name):
                    write(self.results, read(self.results) | measured)
                break

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if not config.getoption("--again"):
            done = [item for item in items if self.outcomes.get(item.nodeid) == "passed"]
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item not in done]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid
        if test not in self.running:
            self.running[test] = "passed"
            self.failures.pop(test, None)
        if self.running[test] != "failed" and not report.passed:
            self.running[test] = report.outcome
        if report.failed:
            self.failures[test] = report.longreprtext[-LONGEST_FAILURE:]
        if report.when not in ("setup", "call"):  # torn down, or a worker has crashed
            self.outcomes[test] = self.running.pop(test)
            self.save()

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:  # all have passed before
            session.exitstatus = pytest.ExitCode.OK
        self.save()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        told = ", ".join(f"{count} {outcome}" for outcome, count in self.counts().items())
        path = self.out / self.name
        terminalreporter.write_line(f"{path}: {told}, in all sessions with this code")

    def counts(self) -> dict[str, int]:
        """Number of tests by outcome."""
        outcomes = list(self.outcomes.values())
        return {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}

    def save(self) -> None:
        """Write the record, and copy the benchmarks' results, to where both are looked for."""
        if not self.writes:
            return
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        record = self.facts | {"finished": finished, "counts": self.counts()}
        record |= {"failures": self.failures, "outcomes": self.outcomes}
        for folder in (KEPT, self.out):
            write(folder / self.name, record)
            if self.benchmark and self.results.is_file():
                write(folder / self.results_name, read(self.results))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--again", action="store_true", help="run also what has passed")


def pytest_sessionstart(session: pytest.Session) -> None:
    # Imported late: tests/conftest.py must come before any module of ours.
    from report import LIBRARIES, code, commit
    from tests.benchmarks.timing import device_name

    facts = {
        "device": device_name(),
        "commit": commit(),
        "code": code(),
        "versions": {library: version(library) for library in LIBRARIES},
    }
    writes = not hasattr(session.config, "workerinput")
    progress = Progress(facts, bool(session.config.getoption("--benchmark")), writes)
    session.config.pluginmanager.register(progress)


def read(path: Path) -> dict:
    """A JSON file, {} without one."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, content: dict) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
