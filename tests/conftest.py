"""Shape annotations are enforced while testing."""

from jaxtyping import install_import_hook

install_import_hook(["kernels", "lit_models"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_flush_denormal(True)  # as the entry points do


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
