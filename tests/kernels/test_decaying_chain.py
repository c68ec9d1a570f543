"""kernels.resolvent.decaying_chain against the chain of any weights, which is proven elsewhere."""

import pytest
import torch

from kernels.resolvent import decaying_chain as module
from kernels.resolvent.chain import ChainPlan, chain_resolvent
from kernels.resolvent.decaying_chain import decaying_chain

H, S, P = 2, 4, 3
RAGGED = (5, 1, 0, 9, 200, 2)


def random_inputs(nodes, dtype=torch.float64, strength=1.0):
    """Logarithms of weights down to −strength, scales of both signs, B, C and V."""
    log_weight = -strength * torch.rand(nodes, H)
    scale, (B, C) = torch.randn(nodes, H), torch.randn(2, nodes, S)
    tensors = (log_weight, scale, B, C, torch.randn(nodes, H, P))
    return [x.to(dtype).requires_grad_() for x in tensors]


def expected(log_weight, scale, B, C, V, *, plan):
    return chain_resolvent(log_weight.exp(), B, C, V * scale.unsqueeze(-1), plan=plan)


def assert_as_expected(inputs, plan, tolerance):
    """Output and all gradients, relative to the largest of each."""
    dY = torch.randn_like(inputs[-1])
    y, z = decaying_chain(*inputs, plan=plan), expected(*inputs, plan=plan)
    pairs = zip(
        (y, *torch.autograd.grad(y, inputs, dY)),
        (z, *torch.autograd.grad(z, inputs, dY)),
        strict=True,
    )
    for found, exact in pairs:
        bound = tolerance * float(exact.detach().abs().max())
        torch.testing.assert_close(found, exact, rtol=0, atol=bound)


@pytest.fixture
def never_other(monkeypatch):
    """Chunks of any kind but those of mild weights fail."""
    monkeypatch.setattr(module, "chain_resolvent", None)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (2,), (63,), (64, 64), (65,), (500, 300, 300), RAGGED])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6)],
    ids=["double", "single"],
)
def test_outputs_and_gradients(never_other, sizes, reverse, dtype, tolerance):
    assert_as_expected(random_inputs(sum(sizes), dtype), ChainPlan(sizes, reverse), tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("strength", [1e-4, 1.7, 3.3])
def test_float32_is_enough_from_hardly_any_decay_to_the_most(never_other, strength, reverse):
    # A decay of 1e-25 is about the most that half a chunk can bear: 33 nodes of 64, 17 of 32.
    inputs = random_inputs(320, torch.float32)
    with torch.no_grad():
        inputs[0].fill_(-strength)
    # Loose for the gradient of weights as small as e⁻³: it is a difference of larger sums.
    assert_as_expected(inputs, ChainPlan((320,), reverse), 2e-5)


@pytest.mark.parametrize("value", [0.1, -100.0, -torch.inf, torch.nan])
def test_one_weight_that_is_not_mild(value):
    inputs = random_inputs(100)
    with torch.no_grad():
        inputs[0][50, 1] = value
    plan = ChainPlan((100,))
    y = decaying_chain(*inputs, plan=plan)
    torch.testing.assert_close(y, expected(*inputs, plan=plan), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_halves_of_a_chunk_are_those_of_the_direction(reverse):
    # Split behind node 32 both halves are mild; split before node 31 the second is not.
    inputs, plan = random_inputs(64, torch.float32), ChainPlan((64,), reverse)
    with torch.no_grad():
        inputs[0][:31], inputs[0][31:33], inputs[0][33:] = 0, -28, -1.8
        if not reverse:
            inputs[0].copy_(inputs[0].flip(0))
    y = decaying_chain(*inputs, plan=plan)
    torch.testing.assert_close(y, expected(*inputs, plan=plan), rtol=0, atol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_would_enter_a_chain_is_not_read(never_other, reverse):
    plan, inputs = ChainPlan((70, 3), reverse), random_inputs(73)
    entries = [69, 72] if reverse else [0, 70]
    before = decaying_chain(*inputs, plan=plan)
    with torch.no_grad():
        inputs[0][entries] = -1e4
    monstrous = decaying_chain(*inputs, plan=plan)
    torch.testing.assert_close(monstrous, before, rtol=0, atol=0)
    (gradient, *_) = torch.autograd.grad(monstrous.sum(), inputs)
    assert not gradient[entries].any()


def test_a_nan_stays_in_its_chain(never_other):
    plan, inputs = ChainPlan(RAGGED), random_inputs(sum(RAGGED))
    before = decaying_chain(*inputs, plan=plan)
    with torch.no_grad():
        inputs[-1][8] = torch.nan
    y = decaying_chain(*inputs, plan=plan)
    others = [*range(6), *range(15, sum(RAGGED))]
    assert y[8].isnan().all()
    torch.testing.assert_close(y[others], before[others], rtol=0, atol=0)
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert gradient[others].isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(never_other, reverse):
    plan = ChainPlan((40, 3, 0, 7), reverse)
    assert torch.autograd.gradcheck(
        lambda *t: decaying_chain(*t, plan=plan), random_inputs(50), fast_mode=True
    )


def test_differentiating_twice_is_refused():
    inputs = random_inputs(5)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(decaying_chain(*inputs).sum(), inputs, create_graph=True)


def test_inputs_need_not_be_contiguous(never_other):
    inputs = [x.detach() for x in random_inputs(100)]
    strided = [torch.stack([x] * 2, dim=-1)[..., 0] for x in inputs]
    torch.testing.assert_close(decaying_chain(*strided), decaying_chain(*inputs))


def test_low_precision_is_computed_in_float32(never_other):
    inputs = [x.detach().bfloat16() for x in random_inputs(150)]
    with torch.autocast("cpu", torch.bfloat16):
        y = decaying_chain(*inputs)
    assert y.dtype == torch.bfloat16
    exact = expected(*(x.double() for x in inputs), plan=ChainPlan((150,)))
    torch.testing.assert_close(y.double(), exact, rtol=0.01, atol=1e-3)


def test_no_nodes_and_wrong_plans():
    none = [x.detach()[:0] for x in random_inputs(1)]
    assert decaying_chain(*none).shape == (0, H, P)
    with pytest.raises(ValueError, match="The plan's chains hold 9 nodes"):
        decaying_chain(*random_inputs(10), plan=ChainPlan((9,)))
