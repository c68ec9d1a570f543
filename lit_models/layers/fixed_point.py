"""Fixed points z = f(z) of a batch of maps, and gradients through them.

Samples are independent: each has its own acceleration, stops moving once it has converged, and is
told with the smallest residual that it met. Shapes: B samples, anything behind.

torchdeq does much of this. It is not used, because there a sample moves on until all have
converged, one that has not is not told apart, and its one release, 0.1.0, is of 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from lit_models.task import in_single

Map = Callable[[Tensor], Tensor]
Solver = Literal["anderson", "broyden", "plain"]
Gradient = Literal["implicit", "phantom", "unroll"]


@dataclass
class Solution:
    """Where a solver ended.

    Attributes:
        z: [B, …] the iterate of the smallest residual of every sample.
        residual: [B] ‖f(z) − z‖ / ‖f(z)‖ there.
        iterations: [B] evaluations of f until the sample converged, or all that there were.
        converged: [B] whether the residual is within the tolerance.
    """

    z: Tensor
    residual: Float[Tensor, " B"]
    iterations: Int[Tensor, " B"]
    converged: Tensor


@dataclass(frozen=True)
class FixedPoint:
    """How a fixed point is found, and how gradients flow through it.

    Attributes:
        solver: `anderson` acceleration, good `broyden` updates, or `plain` iteration.
        tolerance: of the residual ‖f(z) − z‖ / ‖f(z)‖ of a sample.
        most: evaluations of f.
        memory: iterates that Anderson mixes, or updates that Broyden keeps.
        ridge: on Anderson's least squares, over the mean square of its residuals.
        mixing: share of f(z), not z, in what Anderson goes on from.
        gradient: `implicit` solves the adjoint fixed point y = Jᵀ y + ∂L/∂z by the same solver;
            `phantom` takes `phantom_steps` damped steps z ← (1 − τ) z + τ f(z) from the solution
            and differentiates through these; `unroll` iterates plainly `most` times and
            differentiates through all.
        phantom_steps, damping: of the phantom gradient; the latter is τ.

    Raises:
        ValueError: an option is none of these, or a number is out of range.

    Source: Bai, Kolter and Koltun, "Deep Equilibrium Models", arXiv:1909.01377; Anderson, J. ACM 12
    (1965) 547; Broyden, Math. Comp. 19 (1965) 577; phantom gradients: Geng et al.,
    arXiv:2111.05177.
    """

    solver: str = "anderson"
    tolerance: float = 1e-3
    most: int = 32
    memory: int = 5
    ridge: float = 1e-8
    mixing: float = 1.0
    gradient: str = "implicit"
    phantom_steps: int = 1
    damping: float = 0.5

    def __post_init__(self) -> None:
        for name, options in (("solver", Solver), ("gradient", Gradient)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(
                    f"Expected {name} {', '.join(get_args(options))}, got {getattr(self, name)!r}."
                )
        if min(self.most, self.memory, self.phantom_steps) < 1 or self.tolerance < 0:
            raise ValueError(
                "Expected at least one evaluation, one iterate in memory and one phantom step, and "
                f"a tolerance of 0 or more, got {self.most}, {self.memory}, {self.phantom_steps} "
                f"and {self.tolerance}."
            )

    def solve(self, f: Map, z: Tensor) -> Solution:
        """The fixed point from a first guess, without gradients."""
        with torch.no_grad():
            propose = {"anderson": _Anderson, "broyden": _Broyden, "plain": _Plain}[self.solver]
            return _iterate(f, z, propose(self, z), self)

    def __call__(self, f: Map, z: Tensor) -> tuple[Tensor, Solution]:
        """The fixed point, differentiable in what f depends on, and how it was found.

        Args:
            f: maps [B, …] to the same shape, each sample by itself.
            z: [B, …] first guess; no gradient flows to it.
        """
        if self.gradient == "unroll":
            return self._unrolled(f, z)
        solution = self.solve(f, z.detach())
        if not torch.is_grad_enabled():
            return solution.z, solution
        z = solution.z
        if self.gradient == "phantom":
            for _ in range(self.phantom_steps):
                z = (1 - self.damping) * z + self.damping * f(z)
            if z.requires_grad:
                # The solution depends on the parameters too, which a second one would not know.
                z.register_hook(lambda _: refuse_second_derivatives())
            return z, solution
        return self._implicit(f, z), solution

    def _unrolled(self, f: Map, z: Tensor) -> tuple[Tensor, Solution]:
        before = z
        for _ in range(self.most):
            before, z = z, f(z)
        residual = _residual(before.detach(), z.detach())
        iterations = torch.full_like(residual, self.most, dtype=torch.int64)
        return z, Solution(z.detach(), residual, iterations, residual <= self.tolerance)

    def _implicit(self, f: Map, z: Tensor) -> Tensor:
        point = z.detach().requires_grad_()
        with torch.enable_grad():
            image = f(point)

        def solve_adjoint(gradient: Tensor | None) -> Tensor | None:
            refuse_second_derivatives()
            if gradient is None:  # nothing downstream depends on the solution
                return None

            def adjoint(y: Tensor) -> Tensor:
                (turned,) = torch.autograd.grad(image, point, y, retain_graph=True)
                return turned + gradient

            return self.solve(adjoint, gradient).z

        following = f(z.detach())  # its backward pass gives the parameters their gradients
        if following.requires_grad:
            following.register_hook(solve_adjoint)
        return following


def _iterate(
    f: Map, z: Tensor, propose: Callable[[Tensor, Tensor], Tensor], how: FixedPoint
) -> Solution:
    best, residual = z, torch.full((len(z),), torch.inf, dtype=z.dtype, device=z.device)
    iterations = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    moving = torch.ones(len(z), dtype=torch.bool, device=z.device)
    for _ in range(how.most):
        image = f(z)
        here = _residual(z, image)
        iterations += moving
        better = moving & (here < residual)  # never where it is NaN
        best, residual = _where(better, z, best), torch.where(better, here, residual)
        moving = moving & (residual > how.tolerance)
        if not moving.any():
            break
        z = _where(moving, propose(z, image), z)
    return Solution(best, residual, iterations, residual <= how.tolerance)


class _Plain:
    def __init__(self, how: FixedPoint, z: Tensor):
        pass

    def __call__(self, z: Tensor, image: Tensor) -> Tensor:
        return image


class _Anderson:
    """The combination of the last iterates, of sum 1, whose residuals cancel best."""

    def __init__(self, how: FixedPoint, z: Tensor):
        self.how, self.seen = how, 0
        self.points = z.new_zeros(len(z), how.memory, z[0].numel())
        self.images = torch.zeros_like(self.points)

    def __call__(self, z: Tensor, image: Tensor) -> Tensor:
        place = self.seen % self.how.memory
        self.points[:, place], self.images[:, place] = z.flatten(1), image.flatten(1)
        self.seen += 1
        # No weight could be solved for in 16 bits.
        X, F = (in_single(x[:, : self.seen]) for x in (self.points, self.images))
        gram = (F - X) @ (F - X).mT
        size = gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=z.device)
        weight, _ = torch.linalg.solve_ex(
            gram + self.how.ridge * size * eye, torch.ones_like(eye[:, :1])
        )
        weight = (weight / weight.sum(dim=1, keepdim=True)).mT
        mixed = self.how.mixing * (weight @ F) + (1 - self.how.mixing) * (weight @ X)
        mixed = mixed.to(z.dtype).view_as(z)
        sound = mixed.flatten(1).isfinite().all(dim=1)
        return _where(sound, mixed, image)


class _Broyden:
    """z − H g with g = f(z) − z and H = −1 + Σ u vᵀ, which every step corrects by one term."""

    def __init__(self, how: FixedPoint, z: Tensor):
        self.seen, self.memory = 0, how.memory
        self.u = z.new_zeros(len(z), how.memory, z[0].numel())
        self.v = torch.zeros_like(self.u)
        self.before: tuple[Tensor, Tensor] | None = None

    def __call__(self, z: Tensor, image: Tensor) -> Tensor:
        point, g = z.flatten(1), (image - z).flatten(1)
        if self.before is not None:
            s, y = point - self.before[0], g - self.before[1]
            v = torch.einsum("bnd,bn->bd", self.v, torch.einsum("bnd,bd->bn", self.u, s)) - s
            missing = s - self._times(y)
            scale = (v * y).sum(dim=1, keepdim=True)
            u = torch.where(scale.abs() > torch.finfo(z.dtype).tiny, missing / scale, 0.0)
            place = self.seen % self.memory
            self.u[:, place], self.v[:, place] = u.nan_to_num(0, 0, 0), v
            self.seen += 1
        self.before = point, g
        return (point - self._times(g)).view_as(z)

    def _times(self, y: Tensor) -> Tensor:
        """H y."""
        return torch.einsum("bnd,bn->bd", self.u, torch.einsum("bnd,bd->bn", self.v, y)) - y


def _residual(z: Tensor, image: Tensor) -> Float[Tensor, " B"]:
    error = (image - z).flatten(1).norm(dim=1)
    return torch.where(error == 0, 0.0, error / image.flatten(1).norm(dim=1))


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (a.ndim - 1)), a, b)


def jacobian_penalty(f: Map, z: Tensor) -> Float[Tensor, ""]:
    """An estimate of ‖∂f/∂z‖² (Frobenius) over the numbers of z, by one random vector.

    Source: Bai, Koltun and Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization",
    arXiv:2106.14342, eq. 5.
    """
    point = z.detach().requires_grad_()
    image = f(point)
    (turned,) = torch.autograd.grad(image, point, torch.randn_like(image), create_graph=True)
    return turned.square().mean()
