"""Grids against the float64 reference on the same edges."""

import pytest
import torch

from kernels import resolvent
from kernels.resolvent import GridPlan, four_dags, resolvent_reference
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


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 7), (1, 7, 1), (2, 5, 3), (2, 14, 14)], ids=str)
@pytest.mark.parametrize("state", [1, 16], ids=["by states", "by rows"])
def test_grids_equal_the_reference(size, state):
    given = inputs(*size, state=state, head_dim=state)
    plan = GridPlan(*size)
    one = torch.tensor([0, len(given[-1])])
    tensors = [t.requires_grad_() for t in given[1:]]
    y = resolvent(given[0], *tensors, plan=plan)
    want = resolvent_reference(given[0], *tensors, ptr=one, terms=None)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(y)
    got, exact = (
        torch.autograd.grad(x, tensors, cotangent, allow_unused=True, materialize_grads=True)
        for x in (y, want)
    )
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    edges, *tensors = inputs(1, 3, 2)
    plan = GridPlan(1, 3, 2)
    tensors = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: resolvent(edges, *t, plan=plan), tensors)


@pytest.mark.parametrize("root", CORNERS)
def test_every_corner_can_be_the_root(root):
    edges = grid_edges(2, 4, 3, root)
    _, weight, B, C, V = inputs(2, 4, 3)
    y = resolvent(edges, weight, B, C, V, plan=GridPlan(2, 4, 3, root))
    torch.testing.assert_close(y, resolvent(edges, weight, B, C, V, mode="dag"))


def test_four_dags_are_half_the_sum_of_four_resolvents():
    left, top = torch.rand(2, 4, 2, 4, 3, 2, dtype=torch.float64)
    B, C = torch.randn(2, 2, 2, 4, 3, 5, dtype=torch.float64)
    V = torch.randn(2, 4, 3, 2, 6, dtype=torch.float64)
    total = torch.zeros_like(V)
    for number, (root, dims) in enumerate(CORNERS.items()):
        edges = grid_edges(2, 4, 3, root)
        along_row = (edges[0] - edges[1]).abs() == 1
        weight = torch.where(
            along_row[:, None],
            left[number].flatten(0, 2)[edges[1]],
            top[number].flatten(0, 2)[edges[1]],
        )
        pair = 0 if len(dims) in (0, 2) else 1
        given = (x[pair].flatten(0, 2) for x in (B, C))
        y = resolvent(edges, weight, *given, V.flatten(0, 2), mode="dag")
        total += y.view_as(V) / 2
    torch.testing.assert_close(four_dags(left, top, B, C, V), total)


def test_a_nan_stays_in_its_image():
    edges, weight, B, C, V = inputs(3, 4, 4)
    clean = resolvent(edges, weight, B, C, V, plan=GridPlan(3, 4, 4))
    V[0] = torch.nan
    dirty = resolvent(edges, weight, B, C, V, plan=GridPlan(3, 4, 4))
    assert dirty[:16].isnan().any()
    torch.testing.assert_close(dirty[16:], clean[16:])


def test_extreme_decay_and_low_precision():
    shape = (2, 6, 5, 2)
    B, C = torch.randn(2, *shape[:3], 4)
    V = torch.randn(*shape, 3)
    for weight in (torch.zeros(shape), torch.full(shape, 0.5 - 1e-6)):
        exact = grid_resolvent(*(x.double() for x in (weight, weight, B, C, V)))
        torch.testing.assert_close(
            grid_resolvent(weight, weight, B, C, V).double(), exact, rtol=1e-5, atol=1e-5
        )
        low = grid_resolvent(*(x.bfloat16() for x in (weight, weight, B, C, V)))
        assert low.dtype == torch.bfloat16
        assert low.isfinite().all()


def test_errors_say_what_to_do():
    edges, weight, B, C, V = inputs(1, 3, 3)
    with pytest.raises(ValueError, match="does not lead from a node to its neighbour"):
        resolvent(edges.flip(0), weight, B, C, V, plan=GridPlan(1, 3, 3))
    with pytest.raises(ValueError, match="have 8 nodes, but V has 9"):
        resolvent(edges, weight, B, C, V, plan=GridPlan(1, 2, 4))
