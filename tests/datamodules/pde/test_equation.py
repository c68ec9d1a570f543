"""What every equation refuses, and how its parameters become a key."""

import json
from dataclasses import replace

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.kuramoto_sivashinsky import KuramotoSivashinsky

EQUATION = KuramotoSivashinsky(sizes=(32,), length=16.0)


def test_a_key_holds_every_parameter():
    changes = [
        {"sizes": (64,)},
        {"length": 15.0},
        {"viscosity": 0.2},
        {"band": (1, 3)},
        {"waves": 9},
    ]
    changes += [{"step": 1e-3}, {"oversample": 2}]
    keys = [json.dumps(replace(EQUATION, **change).key) for change in [{}, *changes]]
    assert len(set(keys)) == len(keys)
    assert EQUATION.key["equation"] == "KuramotoSivashinsky"


@pytest.mark.parametrize(
    "state",
    [
        torch.zeros(2, 1, 31, dtype=torch.float64),
        torch.zeros(2, 2, 32, dtype=torch.float64),
        torch.zeros(2, 1, 32),
        torch.zeros(2, 1, 32, 32, dtype=torch.float64),
    ],
)
def test_other_shapes_and_types_are_refused(state):
    with pytest.raises(DataError, match=r"expects initial states \[B, 1, 32\] in float64, got"):
        EQUATION.solve(state, [0.1])


@pytest.mark.parametrize(
    "change", [{"sizes": (4,)}, {"step": 0.0}, {"length": -1.0}, {"oversample": 0}]
)
def test_parameters_without_sense_are_refused(change):
    with pytest.raises(DataError, match="needs at least 8 points"):
        replace(EQUATION, **change)


def test_times_must_increase():
    state = torch.zeros(1, 1, 32, dtype=torch.float64)
    with pytest.raises(DataError, match="increase"):
        EQUATION.solve(state, [0.2, 0.1])
