"""Grids against the float64 reference on the same edges."""

import pytest
import torch

from kernels.grid import CORNERS, grid_resolvent
from kernels.grid.reference import grid_reference
from kernels.grid.spec import GRID
from kernels.resolvent import resolvent_reference
from tests.kernels.comparing import assert_equals_the_reference, everywhere


def grid_edges(images: int, rows: int, columns: int, root: str = "top left") -> torch.Tensor:
    """Edges away from the root, images one after another, in shuffled order."""
    nodes = torch.arange(images * rows * columns).view(images, rows, columns)
    nodes = nodes.flip(CORNERS[root])
    right = torch.stack([nodes[:, :, :-1].flatten(), nodes[:, :, 1:].flatten()])
    down = torch.stack([nodes[:, :-1].flatten(), nodes[:, 1:].flatten()])
    edges = torch.cat([right, down], dim=1)
    return edges[:, torch.randperm(edges.shape[1])]


def inputs(images: int, rows: int, columns: int, state: int = 4, head_dim: int = 3):
    """edge_index, edge_weight of both signs, B, C and V with two heads, in float64."""
    edges, nodes = grid_edges(images, rows, columns), images * rows * columns
    weight = 2 * torch.rand(edges.shape[1], 2, dtype=torch.float64) - 1
    B, C = torch.randn(2, nodes, state, dtype=torch.float64)
    return edges, weight, B, C, torch.randn(nodes, 2, head_dim, dtype=torch.float64)


def as_grids(size: tuple[int, int, int], edges, weight, *nodes):
    """left, top, B, C and V of `grid_resolvent`."""
    source, target = edges
    along_row = (target - source == 1) & (target % size[2] != 0)
    into = target + len(nodes[0]) * ~along_row
    weights = weight.new_zeros(2 * len(nodes[0]), weight.shape[1]).index_add(0, into, weight)
    return [*weights.unflatten(0, (2, *size)), *(x.unflatten(0, size) for x in nodes)]


SIZES = [(1, 1, 1), (1, 1, 7), (1, 7, 1), (2, 5, 3), (3, 9, 4), (2, 14, 14)]


@pytest.mark.parametrize("form", ["row", "state"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_grids_equal_the_reference(size, form):
    given = inputs(*size)
    tensors = [t.requires_grad_() for t in given[1:]]
    y = grid_resolvent(*as_grids(size, given[0], *tensors), form=form).flatten(0, 2)
    one = torch.tensor([0, len(y)])
    want = resolvent_reference(given[0], *tensors, ptr=one, terms=None)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(y)
    got, exact = (
        torch.autograd.grad(x, tensors, cotangent, allow_unused=True, materialize_grads=True)
        for x in (y, want)
    )
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


@everywhere(GRID, "variants")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_case_equals_the_reference(case, options, dtype):
    # bfloat16 is computed in float32; its results are rounded, its inputs are not.
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    assert_equals_the_reference(GRID, case, dtype, tolerance, **options, backend="torch")


@pytest.mark.parametrize("form", ["row", "state"])
def test_gradcheck(form):
    tensors = as_grids((2, 4, 2), *inputs(2, 4, 2, state=2, head_dim=2))
    tensors = [t.detach().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: grid_resolvent(*t, form=form), tensors)


@pytest.mark.parametrize("form", ["row", "state"])
def test_differentiating_twice_is_refused(form):
    tensors = [t.requires_grad_() for t in as_grids((1, 3, 2), *inputs(1, 3, 2))]
    y = grid_resolvent(*tensors, form=form)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), tensors, create_graph=True)


@pytest.mark.parametrize("form", ["row", "state"])
def test_edges_into_the_grid_are_not_read(form):
    tensors = as_grids((1, 4, 3), *inputs(1, 4, 3))
    want = grid_resolvent(*tensors, form=form)
    tensors[0][:, :, 0], tensors[1][:, 0] = 5.0, 7.0
    tensors = [t.requires_grad_() for t in tensors]
    y = grid_resolvent(*tensors, form=form)
    torch.testing.assert_close(y, want)
    d_left, d_top, *_ = torch.autograd.grad(y.sum(), tensors)
    assert not d_left[:, :, 0].any()
    assert not d_top[:, 0].any()


@pytest.mark.parametrize("form", ["row", "state"])
def test_inputs_need_not_be_contiguous(form):
    tensors = as_grids((2, 4, 3), *inputs(2, 4, 3))
    strided = [t.movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_() for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    y = grid_resolvent(*strided, form=form)
    want = grid_resolvent(*(t.requires_grad_() for t in tensors), form=form)
    torch.testing.assert_close(y, want)
    got, exact = (torch.autograd.grad(x.sum(), t) for x, t in ((y, strided), (want, tensors)))
    torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("root", CORNERS)
def test_the_reference_of_a_corner_is_that_of_turned_images(root):
    tensors = as_grids((2, 4, 3), *inputs(2, 4, 3))
    turned = (x.flip(CORNERS[root]) for x in tensors)
    y = grid_reference(*turned, root=root).flip(CORNERS[root])
    torch.testing.assert_close(y, grid_resolvent(*tensors))


@pytest.mark.parametrize(("size", "form"), [((2, 4, 3), "row"), ((1, 30, 30), "state")], ids=str)
def test_auto_takes_rows_on_small_grids(size, form):
    edges, weight, B, C, V = inputs(*size)
    tensors = as_grids(size, edges, weight / 2, B, C, V)
    assert torch.equal(grid_resolvent(*tensors), grid_resolvent(*tensors, form=form))


@pytest.mark.parametrize("form", ["row", "state"])
@pytest.mark.parametrize("poisoned", range(5), ids=["left", "top", "B", "C", "V"])
def test_a_nan_stays_in_its_image(poisoned, form):
    tensors = as_grids((3, 4, 4), *inputs(3, 4, 4))
    clean = grid_resolvent(*tensors, form=form)
    tensors[poisoned][1] = torch.nan
    tensors = [t.requires_grad_() for t in tensors]
    dirty = grid_resolvent(*tensors, form=form)
    assert dirty[1].isnan().any()
    torch.testing.assert_close(dirty[::2], clean[::2])
    for gradient in torch.autograd.grad(dirty.sum(), tensors):
        assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("form", ["row", "state"])
@pytest.mark.parametrize("weight", [0.0, 1 - 1e-6, -(1 - 1e-6), 0.5 - 1e-6])
def test_extreme_weights_in_float32(weight, form):
    weight = torch.full((1, 14, 14, 2), weight)
    B, C = torch.randn(2, 1, 14, 14, 4)
    tensors = [weight, weight.clone(), B, C, torch.randn(1, 14, 14, 2, 3)]
    doubles = [t.double().requires_grad_() for t in tensors]
    exact = grid_resolvent(*doubles, form="state")
    y = grid_resolvent(*(t.requires_grad_() for t in tensors), form=form)
    got, want = (torch.autograd.grad(x.sum(), t) for x, t in ((y, tensors), (exact, doubles)))
    for mine, theirs in zip((y, *got), (exact, *want), strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-5 * scale)


def test_low_precision_keeps_its_dtype():
    tensors = as_grids((2, 6, 5), *inputs(2, 6, 5))
    low = [t.bfloat16() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        y = grid_resolvent(*low)
    assert y.dtype == torch.bfloat16
    exact = grid_resolvent(*(t.double() for t in low))
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=1e-5)


def test_errors_say_what_to_do():
    tensors = as_grids((1, 3, 3), *inputs(1, 3, 3))
    mix = grid_resolvent.__wrapped__  # the shape annotations, checked while testing, speak first
    with pytest.raises(ValueError, match="form must be 'auto', 'row' or 'state'"):
        mix(*tensors, form="x")
    with pytest.raises(ValueError, match=r"left and top must be \[1, 3, 3, 2\]"):
        mix(tensors[0][:, 1:], *tensors[1:])
    with pytest.raises(ValueError, match="B and C must be alike"):
        mix(*tensors[:2], tensors[2][..., :1], *tensors[3:])
