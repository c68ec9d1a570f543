"""Which of our code a run executes, as a digest that only a change of meaning changes."""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


def relevant_code(names: set[str]) -> str:
    """12 hex digits of the modules that `names` stand for and all of ours that they import.

    Comments, docstrings and formatting do not count; JSON files beside a module do.

    Args:
        names: dotted names of modules or of what lies in them; those not ours are passed over.
    """
    files: set[Path] = set()
    waiting = {file for name in names for file in files_of(name)}
    while waiting:
        files |= waiting
        waiting = {file for path in waiting for file in imports(path)} - files
    folders = {path.parent for path in files} - {ROOT}
    parts = [f"{path.relative_to(ROOT)} {meaning(path)}" for path in sorted(files)]
    parts += [p.read_text() for folder in sorted(folders) for p in sorted(folder.glob("*.json"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@cache
def files_of(name: str) -> frozenset[Path]:
    """The file of a dotted name, and the `__init__.py` of every package above it."""
    found, folder = set(), ROOT
    for part in name.split("."):
        for path in (folder / part / "__init__.py", folder / f"{part}.py"):
            if path.is_file():
                found.add(path)
        folder = folder / part
    return frozenset(found)


@cache
def imports(path: Path) -> frozenset[Path]:
    """Files of ours that a file imports, anywhere in it."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found = found.union(*map(files_of, names))
    return frozenset(found)


@cache
def meaning(path: Path) -> str:
    """A file's syntax tree without docstrings, as a digest."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0].value = ast.Constant("")
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
