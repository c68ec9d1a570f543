"""Sparse LU of I − A for all graphs and heads at once, and solves with it.

Shapes: H heads, R rows a head (nodes, or slots of padded graphs), W columns. Values are laid out by
a `Plan`: [Z + N, H]. I − A = L D U with unit triangles; kept are L, U and D⁻¹.
"""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.resolvent.plan import Plan, Sweep

log = logging.getLogger(__name__)

RESIDUAL_LIMIT = 1e-3


class LU:
    """The factors of I − A and how well to solve with them.

    Args:
        plan: of the graphs.
        weight_EH: [E, H] edge weights.
        refine: steps of iterative refinement after every solve; 0 asks for diagonal dominance
            instead, with which elimination without pivoting is stable.

    Raises:
        ValueError: refine is 0 and I − A of some graph has cycles and is not dominant.
    """

    def __init__(self, plan: Plan, weight_EH: Tensor, refine: int):
        self.plan, self.refine = plan, refine
        values = _assemble(plan, weight_EH)
        self.matrix = values.clone() if refine else None  # to know what the solves leave over
        if not refine and values.device.type == "cpu":
            _require_stability(plan, values)
        self.values = _factorise(plan, values)

    def solve_(
        self, head: int, X: Float[Tensor, "R W"], transposed: bool, padded: bool
    ) -> Float[Tensor, "R W"]:
        """(I − A)⁻¹ X or (I − A)⁻ᵀ X of one head in the place of X.

        Raises:
            ValueError: after refinement the residual is above `RESIDUAL_LIMIT` of the right side.
        """
        if not self.refine:
            return self._solve_(head, X, transposed, padded)
        right = X.clone()
        self._solve_(head, X, transposed, padded)
        for _ in range(self.refine):
            residual = self._residual(head, right, X, transposed, padded)
            X += self._solve_(head, residual, transposed, padded)
        worst = self._residual(head, right, X, transposed, padded).abs().amax()
        relative = float(worst / right.abs().amax().clamp(min=1e-30))
        log.info("resolvent: residual %.1e after %d steps of refinement", relative, self.refine)
        if not relative <= RESIDUAL_LIMIT:
            raise ValueError(
                f"The residual is {relative:.1e} after {self.refine} steps of refinement: I − A is "
                "singular or nearly so, scale the edge weights down."
            )
        return X

    def _solve_(self, head: int, X: Tensor, transposed: bool, padded: bool) -> Tensor:
        first, second = ("upper", "lower") if transposed else ("lower", "upper")
        for half in (first, second):
            _sweep_(X, self.values[:, head], self.plan, self.plan.sweep(half, transposed, padded))
        return X

    def _residual(
        self, head: int, right: Tensor, X: Tensor, transposed: bool, padded: bool
    ) -> Tensor:
        """right − (I − A) X."""
        plan, values = self.plan, self.matrix[:, head].clone()
        values[: plan.num_entries].neg_()  # a sweep subtracts, a product adds
        return right - _sweep_(X.clone(), values, plan, plan.product(transposed, padded))


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


def _add_rows_(X: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """X[index] += rows; on a CPU many times faster than index_add_ where rows are short."""
    return X.scatter_add_(0, index[:, None].expand_as(rows), rows)


def _sweep_(X: Tensor, values: Tensor, plan: Plan, sweep: Sweep) -> Tensor:
    """Every level's rows become weighted sums of rows that are done, in place."""
    off, diagonal = values.tensor_split([plan.num_entries])
    weights = torch.cat([off.neg(), diagonal, values.new_ones(1)]).index_select(0, sweep.take)
    for terms, index, offset, rows in sweep.levels:
        sums = torch.embedding_bag(X, index, offset, False, 0, False, weights[terms], True)[0]
        X.index_copy_(0, rows, sums)
    return X


def _require_stability(plan: Plan, values: Tensor) -> None:
    """No zero on the diagonal of a triangle, else dominance by columns or by rows."""
    diagonal = values[plan.num_entries :].abs()
    off = values[: plan.num_entries].abs()
    stable = diagonal.new_zeros(len(plan.ptr) - 1, diagonal.shape[1], dtype=torch.bool)
    for line in (plan.col, plan.row):
        total = torch.zeros_like(diagonal)
        if not plan.triangular:
            _add_rows_(total, line, off)
        # NaN compares false: it is not this check's business.
        failing = torch.zeros_like(stable, dtype=torch.int32)
        _add_rows_(failing, plan.graph, (total >= diagonal).int())
        stable |= failing == 0
    if not stable.all():
        graph, head = (~stable).nonzero()[0].tolist()
        wrong = "is singular" if plan.triangular else "is singular or not diagonally dominant"
        raise ValueError(
            f"I − A of graph {graph}, head {head} {wrong}: scale the edge weights so that the "
            "absolute weights leaving every node sum to less than 1, or pass refine=2 to have the "
            "residual checked instead; for a graph without cycles mode='dag' is enough."
        )
