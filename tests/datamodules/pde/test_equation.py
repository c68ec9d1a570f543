"""What every equation refuses, and how its parameters become a key."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from datamodules.errors import DataError
from datamodules.pde.boussinesq import Boussinesq
from datamodules.pde.equation import SOLVER_VERSION, SolverError, SpectralEquation
from datamodules.pde.gray_scott import GrayScott
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
    "change",
    [
        *({"sizes": (4,)}, {"sizes": (32.5,)}, {"step": 0.0}, {"length": -1.0}),
        *({"oversample": 0}, {"oversample": 1.5}),
    ],
)
def test_parameters_without_sense_are_refused(change):
    with pytest.raises(DataError, match="needs at least 8 points"):
        replace(EQUATION, **change)


def test_times_must_increase():
    state = torch.zeros(1, 1, 32, dtype=torch.float64)
    with pytest.raises(DataError, match="increase"):
        EQUATION.solve(state, [0.2, 0.1])


def test_the_highest_modes_may_have_a_fiftieth_of_the_largest_amplitude():
    equation = KuramotoSivashinsky(sizes=(64,), length=20.0)
    torus, (x,) = equation.torus(), equation.torus().points

    def state(share: float):
        low, high = torch.cos(x * 2 * math.pi / 20), torch.cos(x * 2 * math.pi)
        return torus.forward((low + share * high)[None, None])

    equation.check(state(0.019), torus, 1.0)
    with pytest.raises(SolverError, match="1 of 1 trajectories are not resolved by 64 points"):
        equation.check(state(0.021), torus, 1.0)


@dataclass(frozen=True)
class Dispersion(SpectralEquation):
    """u_t = −u_xxx: nothing in it smooths."""

    channels = ("u",)

    def linear(self, torus):
        return -(torus.gradient[0] ** 3)

    def nonlinear(self, torus):
        return torch.zeros_like

    def initial(self, generator):
        return torch.randn((1, *self.torus().sizes), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("equation", "advice"),
    [
        (Dispersion((32,), 1.0, 0.1), "raise oversample (now 1) or sizes."),
        (EQUATION, "raise oversample (now 1), sizes or viscosity."),
        (Boussinesq(), "raise oversample (now 1), sizes, viscosity or diffusivity."),
        (GrayScott(), "raise oversample (now 1), sizes, diffusion_u or diffusion_v."),
    ],
)
def test_advice_names_the_options_that_an_equation_has(equation, advice):
    torus, generator = equation.torus(), torch.Generator().manual_seed(0)
    noise = torch.randn((1, 1, *torus.sizes), generator=generator, dtype=torch.float64)
    with pytest.raises(SolverError) as caught:
        equation.check(torus.forward(noise), torus, 1.0)
    assert str(caught.value).endswith(f"at t = 1: {advice}")


def test_time_zero_saves_the_modes_that_are_kept():
    equation = KuramotoSivashinsky(sizes=(32,), length=1.0)
    (x,) = equation.coordinates
    low, high = torch.sin(2 * math.pi * 3 * x), torch.sin(2 * math.pi * 12 * x)
    got = equation.solve((low + high)[None, None], [0.0])[0, 0, 0]
    torch.testing.assert_close(got, low, rtol=0, atol=1e-14)


def test_the_key_tells_the_solver_s_version():
    assert EQUATION.key["solver"] == SOLVER_VERSION


@pytest.mark.parametrize("sizes", [64, ()])
def test_sizes_that_are_no_list_are_refused(sizes):
    with pytest.raises(DataError, match="needs as sizes a list, of one number of points an axis"):
        replace(EQUATION, sizes=sizes)
