"""The meter counts bytes right, and what a fixed point keeps for its gradient is what it says."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from lit_models.layers.fixed_point import FixedPoint
from lit_models.operators.fno_deq import FNODEQ
from studies.training_memory import MIB, measure, peak_bytes

DEPTHS = [6, 12, 24]
NET = partial(FNODEQ, 1, 1, [3, 3], width=6, padding=1 / 7, fixed_point=FixedPoint())
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def small(gradient, depths=DEPTHS, net=NET):
    return measure(net, gradient, depths, batch=4, points=15, seed=0)


def ten(device):
    return torch.empty(10 * MIB, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_the_meter_knows_the_peak(device):
    def three_of_four():
        kept = [ten(device), ten(device), ten(device)]
        del kept[0]
        kept.append(ten(device))

    def early():
        kept = [ten(device), ten(device)]
        kept.clear()
        kept.append(ten(device))

    def one_after_another():
        for _ in range(5):
            ten(device)

    before = [ten(device) for _ in range(5)]
    assert peak_bytes(three_of_four, device) == pytest.approx(30 * MIB, rel=0.01)
    assert peak_bytes(early, device) == pytest.approx(20 * MIB, rel=0.01)
    assert peak_bytes(one_after_another, device) == pytest.approx(10 * MIB, rel=0.01)
    assert peak_bytes(lambda: None, device) == 0
    assert len(before) == 5


def test_the_meter_sees_the_backward_pass():
    x = torch.ones(MIB, requires_grad=True)  # 4 MiB
    peak = peak_bytes(lambda: (x.exp().sum() * 2).backward())
    # exp keeps its result; the gradient of the sum is a view, that of exp a tensor: x.grad.
    assert peak == pytest.approx(8 * MIB, rel=0.01)


def saved_bytes(depth):
    """Bytes of all that autograd keeps of an unrolled forward pass, shared storage counted once."""
    torch.manual_seed(0)
    net = NET()
    net.fixed_point = replace(net.fixed_point, gradient="unroll", most=depth)
    kept = {}

    def pack(x):
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = net(torch.randn(4, 1, 15, 15)).square().mean()
    assert loss.requires_grad
    return sum(kept.values())


def test_unrolled_memory_grows_by_what_autograd_keeps_of_an_evaluation():
    saved = np.diff([saved_bytes(depth) for depth in (6, 12, 18)])
    assert saved[0] == saved[1] > 0
    peaks = np.multiply(small("unroll", [6, 12, 18])["curves"]["peak MiB"], MIB)
    assert np.diff(peaks) == pytest.approx(saved, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["implicit", "phantom"])
def test_memory_of_an_equilibrium_does_not_grow(gradient):
    measured = small(gradient)
    peaks = measured["curves"]["peak MiB"]
    assert max(peaks) == pytest.approx(min(peaks), rel=1e-3)
    assert measured["test"]["slope"] == pytest.approx(0, abs=1e-3)
    assert max(peaks) < small("unroll")["curves"]["peak MiB"][-1] / 2


@pytest.mark.parametrize("gradient", ["implicit", "phantom"])
def test_a_solver_that_keeps_every_iterate_is_found_out(gradient, monkeypatch):
    solve, kept = FixedPoint.solve, []

    def hoard(self, f, z):
        def keep(z):
            kept.append(f(z))
            return kept[-1]

        return solve(self, keep, z)

    monkeypatch.setattr(FixedPoint, "solve", hoard)
    assert small(gradient)["test"]["slope"] > 0.1


def test_both_solves_of_the_implicit_gradient_do_all_evaluations(monkeypatch):
    solve, done = FixedPoint.solve, []

    def noted(self, f, z):
        solution = solve(self, f, z)
        done.append((self.most, set(solution.iterations.tolist())))
        return solution

    monkeypatch.setattr(FixedPoint, "solve", noted)
    small("implicit", [6, 12])
    assert done == [(most, {most}) for most in (6, 6, 6, 6, 12, 12)]  # the first two warm up


@pytest.mark.slow
def test_measure():
    measured = small("unroll")
    assert measured == small("unroll") == json.loads(json.dumps(measured))
    test, curves = measured["test"], measured["curves"]
    assert set(test) == {"slope", "mib_6", "mib_12", "mib_24"}
    assert list(curves) == ["evaluations", "peak MiB"]
    assert curves["evaluations"] == DEPTHS
    assert curves["peak MiB"] == [test[f"mib_{depth}"] for depth in DEPTHS]
    logs = np.log(curves["evaluations"]), np.log(curves["peak MiB"])
    assert test["slope"] == pytest.approx(np.cov(*logs)[0, 1] / np.var(logs[0], ddof=1))
    assert 0.7 < test["slope"] < 1
    other = measure(NET, "unroll", DEPTHS, batch=4, points=15, seed=1)
    assert other == measured, "memory depends neither on weights nor on data"


def test_a_solver_that_stops_early_is_no_measurement():
    net = partial(NET, gain=0.0)  # the block forgets z: its second evaluation is the fixed point
    with pytest.raises(RuntimeError, match="expected 6 evaluations of every sample, got"):
        small("phantom", net=net)


def test_measure_explains_what_it_expects():
    with pytest.raises(ValueError, match="two different numbers of evaluations"):
        small("unroll", [4, 4])
