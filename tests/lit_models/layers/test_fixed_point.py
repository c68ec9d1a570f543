"""Fixed points of maps whose fixed points are known, and three ways of their gradients."""

import pytest
import torch

from lit_models.layers.fixed_point import FixedPoint, jacobian_penalty

solvers = pytest.mark.parametrize("solver", ["anderson", "broyden", "plain"])


def linear(size=6, samples=4, norm=0.9, seed=0):
    """z ↦ A z + b with ‖A‖ = norm, a matrix a sample, and its fixed point."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(samples, size, size, generator=generator, dtype=torch.float64)
    A = norm * A / torch.linalg.matrix_norm(A, 2)[:, None, None]
    b = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    z = torch.stack([torch.linalg.solve(torch.eye(size) - a, c) for a, c in zip(A, b)])
    return A, b, z


@solvers
def test_finds_the_fixed_point_of_every_sample(solver):
    A, b, z = linear()
    how = FixedPoint(solver, tolerance=1e-12, most=400, memory=8)
    found = how.solve(lambda z: torch.einsum("bij,bj->bi", A, z) + b, torch.zeros_like(b))
    assert found.converged.all()
    torch.testing.assert_close(found.z, z)


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_acceleration_ends_on_a_linear_map_after_its_dimension(solver):
    """Both are exact there: Anderson as GMRES, after d + 1 evaluations, Broyden after 2 d."""
    A, b, _ = linear(size=6, norm=5.0)  # plain iteration diverges
    how = FixedPoint(solver, tolerance=1e-8, most=100, memory=16, ridge=0.0)
    f = lambda z: torch.einsum("bij,bj->bi", A, z) + b  # noqa: E731
    found = how.solve(f, torch.zeros_like(b))
    assert found.converged.all()
    assert found.iterations.max() <= (8 if solver == "anderson" else 14)
    assert not FixedPoint("plain", most=100).solve(f, torch.zeros_like(b)).converged.any()


@solvers
def test_a_sample_does_not_know_the_others(solver):
    A, b, _ = linear()
    how = FixedPoint(solver, tolerance=1e-6, most=50)

    def solve(rows):
        f = lambda z: torch.einsum("bij,bj->bi", A[rows], z) + b[rows]  # noqa: E731
        return how.solve(f, torch.zeros_like(b[rows]))

    together = solve(slice(None))
    for row in range(len(b)):
        alone = solve(slice(row, row + 1))
        torch.testing.assert_close(alone.z[0], together.z[row], rtol=1e-9, atol=1e-12)
        assert alone.iterations[0] == together.iterations[row]


@solvers
def test_a_sample_that_converged_stops_moving(solver):
    """The first map is constant; later evaluations see its point unchanged."""
    A, b, _ = linear()
    A[0] = 0
    seen = []

    def f(z):
        seen.append(z.clone())
        return torch.einsum("bij,bj->bi", A, z) + b

    found = FixedPoint(solver, tolerance=1e-10, most=60).solve(f, torch.zeros_like(b))
    assert found.iterations[0] == 2
    assert all(torch.equal(z[0], b[0]) for z in seen[1:])
    assert len(seen) == found.iterations.max() > 3


@solvers
def test_what_does_not_converge_says_so_and_keeps_its_best(solver):
    """A rotation by 2 that turns into NaN after some evaluations."""
    turn = 2 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    calls = []

    def f(z):
        calls.append(z)
        return z @ turn + torch.ones(2) if len(calls) < 3 else torch.full_like(z, torch.nan)

    found = FixedPoint(solver, tolerance=1e-9, most=6).solve(f, torch.zeros(3, 2))
    assert not found.converged.any()
    assert (found.iterations == 6).all()
    images = [z @ turn + torch.ones(2) for z in calls[:2]]
    residuals = [((y - z).norm(dim=1) / y.norm(dim=1)).min() for z, y in zip(calls, images)]
    torch.testing.assert_close(found.residual, min(residuals).expand(3))


def through(gradient: str, **options):
    how = FixedPoint(tolerance=1e-14, most=200, gradient=gradient, memory=6, **options)

    def function(W, x):
        return how(lambda z: torch.tanh(z @ W + x), torch.zeros_like(x))[0]

    return function


@pytest.fixture
def tensors():
    W = (0.15 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_()
    return W, torch.randn(2, 4, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    ("gradient", "options"),
    [
        ("implicit", {}),
        ("implicit", {"solver": "broyden"}),
        ("implicit", {"solver": "plain"}),
        ("unroll", {}),
        ("phantom", {"phantom_steps": 60, "damping": 0.9}),
    ],
)
def test_gradients_against_finite_differences(tensors, gradient, options):
    assert torch.autograd.gradcheck(through(gradient, **options), tensors, eps=1e-6, atol=1e-6)


def test_three_ways_give_one_gradient(tensors):
    grads = [
        torch.autograd.grad(through(kind, **options)(*tensors).square().sum(), tensors)
        for kind, options in (
            ("implicit", {}),
            ("unroll", {}),
            ("phantom", {"phantom_steps": 200, "damping": 0.5}),
        )
    ]
    for other in grads[1:]:
        for got, want in zip(other, grads[0], strict=True):
            torch.testing.assert_close(got, want)


def test_a_phantom_gradient_of_one_step_is_damped():
    """By hand: z ← (1 − τ) z* + τ f(z*), so ∂z/∂x = τ ∂f/∂x at z*."""
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    how = FixedPoint(tolerance=1e-14, most=200, gradient="phantom", damping=0.25)
    z, _ = how(lambda z: 0.5 * z + x, torch.zeros_like(x))
    assert torch.autograd.grad(z.sum(), x)[0].item() == pytest.approx(0.25)
    assert z.item() == pytest.approx(0.6)


def test_no_graph_is_kept_of_the_iterations(tensors):
    """Memory of a training step does not grow with the evaluations."""

    def saved(most):
        W, x = tensors
        kept = []
        how = FixedPoint(tolerance=0.0, most=most)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            how(lambda z: torch.tanh(z @ W + x), torch.zeros_like(x))
        return sum(t.numel() for t in kept)

    assert saved(4) == saved(64)


def test_jacobian_penalty_is_the_mean_square_of_the_jacobian():
    A = torch.randn(5, 5, dtype=torch.float64)
    z = torch.zeros(4000, 5, dtype=torch.float64)
    got = jacobian_penalty(lambda z: z @ A, z)
    assert got.item() == pytest.approx((A.square().sum() / 5).item(), rel=0.1)


@pytest.mark.parametrize(
    "options",
    [{"solver": "newton"}, {"gradient": "none"}, {"most": 0}, {"memory": 0}, {"tolerance": -1.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="Expected"):
        FixedPoint(**options)
