"""kernels.grid.grid_dags against the float64 reference on the DAGs' edges, and itself."""

import pytest
import torch

import kernels.grid as module
from kernels.grid import CORNERS, GridDag, grid_dags
from kernels.resolvent import resolvent_reference
from tests.kernels.grid.test_grid import grid_edges

H = 2
PAIRS = ("top left", "bottom right"), ("top right", "bottom left")
ALL = tuple(CORNERS)
in_both_forms = pytest.mark.parametrize("form", ["row", "state"])
# Both the torch path and, where numba is installed, the one that is compiled for float32.
PRECISIONS = [
    pytest.param(torch.float64, 1e-11, id="double"),
    pytest.param(torch.float32, 1e-5, id="single"),
]
in_every_precision = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)


def random_dags(shape, roots=ALL, state=4, shared=True, weight=1.0, dtype=torch.float64):
    """DAGs with weights and scales of both signs; diagonal pairs share B and C if `shared`."""

    def leaf(*sizes):
        return torch.randn(*sizes, dtype=torch.float64).to(dtype).requires_grad_()

    pairs = [[leaf(*shape, state) for _ in range(2)] for _ in PAIRS]
    dags = []
    for root in roots:
        left, top = ((torch.rand(2, *shape, H, dtype=torch.float64) * 2 - 1) * weight).to(dtype)
        own = pairs[root in PAIRS[1]] if shared else [leaf(*shape, state) for _ in range(2)]
        dags.append(
            GridDag(left.requires_grad_(), top.requires_grad_(), leaf(*shape, H), *own, root)
        )
    return dags


def random_values(shape, head_dim=3, dtype=torch.float64):
    return torch.randn(*shape, H, head_dim, dtype=torch.float64).to(dtype).requires_grad_()


def tensors_of(dags, *more):
    """Every tensor once."""
    return list({id(x): x for dag in dags for x in dag[:5]}.values()) + [
        x for x in more if x is not None
    ]


def expected(dags, V, skip=None):
    """The reference on explicit edges, in float64."""
    shape = V.shape[:3]
    ptr = torch.tensor([0, V[..., 0, 0].numel()])
    values = V.double()
    y = torch.zeros_like(values) if skip is None else values * skip.double().unsqueeze(-1)
    for left, top, scale, B, C, root in dags:
        edges = grid_edges(*shape, root)
        column = edges % shape[2]
        along_row = (column[0] != column[1]).unsqueeze(-1)
        weights = (x.double().flatten(0, 2)[edges[1]] for x in (left, top))
        nodes = (B.double(), C.double(), values * scale.double().unsqueeze(-1))
        nodes = (x.flatten(0, 2) for x in nodes)
        mixed = resolvent_reference(
            edges, torch.where(along_row, *weights), *nodes, ptr=ptr, terms=None
        )
        y = y + mixed.view_as(y)
    return y


def assert_as_expected(dags, V, skip=None, *, form, tolerance):
    """Output and all gradients, relative to the largest of each."""
    inputs = tensors_of(dags, V, skip)
    dY = torch.randn_like(V)
    y, z = grid_dags(dags, V, skip, form=form), expected(dags, V, skip)
    assert y.dtype == V.dtype
    got, want = (
        torch.autograd.grad(x, inputs, dY.to(x), allow_unused=True, materialize_grads=True)
        for x in (y, z)
    )
    for found, exact in zip((y, *got), (z, *want), strict=True):
        bound = tolerance * float(exact.detach().abs().max()) + 1e-30
        torch.testing.assert_close(found.double(), exact.double(), rtol=0, atol=bound)


SIZES = [(1, 1, 1), (1, 1, 7), (2, 7, 1), (2, 5, 3), (1, 3, 18), (3, 6, 6)]


@in_every_precision
@in_both_forms
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_outputs_and_gradients(shape, form, dtype, tolerance):
    dags, V = random_dags(shape, dtype=dtype), random_values(shape, dtype=dtype)
    assert_as_expected(dags, V, form=form, tolerance=tolerance)


@in_every_precision
@in_both_forms
@pytest.mark.parametrize(
    "roots",
    [*((root,) for root in ALL), *PAIRS, ALL[:3], (ALL[1], ALL[0], ALL[1])],
    ids=", ".join,
)
def test_some_corners(roots, form, dtype, tolerance):
    shape = (2, 4, 5)
    dags = random_dags(shape, roots, shared=len(roots) != 3, dtype=dtype)
    skip = torch.randn(*shape, H, dtype=dtype).requires_grad_()
    assert_as_expected(
        dags, random_values(shape, dtype=dtype), skip, form=form, tolerance=tolerance
    )


@in_every_precision
@in_both_forms
@pytest.mark.parametrize(("state", "head_dim"), [(1, 1), (7, 40), (16, 32)])
def test_states_and_values_of_any_size(state, head_dim, form, dtype, tolerance):
    shape = (1, 4, 3)
    dags = random_dags(shape, state=state, dtype=dtype)
    V = random_values(shape, head_dim, dtype)
    assert_as_expected(dags, V, form=form, tolerance=tolerance)


@in_both_forms
@pytest.mark.parametrize("weight", [0.0, 0.5 - 1e-6, 1 - 1e-6, -(1 - 1e-6), 3.0])
def test_extreme_weights_in_float32(weight, form):
    shape = (1, 14, 14)
    dags, V = random_dags(shape, dtype=torch.float32), random_values(shape, dtype=torch.float32)
    with torch.no_grad():
        for dag in dags:
            dag.left.fill_(weight)
            dag.top.fill_(weight)
    assert_as_expected(dags, V, form=form, tolerance=1e-5)


@in_both_forms
@pytest.mark.parametrize("weights", [(0.9, -1e-8, 0.0, 40.0), (1e-9, 1e-9, 0.5), (30.0,)], ids=str)
def test_weights_whose_products_leave_what_numbers_can_hold(weights, form):
    shape = (1, 3, 21)
    dags, V = random_dags(shape, dtype=torch.float32), random_values(shape, dtype=torch.float32)
    with torch.no_grad():
        for dag in dags:
            dag.left.copy_(torch.tensor(weights)[torch.randint(len(weights), dag.left.shape)])
            dag.top.fill_(0.1)
    assert_as_expected(dags, V, form=form, tolerance=1e-5)


@in_every_precision
@in_both_forms
def test_what_would_enter_a_grid_is_not_read(form, dtype, tolerance):
    shape = (2, 4, 3)
    dags, V = random_dags(shape, dtype=dtype), random_values(shape, dtype=dtype)
    want = grid_dags(dags, V, form=form)
    by_numba = dtype == torch.float32 and module._has_numba()
    unread = torch.nan if by_numba else 1e3
    with torch.no_grad():
        for left, top, *_, root in dags:
            left[:, :, -1 if "right" in root else 0] = unread
            top[:, -1 if "bottom" in root else 0] = unread
    y = grid_dags(dags, V, form=form)
    torch.testing.assert_close(y, want, rtol=0, atol=0)
    inputs = tensors_of(dags, V)
    gradients = dict(zip(map(id, inputs), torch.autograd.grad(y.sum(), inputs), strict=True))
    assert all(x.isfinite().all() for x in gradients.values())
    for left, top, *_, root in dags:
        assert not gradients[id(left)][:, :, -1 if "right" in root else 0].any()
        assert not gradients[id(top)][:, -1 if "bottom" in root else 0].any()


@in_every_precision
@in_both_forms
@pytest.mark.parametrize("poisoned", range(6), ids=["left", "top", "scale", "B", "C", "V"])
def test_a_nan_stays_in_its_image(poisoned, form, dtype, tolerance):
    shape = (3, 4, 4)
    dags, V = random_dags(shape, dtype=dtype), random_values(shape, dtype=dtype)
    clean = grid_dags(dags, V, form=form)
    with torch.no_grad():
        (*dags[1][:5], V)[poisoned][1] = torch.nan
    dirty = grid_dags(dags, V, form=form)
    assert dirty[1].isnan().any()
    torch.testing.assert_close(dirty[::2], clean[::2], rtol=0, atol=0)
    for gradient in torch.autograd.grad(dirty.sum(), tensors_of(dags, V)):
        assert gradient[::2].isfinite().all()


@in_both_forms
def test_gradcheck(form):
    shape = (2, 3, 2)
    dags = random_dags(shape, state=2)
    skip = torch.randn(*shape, H, dtype=torch.float64).requires_grad_()

    def mixed(*inputs):
        *operands, skip, V = inputs
        turned = [GridDag(*operands[5 * i : 5 * i + 5], root) for i, root in enumerate(ALL)]
        return grid_dags(turned, V, skip, form=form)

    inputs = (*(x for dag in dags for x in dag[:5]), skip, random_values(shape, 2))
    assert torch.autograd.gradcheck(mixed, inputs, fast_mode=True)


@in_every_precision
@in_both_forms
def test_differentiating_twice_is_refused(form, dtype, tolerance):
    dags, V = random_dags((1, 3, 2), dtype=dtype), random_values((1, 3, 2), dtype=dtype)
    y = grid_dags(dags, V, form=form)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), V, create_graph=True)


@in_every_precision
@in_both_forms
def test_inputs_need_not_be_contiguous(form, dtype, tolerance):
    shape = (2, 4, 3)
    dags, V = random_dags(shape, dtype=dtype), random_values(shape, dtype=dtype)
    want = grid_dags(dags, V, form=form)
    gradients = torch.autograd.grad(want.sum(), [x for dag in dags for x in dag[:5]] + [V])

    def strided(x):
        return torch.stack([x.detach()] * 2, dim=-1)[..., 0].requires_grad_()

    apart = [GridDag(*map(strided, dag[:5]), dag.root) for dag in dags]
    values = strided(V)
    y = grid_dags(apart, values, form=form)
    torch.testing.assert_close(y, want)
    inputs = [x for dag in apart for x in dag[:5]] + [values]
    found = torch.autograd.grad(y.expand(2, *y.shape)[1].sum(), inputs)
    # B and C, which a pair shares, have the gradients of both added up.
    for i, (got, exact) in enumerate(zip(found, gradients, strict=True)):
        if i % 5 in (3, 4) and i < 20:
            other = {0: 15, 5: 10, 10: 5, 15: 0}[i - i % 5] + i % 5
            got = got + found[other]
        torch.testing.assert_close(got, exact)


@in_both_forms
def test_threads_change_no_bit(form):
    shape = (3, 9, 10)
    dags = random_dags(shape, dtype=torch.float32)
    V = random_values(shape, 40, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = grid_dags(dags, V, form=form)
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors_of(dags, V))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for found, exact in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=0)


@in_both_forms
def test_bands_of_rows_and_tiles_of_images_change_nothing(monkeypatch, form):
    forms = pytest.importorskip("kernels.grid.numba_backend.forms")
    shape = (3, 7, 5)
    dags, V = random_dags(shape, dtype=torch.float32), random_values(shape, dtype=torch.float32)
    monkeypatch.setattr(forms.loops, "BAND", 2 * 5 * forms.loops.BLOCK)
    monkeypatch.setattr(forms, "TILE", 2 * H * 35**2)
    assert_as_expected(dags, V, form=form, tolerance=1e-5)


@in_both_forms
def test_without_numba(monkeypatch, form):
    monkeypatch.setattr(module, "_has_numba", lambda: False)
    shape = (2, 4, 5)
    dags, V = random_dags(shape, dtype=torch.float32), random_values(shape, dtype=torch.float32)
    assert_as_expected(dags, V, form=form, tolerance=1e-5)


@pytest.mark.parametrize(("rows", "form"), [(7, "row"), (16, "state")])
def test_auto_takes_rows_on_small_grids(rows, form):
    shape = (1, rows, rows)
    dags, V = random_dags(shape, dtype=torch.float32), random_values(shape, dtype=torch.float32)
    torch.testing.assert_close(grid_dags(dags, V), grid_dags(dags, V, form=form), rtol=0, atol=0)


@in_both_forms
def test_low_precision_is_computed_in_float32(form):
    dags, V = random_dags((2, 6, 5), dtype=torch.bfloat16), random_values((2, 6, 5))
    V = V.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = grid_dags(dags, V, form=form)
    assert y.dtype == torch.bfloat16
    exact = expected(dags, V)
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=1e-4)


def test_no_images_no_values_and_no_dags():
    dags, V = random_dags((0, 3, 4)), random_values((0, 3, 4))
    assert grid_dags(dags, V).shape == V.shape
    dags, V = random_dags((1, 3, 4)), random_values((1, 3, 4), 0)
    assert grid_dags(dags, V).shape == V.shape
    V, skip = random_values((1, 3, 4)), torch.randn(1, 3, 4, H, dtype=torch.float64)
    torch.testing.assert_close(grid_dags([], V, skip), V * skip.unsqueeze(-1))


def test_errors_say_what_to_do():
    mix = grid_dags.__wrapped__  # the shape annotations, checked while testing, would speak first
    (dag,), V = random_dags((1, 3, 4), ALL[:1]), random_values((1, 3, 4))
    with pytest.raises(ValueError, match="root must be one of top left, top right"):
        mix([dag._replace(root="centre")], V)
    with pytest.raises(ValueError, match="form must be 'auto', 'row' or 'state', got 'x'"):
        mix([dag], V, form="x")
    with pytest.raises(ValueError, match=r"skip must be \[1, 3, 4, 2\]"):
        mix([dag], V, dag.B)
    with pytest.raises(ValueError, match="backend='triton' knows grids of up to 64 columns"):
        mix([dag], V, form="row", backend="triton")
    for name in ("left", "top", "scale", "B", "C"):
        wrong = dag._replace(**{name: getattr(dag, name)[..., :1]})
        with pytest.raises(ValueError, match=r"left, top and scale must be \[1, 3, 4, 2\] and B"):
            mix([wrong], V)
    with pytest.raises(ValueError, match="a state, got"):
        mix([dag._replace(B=dag.B[:, :1], C=dag.C[:, :1])], V)
