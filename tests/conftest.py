"""Shape annotations are enforced while testing; nothing here may reach the network."""

import os

from jaxtyping import install_import_hook

install_import_hook(["kernels", "lit_models"], "beartype.beartype")
os.environ.setdefault("OUTDATED_IGNORE", "1")  # ogb would look for a newer release of itself

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
