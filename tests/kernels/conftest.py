"""What tests of kernels share."""

import jaxtyping
import pytest


@pytest.fixture
def _no_shape_checks():
    """For torch.compile, which cannot look through them, and for errors that are the op's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
