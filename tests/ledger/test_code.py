"""A change of meaning changes the digest of the code that a run executes; nothing else does."""

import pytest

from ledger import code

MODULE = '''"""Docstring."""

import numpy
from package.other import constant


def f():
    """Docstring."""
    return constant  # comment
'''


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "ROOT", tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "other.py").write_text("constant = 1\n")
    (tmp_path / "package" / "cost.json").write_text("1")
    (tmp_path / "unrelated.py").write_text("1\n")
    (tmp_path / "module.py").write_text(MODULE)
    return tmp_path


def digest() -> str:
    for function in (code.files_of, code.imports, code.meaning):
        function.cache_clear()
    return code.relevant_code({"module.f", "torch.nn.Linear"})


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("module.py", MODULE.replace("Docstring", "Another"), False),
        ("module.py", MODULE.replace("# comment", ""), False),
        ("module.py", MODULE.replace("return constant", "return -constant"), True),
        ("package/other.py", "constant = 2\n", True),
        ("package/__init__.py", "import unrelated\n", True),
        ("package/cost.json", "2", True),
        ("unrelated.py", "2\n", False),
    ],
)
def test_what_changes_it(root, file, text, changes):
    before = digest()
    assert digest() == before
    (root / file).write_text(text)
    assert (digest() != before) is changes


def test_the_code_of_a_training_is_its_own():
    code.files_of.cache_clear()
    files, waiting = set(), set(code.files_of("lit_models.graphs.edge_embeddings.EdgeEmbeddings"))
    while waiting:
        files |= waiting
        waiting = {f for path in waiting for f in code.imports(path)} - files
    names = {str(path.relative_to(code.ROOT)) for path in files}
    assert "lit_models/graphs/heads.py" in names
    assert "lit_models/graphs/chimera.py" not in names
