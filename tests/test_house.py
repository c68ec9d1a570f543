"""The rules of the house: who imports whom, what a config looks like, what the README promises."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from ledger.claim import CLAIMS, claim_names
from tests.planted_faults import FAULTS
from tools.list_experiments import EXPERIMENTS, header

ROOT = Path(__file__).parent.parent
OURS = {"kernels", "lit_models", "datamodules", "studies", "ledger", "tools"}
OURS |= {"train", "runs", "report", "reproduce", "checks", "errors"}
ALLOWED = {
    "kernels": {"kernels"},
    "lit_models": {"lit_models", "kernels"},
    "datamodules": {"datamodules"},
    "studies": {"studies"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of the packages of ours that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return {name.split(".")[0] for name in names} & OURS


@pytest.mark.parametrize("package", ALLOWED)
def test_who_imports_whom(package):
    for path in (ROOT / package).rglob("*.py"):
        assert imported(path) <= ALLOWED[package], path


def test_planted_faults_still_fit_the_code():
    for fault in FAULTS:
        assert (ROOT / fault.file).read_text().count(fault.right) == 1, fault.name


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_an_experiment_is_short_and_has_a_header(path):
    assert len(path.read_text().splitlines()) <= 40
    facts = header(path)
    assert f"EXP={path.stem}" in facts["command"]


@pytest.mark.parametrize("path", sorted(CLAIMS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_claim_is_short_and_names_its_command(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert lines[0] == f"# make reproduce CLAIM={path.stem}"


def readme_commands() -> list[str]:
    """Every line of the README's and the docs' shell blocks."""
    text = "".join(
        p.read_text() for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    )
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.DOTALL)
    lines = (line.split(" #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


def test_the_readme_has_commands():
    assert "make train EXP=chimera_lrgb" in readme_commands()
    assert "make test" in readme_commands()


@pytest.mark.parametrize("command", sorted(set(readme_commands())))
def test_every_command_of_the_readme_exists(command):
    words = command.split()
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if words[0] in ("git", "cd"):
        return
    assert words[0] in ("make", ".ci/run"), command
    if words[0] == ".ci/run":
        assert (ROOT / ".ci/run").is_file()
        return
    subprocess.run(
        [
            "make",
            "--dry-run",
            "--always-make",
            *command.split()[command.split().index("make") + 1 :],
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    tutorial = (ROOT / "docs/your_own.md").read_text()  # writes its own experiments
    for experiment in re.findall(r"EXP=(\w+)", command):
        path = EXPERIMENTS / f"{experiment}.yaml"
        assert path.is_file() or str(path.relative_to(ROOT)) in tutorial
    for claim in re.findall(r"CLAIM=(\w+)", command):
        assert claim in ("all", *claim_names())


@pytest.mark.parametrize("target", ["help", "list", "doctor"])
def test_cheap_commands_run(target):
    """The interpreter of the tests stands in for the one that `make setup` would install."""
    import sys

    module = {"list": "tools.list_experiments", "doctor": "tools.doctor"}.get(target)
    command = [sys.executable, "-m", module] if module else ["make", "help"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {"help": "make train", "list": "CLAIM=edge_star", "doctor": "torch"}[target]
    assert expected.removeprefix("make ") in done.stdout
