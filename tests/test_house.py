"""The rules of the house: who imports whom, what a config looks like, what the README promises."""

import ast
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import kernels
from ledger.claim import CLAIMS, claim_names
from tests.planted_faults import FAULTS, Fault, MisfitError, file_of_tests, planted
from tools.list_experiments import EXPERIMENTS, header
from train import CONFIGS

ROOT = Path(__file__).parent.parent
OURS = {"kernels", "lit_models", "datamodules", "studies", "ledger", "tools"}
OURS |= {"train", "runs", "report", "reproduce", "checks", "errors"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md"]
PAGES += [ROOT / "results" / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
ALLOWED = {
    "kernels": {"kernels"},
    "lit_models": {"lit_models", "kernels"},
    "datamodules": {"datamodules"},
    "studies": {"studies"},
}


def modules() -> dict[str, Path]:
    """Our own modules and packages by their dotted names."""
    paths = [*ROOT.glob("*.py"), *(p for room in OURS for p in (ROOT / room).rglob("*.py"))]
    dotted = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in dotted.items()}


MODULES = modules()


def imported(path: Path) -> set[str]:
    """Our own modules that a file imports, anywhere in it, or takes names from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside & MODULES.keys()
            names |= {node.module} if inside - MODULES.keys() else set()
    return names & MODULES.keys()


@pytest.mark.parametrize("package", ALLOWED)
def test_who_imports_whom(package):
    for path in (ROOT / package).rglob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= ALLOWED[package], path


SUBJECTS = {
    "lit_models": {"graphs", "text", "images", "operators"},
    "datamodules": {"graphs", "text", "images", "pde"},
}


@pytest.mark.parametrize(
    ("package", "room"),
    [
        *((package, room) for package, rooms in SUBJECTS.items() for room in sorted(rooms)),
        ("lit_models", "callbacks"),
        ("lit_models", "layers"),
    ],
)
def test_no_subject_imports_another(package, room):
    """And what all subjects share imports none of them."""
    others = {f"{package}.{subject}" for subject in SUBJECTS[package] - {room}}
    files = [*(ROOT / package / room).rglob("*.py")]
    assert files
    for path in files:
        assert not {".".join(name.split(".")[:2]) for name in imported(path)} & others, path


def test_lit_models_opens_on_few_names():
    names = {path.name for path in (ROOT / "lit_models").iterdir()} - {"__pycache__"}
    assert len(names) <= 10


def test_no_import_leads_back():
    """Imports inside functions count, too: put where they are to hide a circle, they are one."""
    graph = {name: imported(path) for name, path in MODULES.items()}
    assert {"kernels.resolvent.cost", "kernels.resolvent"} <= graph["kernels.resolvent.fit_cost"]
    assert "kernels.grid.triton_backend" in graph["kernels.grid"]  # inside a function
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_a_dotted_name_of_kernels_means_what_lies_there():
    """No function that a package exports hides a module of the package."""
    for found in pkgutil.walk_packages(kernels.__path__, "kernels."):
        importlib.import_module(found.name)
    for found in pkgutil.walk_packages(kernels.__path__, "kernels."):
        package, _, name = found.name.rpartition(".")
        assert getattr(sys.modules[package], name) is sys.modules[found.name]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_faults_still_fit_the_code(fault):
    assert fault.right != fault.wrong
    planted((ROOT / fault.file).read_text(), fault)
    assert (ROOT / file_of_tests(fault)).is_file()


def test_what_a_planted_fault_fits():
    """The code of its function, whatever the formatting, comments and docstring; once."""
    source = "def f(x):\n    '''x + 1'''\n    return (\n        x  # x + 1\n        + 1\n    )\n"
    fault = Fault("sign", "f.py", "f", "x + 1", "x - 1")
    assert ast.unparse(planted(source, fault)) == "def f(x):\n    return x - 1"
    for change in ({"right": "x"}, {"right": "y"}, {"function": "g"}, {"function": "C.f"}):
        with pytest.raises(MisfitError, match="sign: "):
            planted(source, fault._replace(**change))


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_an_experiment_has_a_header(path):
    facts = header(path)
    assert f"EXP={path.stem}" in facts["command"]


@pytest.mark.parametrize("path", sorted(CLAIMS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_claim_has_lines_that_a_screen_holds_and_names_its_command(path):
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > 100] == []
    assert lines[0] == f"# make reproduce CLAIM={path.stem}"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_and_headings_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


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


def examples() -> list[str]:
    """Every command with overrides in the README, the docs and the headers of experiments."""
    headers = [header(path)["command"] for path in sorted(EXPERIMENTS.glob("*.yaml"))]
    return sorted({c for c in (*readme_commands(), *headers) if "ARGS=" in c and " -k " not in c})


@pytest.mark.parametrize("command", examples())
def test_the_overrides_of_every_example_compose(command):
    """Names such as runs/NAME are words of the config like any others."""
    make, target, *words = shlex.split(command)
    given = dict(word.split("=", 1) for word in words)
    overrides = [word for word in given.pop("ARGS").split() if not word.startswith("-")]
    if target == "data":
        config, chosen = "generate", [f"data=pde/{given['PDE']}"]
    else:
        assert target in ("train", "hours"), command
        config, chosen = "train", [f"experiment={given['EXP']}", "experiment_name=example"]
    scale = "paper" if target == "hours" else given.get("SCALE", "demo")
    swept = [override.partition(",")[0] if "-m" in command else override for override in overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(config, [*chosen, f"scale={scale}", *swept])
    OmegaConf.resolve(cfg)
    assert make == "make"


def test_examples_are_found():
    found = examples()
    assert 'make train EXP=sgd_vgg11_cifar10 ARGS="sgd=gradient_norm"' in found
    for start in ("make data PDE=", "make hours EXP="):
        assert any(command.startswith(start) for command in found)


def test_help_is_for_people():
    done = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "$(" not in done.stdout


@pytest.mark.parametrize("target", ["help", "list", "doctor"])
def test_cheap_commands_run(target):
    """The interpreter of the tests stands in for the one that `make setup` would install."""
    module = {"list": "tools.list_experiments", "doctor": "tools.doctor"}.get(target)
    command = [sys.executable, "-m", module] if module else ["make", "help"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {"help": "make train", "list": "CLAIM=edge_star", "doctor": "torch"}[target]
    assert expected.removeprefix("make ") in done.stdout
