"""Grids against the float64 reference on the same edges."""

import pytest
import torch

from kernels import resolvent
from kernels.resolvent import GridPlan, resolvent_reference
from kernels.resolvent.grid import CORNERS, grid_resolvent


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


def as_grids(plan: GridPlan, edges, weight, *nodes):
    """left, top, B, C and V of `grid_resolvent`."""
    shape = (plan.images, plan.rows, plan.columns)
    return [*plan.weights(edges, weight), *(x.unflatten(0, shape) for x in nodes)]


SIZES = [(1, 1, 1), (1, 1, 7), (1, 7, 1), (2, 5, 3), (3, 9, 4), (2, 14, 14)]


@pytest.mark.parametrize("form", ["row", "state"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_grids_equal_the_reference(size, form):
    given = inputs(*size)
    tensors = [t.requires_grad_() for t in given[1:]]
    y = grid_resolvent(*as_grids(GridPlan(*size), given[0], *tensors), form=form).flatten(0, 2)
    one = torch.tensor([0, len(y)])
    want = resolvent_reference(given[0], *tensors, ptr=one, terms=None)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(y)
    got, exact = (
        torch.autograd.grad(x, tensors, cotangent, allow_unused=True, materialize_grads=True)
        for x in (y, want)
    )
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(2, 4, 3), (1, 30, 30)], ids=["rows", "states"])
def test_a_plan_equals_one_sweep(size):
    edges, weight, B, C, V = inputs(*size)
    y = resolvent(edges, weight / 2, B, C, V, plan=GridPlan(*size))
    torch.testing.assert_close(y, resolvent(edges, weight / 2, B, C, V, mode="dag"))


@pytest.mark.parametrize("form", ["row", "state"])
def test_gradcheck(form):
    tensors = as_grids(GridPlan(2, 4, 2), *inputs(2, 4, 2, state=2, head_dim=2))
    tensors = [t.detach().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: grid_resolvent(*t, form=form), tensors)


@pytest.mark.parametrize("form", ["row", "state"])
def test_differentiating_twice_is_refused(form):
    tensors = [t.requires_grad_() for t in as_grids(GridPlan(1, 3, 2), *inputs(1, 3, 2))]
    y = grid_resolvent(*tensors, form=form)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), tensors, create_graph=True)


@pytest.mark.parametrize("form", ["row", "state"])
def test_edges_into_the_grid_are_not_read(form):
    tensors = as_grids(GridPlan(1, 4, 3), *inputs(1, 4, 3))
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
    tensors = as_grids(GridPlan(2, 4, 3), *inputs(2, 4, 3))
    strided = [t.movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_() for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    y = grid_resolvent(*strided, form=form)
    want = grid_resolvent(*(t.requires_grad_() for t in tensors), form=form)
    torch.testing.assert_close(y, want)
    got, exact = (torch.autograd.grad(x.sum(), t) for x, t in ((y, strided), (want, tensors)))
    torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("root", CORNERS)
def test_every_corner_can_be_the_root(root):
    edges = grid_edges(2, 4, 3, root)
    _, weight, B, C, V = inputs(2, 4, 3)
    y = resolvent(edges, weight, B, C, V, plan=GridPlan(2, 4, 3, root))
    torch.testing.assert_close(y, resolvent(edges, weight, B, C, V, mode="dag"))


@pytest.mark.parametrize("form", ["row", "state"])
@pytest.mark.parametrize("poisoned", range(5), ids=["left", "top", "B", "C", "V"])
def test_a_nan_stays_in_its_image(poisoned, form):
    tensors = as_grids(GridPlan(3, 4, 4), *inputs(3, 4, 4))
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
    tensors = as_grids(GridPlan(2, 6, 5), *inputs(2, 6, 5))
    low = [t.bfloat16() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        y = grid_resolvent(*low)
    assert y.dtype == torch.bfloat16
    exact = grid_resolvent(*(t.double() for t in low))
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=1e-5)


def test_errors_say_what_to_do():
    edges, weight, B, C, V = inputs(1, 3, 3)
    with pytest.raises(ValueError, match="does not lead from a node to its neighbour"):
        resolvent(edges.flip(0), weight, B, C, V, plan=GridPlan(1, 3, 3))
    with pytest.raises(ValueError, match="have 8 nodes, but V has 9"):
        resolvent(edges, weight, B, C, V, plan=GridPlan(1, 2, 4))
    with pytest.raises(ValueError, match="root must be one of top left"):
        GridPlan(1, 3, 3, root="centre")
    with pytest.raises(ValueError, match="form must be 'auto', 'row' or 'state'"):
        grid_resolvent.__wrapped__(*as_grids(GridPlan(1, 3, 3), edges, weight, B, C, V), form="x")
    with pytest.raises(ValueError, match="form and refine do not apply to a GridPlan"):
        resolvent(edges, weight, B, C, V, plan=GridPlan(1, 3, 3), form="row")
