"""kernels.chain against hand computation, the float64 reference, and itself."""

import pytest
import torch

from kernels.chain import ChainPlan, chain_resolvent
from kernels.chain.spec import CHAIN
from kernels.resolvent import resolvent_reference
from tests.kernels.comparing import assert_equals_the_reference, everywhere

H, S, P = 2, 4, 3
RAGGED = (5, 1, 0, 9, 5, 2)


def chain_edges(sizes, reverse=False):
    """Edges [2, E] of chains over consecutive nodes."""
    ends = set(torch.tensor(sizes).cumsum(0).tolist())
    source = torch.tensor([i for i in range(sum(sizes)) if i + 1 not in ends], dtype=torch.int64)
    edges = torch.stack([source, source + 1])
    return edges.flip(0) if reverse else edges


def random_inputs(nodes, dtype=torch.float64):
    """Weights of both signs, a fifth of them zero, then B, C and V."""
    weight = (torch.rand(nodes, H) * 2 - 1) * (torch.rand(nodes, H) > 0.2)
    B, C = torch.randn(2, nodes, S)
    return [x.to(dtype) for x in (weight, B, C, torch.randn(nodes, H, P))]


def reference(sizes, weight, B, C, V, reverse=False):
    edges = chain_edges(sizes, reverse)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    return resolvent_reference(edges, weight[edges[1]], B, C, V, ptr=ptr, terms=None)


def assert_same(found, expected, tolerance=1e-11):
    """Row by row, so that a wrong small row does not hide behind a large one."""
    scale = expected.flatten(1).abs().amax(1).reshape(-1, *[1] * (expected.ndim - 1)) + 1e-6
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


def test_three_nodes_by_hand():
    """w = (·, a, b): L = [[1,0,0],[a,1,0],[ab,b,1]]."""
    a, b = -0.5, 0.25
    weight = torch.tensor([[7.0], [a], [b]])
    B, C = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [1.0], [2.0]])
    y = chain_resolvent(weight, B, C, torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1))
    by_hand = [1 * 1, a * 1 + 2 * 10, 2 * (a * b * 1 + b * 2 * 10 + 3 * 100)]
    torch.testing.assert_close(y.flatten(), torch.tensor(by_hand))


@everywhere(CHAIN, "variants")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_case_equals_the_reference(case, options, dtype):
    # bfloat16 is computed in float32; its results are rounded, its inputs are not.
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    assert_equals_the_reference(CHAIN, case, dtype, tolerance, **options, backend="torch")


@pytest.mark.parametrize("chunk", [None, 5, 64])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 444, 1000])
def test_outputs_and_gradients_equal_the_reference(length, chunk):
    inputs = [x.requires_grad_() for x in random_inputs(length)]
    dY = torch.randn(length, H, P, dtype=torch.float64)
    y, exact = chain_resolvent(*inputs, chunk=chunk), reference((length,), *inputs)
    assert_same(y, exact)
    found, expected = (torch.autograd.grad(z, inputs, dY) for z in (y, exact))
    assert not found[0][0].any()  # nothing enters the first node
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 4, 64])
def test_a_batch_equals_the_reference(chunk, reverse):
    inputs = random_inputs(sum(RAGGED))
    y = chain_resolvent(*inputs, plan=ChainPlan(RAGGED, reverse), chunk=chunk)
    assert_same(y, reference(RAGGED, *inputs, reverse=reverse))


@pytest.mark.parametrize("sizes", [(64, 64, 64), (96, 32, 64), (1,) * 70])
def test_chains_that_fill_their_chunks(sizes):
    inputs = random_inputs(sum(sizes))
    assert_same(
        chain_resolvent(*inputs, plan=ChainPlan(sizes), chunk=32), reference(sizes, *inputs)
    )


def test_a_zero_weight_ends_a_chain():
    inputs = random_inputs(sum(RAGGED))
    expected = chain_resolvent(*inputs, plan=ChainPlan(RAGGED))
    starts = torch.tensor([0, *RAGGED]).cumsum(0)[:-1]
    inputs[0][starts] = 0
    torch.testing.assert_close(chain_resolvent(*inputs), expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("sizes", "chunk"), [((9,), 1), ((7, 3, 0, 7), 2), ((6, 6), 3)])
def test_gradcheck(sizes, chunk, reverse):
    plan = ChainPlan(sizes, reverse)
    inputs = [x.requires_grad_() for x in random_inputs(sum(sizes))]
    assert torch.autograd.gradcheck(lambda *t: chain_resolvent(*t, plan=plan, chunk=chunk), inputs)


def test_differentiating_twice_is_refused():
    tensors = [x.requires_grad_() for x in random_inputs(5)]
    y = chain_resolvent(*tensors)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), tensors, create_graph=True)


@pytest.mark.parametrize("value", [0.0, 1 - 1e-6, -(1 - 1e-6), 1e-30])
def test_extreme_weights_in_float32(value):
    _, B, C, V = random_inputs(444, torch.float32)
    weight = torch.full((444, H), value, dtype=torch.float64).float()
    inputs = [x.requires_grad_() for x in (weight, B, C, V)]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    dY = torch.randn(444, H, P)
    y, exact = chain_resolvent(*inputs, chunk=64), reference((444,), *doubles)
    found, expected = torch.autograd.grad(y, inputs, dY), torch.autograd.grad(exact, doubles, dY)
    for mine, theirs in zip((y, *found), (exact, *expected), strict=True):
        torch.testing.assert_close(
            mine.double(), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max())
        )


@pytest.mark.parametrize("chunk", [3, 64])
@pytest.mark.parametrize("poisoned", range(4), ids=["weight", "B", "C", "V"])
def test_a_nan_stays_in_its_chain(poisoned, chunk):
    plan, inputs = ChainPlan(RAGGED), random_inputs(sum(RAGGED))
    expected = chain_resolvent(*inputs, plan=plan, chunk=chunk)
    inputs[poisoned][6:15] = torch.nan  # the chain of 9
    inputs = [x.requires_grad_() for x in inputs]
    y = chain_resolvent(*inputs, plan=plan, chunk=chunk)
    assert y[6:15].isnan().any()
    others = [*range(6), *range(15, sum(RAGGED))]
    torch.testing.assert_close(y[others], expected[others])
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert gradient[others].isfinite().all()


def test_inputs_need_not_be_contiguous():
    inputs = random_inputs(100)
    strided = [x.movedim(0, -1).contiguous().movedim(-1, 0) for x in inputs]
    strided[3] = torch.stack([strided[3]] * 2, dim=-1)[..., 0]
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(chain_resolvent(*strided), chain_resolvent(*inputs))


def test_a_gradient_may_be_expanded():
    inputs = [x.requires_grad_() for x in random_inputs(70)]
    summed = torch.autograd.grad(chain_resolvent(*inputs).sum(), inputs)
    ones = torch.autograd.grad(chain_resolvent(*inputs), inputs, torch.ones(70, H, P).double())
    for mine, theirs in zip(summed, ones, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_nodes():
    none = torch.zeros(0, S)
    assert chain_resolvent(torch.zeros(0, H), none, none, torch.zeros(0, H, P)).shape == (0, H, P)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_inputs_are_computed_in_float32(dtype):
    low = [x.to(dtype) for x in random_inputs(150)]
    with torch.autocast("cpu", torch.bfloat16):
        y = chain_resolvent(*low)
    exact = reference((150,), *(x.double() for x in low))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": torch.zeros(4, H)}, r"weight must be \[5, 2\]"),
        ({"B": torch.zeros(5, S + 1)}, r"B and C both \[5, state\]"),
        ({"plan": ChainPlan((3, 3))}, "chains hold 6 nodes"),
        ({"chunk": 0}, "chunks of at least 1 node"),
    ],
)
def test_errors_say_what_to_do(change, sentence):
    arguments = dict(zip(("weight", "B", "C", "V"), random_inputs(5), strict=True)) | change
    # The shape annotations, checked while testing, would speak first.
    with pytest.raises(ValueError, match=sentence):
        chain_resolvent.__wrapped__(**arguments)
