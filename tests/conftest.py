"""Shape annotations are enforced while testing, not while a time is measured.

Where there is no GPU, Triton kernels are interpreted, which must be known before they are imported.
"""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from jaxtyping import install_import_hook

if "--benchmark" not in sys.argv:
    install_import_hook(["kernels", "lit_models"], "beartype.beartype")

from pathlib import Path

import pytest

torch.set_flush_denormal(True)  # as the entry points do

BENCHMARKS = Path(__file__).parent / "benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark", action="store_true", help="run tests/benchmarks, and nothing else"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    inside = collection_path.is_relative_to(BENCHMARKS)
    if config.getoption("--benchmark"):
        return None if inside or collection_path.is_dir() else True
    return True if inside else None


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
