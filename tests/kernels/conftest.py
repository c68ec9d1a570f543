"""What the tests of Triton kernels change while they run."""

import jaxtyping
import numpy as np
import pytest
from triton.runtime import interpreter


@pytest.fixture
def _tf32_as_on_a_gpu(monkeypatch):
    """The interpreter's products in TF32 lose what a GPU's lose: all but 10 bits of a fraction."""
    exact = interpreter.InterpreterBuilder.create_dot

    def truncated(x):
        kept = np.ascontiguousarray(x.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return interpreter.TensorHandle(kept.view(np.float32), x.dtype)

    def create_dot(self, a, b, total, precision, *rest):
        if str(precision).lower().endswith("tf32"):
            a, b = truncated(a), truncated(b)
        return exact(self, a, b, total, precision, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def _no_shape_checks():
    """torch.compile cannot look through what checks shapes while testing."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
