"""kernels.chain.decaying_chains against the chain of any weights, which is proven elsewhere."""

import pytest
import torch

import kernels.chain as module
from kernels import tiling
from kernels.chain import ChainPlan, DecayingChain, chain_resolvent, decaying_chains

H, S, P = 2, 4, 3
RAGGED = (5, 1, 0, 9, 200, 2)


def random_chain(nodes, dtype=torch.float64, reverse=False, strength=1.0):
    """Logarithms of weights down to −strength, scales of both signs, B and C."""
    log_weight = -strength * torch.rand(nodes, H)
    scale, (B, C) = torch.randn(nodes, H), torch.randn(2, nodes, S)
    tensors = (x.to(dtype).requires_grad_() for x in (log_weight, scale, B, C))
    return DecayingChain(*tensors, reverse)


def random_values(nodes, dtype=torch.float64):
    return torch.randn(nodes, H, P, dtype=dtype).requires_grad_()


def both_ways(nodes, dtype=torch.float64):
    return [random_chain(nodes, dtype, reverse) for reverse in (False, True)]


def expected(chains, V, skip=None, *, sizes):
    y = 0 if skip is None else V * skip.unsqueeze(-1)
    for log_weight, scale, B, C, reverse in chains:
        plan = ChainPlan(sizes, reverse)
        y = y + chain_resolvent(log_weight.exp(), B, C, V * scale.unsqueeze(-1), plan=plan)
    return y


def assert_as_expected(chains, V, skip=None, *, sizes, tolerance):
    """Output and all gradients, relative to the largest of each."""
    inputs = [V, *(x for chain in chains for x in chain[:4])]
    inputs += [] if skip is None else [skip]
    dY = torch.randn_like(V)
    y, z = (mix(chains, V, skip, sizes=sizes) for mix in (decaying_chains, expected))
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
    """Heads of any weights but mild ones fail."""
    monkeypatch.setattr(module, "chain_resolvent", None)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (2,), (63,), (64, 64), (65,), (500, 300, 300), RAGGED])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6)],
    ids=["double", "single"],
)
def test_outputs_and_gradients(never_other, sizes, reverse, dtype, tolerance):
    chain, V = random_chain(sum(sizes), dtype, reverse), random_values(sum(sizes), dtype)
    assert_as_expected([chain], V, sizes=sizes, tolerance=tolerance)


@pytest.mark.parametrize("tile", [1, 2**19], ids=["one by one", "together"])
def test_both_ways_and_a_skip(monkeypatch, tile):
    monkeypatch.setattr(tiling, "CPU_TILE", tile)
    sizes = (150, 150, 150, 40)
    skip = torch.randn(sum(sizes), H, dtype=torch.float64).requires_grad_()
    chains, V = both_ways(sum(sizes)), random_values(sum(sizes))
    assert_as_expected(chains, V, skip, sizes=sizes, tolerance=1e-13)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("strength", [1e-4, 0.9, 1.7])
def test_float32_is_enough_from_hardly_any_decay_to_the_most(never_other, strength, reverse):
    # A decay of 1e-25 is about the most that half a chunk can bear, 33 nodes of 64.
    chain, V = random_chain(320, torch.float32, reverse), random_values(320, torch.float32)
    with torch.no_grad():
        chain.log_weight.fill_(-strength)
    assert_as_expected([chain], V, sizes=(320,), tolerance=5e-6)


@pytest.mark.parametrize("value", [0.1, -100.0, -torch.inf, torch.nan])
def test_a_head_with_one_weight_that_is_not_mild(monkeypatch, value):
    chains, V = both_ways(100), random_values(100)
    with torch.no_grad():
        chains[0].log_weight[50, 1] = value
    exact = expected(chains, V, sizes=(100,))
    heads = []

    def counted(weight, *args, **options):
        heads.append(weight.shape[1])
        return chain_resolvent(weight, *args, **options)

    monkeypatch.setattr(module, "chain_resolvent", counted)
    y = decaying_chains(chains, V, sizes=(100,))
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-13, equal_nan=True)
    assert heads == [1]
    assert y[:, 0].isfinite().all()


@pytest.mark.parametrize("strong", [[0], [0, 1]], ids=["one head", "all heads"])
def test_gradients_of_strong_heads(strong):
    chains, V = both_ways(200), random_values(200)
    with torch.no_grad():
        for chain in chains:
            chain.log_weight[:, strong] *= 10
    skip = torch.randn(200, H, dtype=torch.float64).requires_grad_()
    assert_as_expected(chains, V, skip, sizes=(130, 70), tolerance=1e-13)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_halves_of_a_chunk_are_those_of_the_direction(reverse):
    # Split behind node 32 both halves are mild; split before node 31 the second is not.
    chain, V = random_chain(64, torch.float32, reverse), random_values(64, torch.float32)
    with torch.no_grad():
        log_weight = chain.log_weight
        log_weight[:31], log_weight[31:33], log_weight[33:] = 0, -28, -1.8
        if not reverse:
            log_weight.copy_(log_weight.flip(0))
    y = decaying_chains([chain], V)
    torch.testing.assert_close(y, expected([chain], V, sizes=(64,)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_would_enter_a_chain_is_not_read(never_other, reverse):
    chain, V = random_chain(73, reverse=reverse), random_values(73)
    entries = [69, 72] if reverse else [0, 70]
    before = decaying_chains([chain], V, sizes=(70, 3))
    with torch.no_grad():
        chain.log_weight[entries] = -1e4
    monstrous = decaying_chains([chain], V, sizes=(70, 3))
    torch.testing.assert_close(monstrous, before, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(monstrous.sum(), chain.log_weight)
    assert not gradient[entries].any()


def test_a_nan_stays_in_its_chain(never_other):
    chains, V = both_ways(sum(RAGGED)), random_values(sum(RAGGED))
    before = decaying_chains(chains, V, sizes=RAGGED)
    with torch.no_grad():
        V[8] = torch.nan
    y = decaying_chains(chains, V, sizes=RAGGED)
    others = [*range(6), *range(15, sum(RAGGED))]
    assert y[8].isnan().all()
    torch.testing.assert_close(y[others], before[others], rtol=0, atol=0)
    inputs = [V, *(x for chain in chains for x in chain[:4])]
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert gradient[others].isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(never_other, reverse):
    *tensors, _ = random_chain(50)
    skip = torch.randn(50, H, dtype=torch.float64).requires_grad_()

    def mixed(*inputs):
        *operands, skip, V = inputs
        chain = DecayingChain(*operands, reverse)
        return decaying_chains([chain], V, skip, sizes=(40, 3, 0, 7))

    assert torch.autograd.gradcheck(mixed, (*tensors, skip, random_values(50)), fast_mode=True)


def test_differentiating_twice_is_refused():
    V = random_values(5)
    y = decaying_chains([random_chain(5)], V)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), V, create_graph=True)


def test_inputs_need_not_be_contiguous(never_other):
    inputs = [x.detach() for x in (*random_chain(100)[:4], random_values(100))]
    strided = [torch.stack([x] * 2, dim=-1)[..., 0] for x in inputs]
    found, exact = (decaying_chains([DecayingChain(*x[:4])], x[4]) for x in (strided, inputs))
    torch.testing.assert_close(found, exact)


def test_low_precision_is_computed_in_float32(never_other):
    *operands, V = (x.detach().bfloat16() for x in (*random_chain(150)[:4], random_values(150)))
    with torch.autocast("cpu", torch.bfloat16):
        y = decaying_chains([DecayingChain(*operands)], V)
    assert y.dtype == torch.bfloat16
    chain = DecayingChain(*(x.double() for x in operands))
    exact = expected([chain], V.double(), sizes=(150,))
    torch.testing.assert_close(y.double(), exact, rtol=0.01, atol=1e-3)


def test_no_nodes_and_wrong_sizes():
    none = [x.detach()[:0] for x in (*random_chain(1)[:4], random_values(1))]
    assert decaying_chains([DecayingChain(*none[:4])], none[4]).shape == (0, H, P)
    with pytest.raises(ValueError, match="The plan's chains hold 9 nodes"):
        decaying_chains([random_chain(10)], random_values(10), sizes=(9,))


@pytest.mark.parametrize("wrong", ["log_weight", "B"])
def test_operands_that_do_not_fit(monkeypatch, wrong):
    # The shape annotations, checked while testing, would speak first.
    monkeypatch.setattr(module, "chain_resolvent", chain_resolvent.__wrapped__)
    chain, V = random_chain(10), random_values(10)
    chain = chain._replace(**{wrong: getattr(chain, wrong)[:, :1]})
    with pytest.raises(ValueError, match=r"weight must be \[10, 2\] and B and C both"):
        decaying_chains([chain], V)
