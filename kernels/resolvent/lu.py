"""Sparse LU of I − A for all graphs and heads at once, and solves with it.

Shapes: H heads, N nodes, W columns, G graphs of n nodes in a stack. Values are laid out by a
`Plan`: [Z + N, H]. I − A = L D U with unit triangles; kept are L, U and D⁻¹.
"""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.resolvent.plan import Plan, Sweep

log = logging.getLogger(__name__)

RESIDUAL_LIMIT = 1e-3
SCALINGS = 128
"""Steps of the search for a scaling of the unknowns with which I − A is dominant."""


class LU:
    """The factors of I − A and how well to solve with them.

    Args:
        plan: of the graphs.
        weight_EH: [E, H] edge weights.
        refine: steps of iterative refinement after every solve; 0 asks for diagonal dominance
            instead, by columns, by rows or after a diagonal scaling, with which elimination without
            pivoting is stable.

    Raises:
        ValueError: refine is 0 and I − A of some graph has cycles and is not dominant.

    Source: Funderlic, Neumann and Plemmons, "LU decompositions of generalized diagonally dominant
    matrices", Numer. Math. 40 (1982) 57.
    """

    def __init__(self, plan: Plan, weight_EH: Tensor, refine: int):
        self.plan, self.refine = plan, refine
        values = _assemble(plan, weight_EH)
        self._matrix = _for_sweeps(values) if refine else None
        if not refine and values.device.type == "cpu":
            _require_stability(plan, values)
        values = _factorise(plan, values)
        values[: plan.num_entries].neg_()  # a sweep adds, a solve subtracts
        self._factors = _for_sweeps(values)

    def solve_(
        self,
        X: Float[Tensor, "R W"],
        transposed: bool,
        head: int | None = None,
        stack: int | None = None,
    ) -> None:
        """(I − A)⁻¹ X or (I − A)⁻ᵀ X in the place of X.

        Args:
            X: right side, a row per node, or per row of one stack of padded graphs.
            transposed: solve with (I − A)ᵀ.
            head: whose A; None for all heads, with the rows of one after those of the other.
            stack: which one; None for all nodes.

        Raises:
            ValueError: after refinement the residual is above `RESIDUAL_LIMIT` of the right side.
        """
        if not self.refine:
            self._solve_(X, transposed, head, stack)
            return
        right = X.clone()
        self._solve_(X, transposed, head, stack)
        for _ in range(self.refine):
            correction = self._residual(right, X, transposed, head, stack)
            self._solve_(correction, transposed, head, stack)
            X += correction
        worst = self._residual(right, X, transposed, head, stack).abs().amax()
        relative = float(worst / right.abs().amax().clamp(min=1e-30))
        log.info("resolvent: residual %.1e after %d steps of refinement", relative, self.refine)
        if not relative <= RESIDUAL_LIMIT:
            raise ValueError(
                f"The residual is {relative:.1e} after {self.refine} steps of refinement: I − A is "
                "singular or nearly so, scale the edge weights down."
            )

    def _solve_(self, X: Tensor, transposed: bool, head: int | None, stack: int | None) -> None:
        for half in ("upper", "lower") if transposed else ("lower", "upper"):
            sweep = self.plan.sweep(half, transposed, stack is not None, self._heads(head))
            _sweep_(X, self._factors[head], sweep, stack or 0)  # [None]: all heads

    def _residual(
        self, right: Tensor, X: Tensor, transposed: bool, head: int | None, stack: int | None
    ) -> Tensor:
        """right − (I − A) X."""
        assert self._matrix is not None  # kept where there is refinement
        product = X.clone()
        sweep = self.plan.product(transposed, stack is not None, self._heads(head))
        _sweep_(product, self._matrix[head], sweep, stack or 0)
        return right - product

    def _heads(self, head: int | None) -> int:
        return len(self._factors) if head is None else 1


def _assemble(plan: Plan, weight_EH: Tensor) -> Tensor:
    """The values of I − A; repeated edges add up, fill-in is zero."""
    heads = weight_EH.shape[1]
    values = weight_EH.new_zeros(plan.num_entries + plan.num_nodes, heads)
    values[plan.num_entries :] = 1
    return _add_rows_(values, plan.edge_value, -weight_EH)


def _factorise(plan: Plan, values: Tensor) -> Tensor:
    for lower, pivot, left, right, target in plan.rounds:
        values[lower] /= values.index_select(0, pivot)
        if len(target):
            product = values.index_select(0, left) * values.index_select(0, right)
            _add_rows_(values, target, -product)
    diagonal = values[plan.num_entries :].reciprocal_()
    values[plan.lowers : plan.num_entries] *= diagonal.index_select(0, plan.row[plan.lowers :])
    return values


def _for_sweeps(values: Tensor) -> Tensor:
    """[heads, values and a 1], as sweeps take their weights."""
    return torch.cat([values, values.new_ones(1, values.shape[1])]).T.contiguous()


def _sweep_(X: Tensor, values: Tensor, sweep: Sweep, stack: int) -> None:
    """Every level's rows become weighted sums of rows that are done, in place."""
    weights = values.flatten().index_select(0, sweep.take)
    for terms, index, offset, rows in sweep.levels[stack]:
        sums = torch.embedding_bag(X, index, offset, False, 0, False, weights[terms], True)[0]
        X.index_copy_(0, rows, sums)


def _add_rows_(X: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """X[index] += rows; on a CPU many times faster than index_add_ where rows are short."""
    return X.scatter_add_(0, index[:, None].expand_as(rows), rows)


def _require_stability(plan: Plan, values: Tensor) -> None:
    """No zero on the diagonal of a triangle, else dominance by columns, rows or after a scaling.

    A scaling s > 0 of the unknowns with |m_ii| s_i > Σ_j |m_ij| s_j is searched by Jacobi's
    iteration for (|D| − |O|) s = 1, D the diagonal and O the rest.
    """
    diagonal = values[plan.num_entries :].abs()
    off = values[: plan.num_entries].abs()
    stable = diagonal.new_zeros(len(plan.ptr) - 1, diagonal.shape[1], dtype=torch.bool)

    def summed(line: Tensor, terms: Tensor) -> Tensor:
        total = torch.zeros_like(diagonal)
        return total if plan.triangular else _add_rows_(total, line, terms)

    def is_stable(total: Tensor, limit: Tensor) -> bool:
        # NaN compares false: it is not this check's business.
        failing = torch.zeros_like(stable, dtype=torch.int32)
        _add_rows_(failing, plan.graph, ((total >= limit) | (diagonal == 0)).int())
        stable.logical_or_(failing == 0)
        return bool(stable.all())

    if is_stable(summed(plan.col, off), diagonal) or is_stable(summed(plan.row, off), diagonal):
        return
    scale = diagonal.reciprocal()
    for _ in range(0 if plan.triangular else SCALINGS):
        total = summed(plan.row, off * scale.index_select(0, plan.col))
        if is_stable(total, diagonal * scale):
            return
        scale = (1 + total) / diagonal
    graph, head = (~stable).nonzero()[0].tolist()
    wrong = "is singular"
    if not plan.triangular:
        wrong += " or not diagonally dominant, not even after a scaling"
    raise ValueError(
        f"I − A of graph {graph}, head {head} {wrong}: scale the edge weights so that the "
        "absolute weights leaving every node sum to less than 1, or pass refine=2 to have the "
        "residual checked instead; for a graph without cycles mode='dag' is enough."
    )
