"""Solvers as the data module runs them: one thread each."""

import pytest

from datamodules.pde.generation import one_thread


@pytest.fixture(autouse=True)
def alone():
    with one_thread():
        yield
