"""The resolvent product on DAGs of two-dimensional grids: on one, and the sum of those of corners.

Shapes: G images, R rows, K columns, H heads, S state, P head dimension, D DAGs.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.backends import Backend, choose_backend, log_choice, uncompiled
from kernels.grid.torch_backend import row_form, state_form
from kernels.precision import in_float32

__all__ = ["CORNERS", "GridDag", "grid_dags", "grid_resolvent"]

Form = Literal["auto", "row", "state"]
MOST_COLUMNS_ON_GPU = 64  # of a grid, whose rows Triton's kernels keep in registers
STATES_FROM = 768  # nodes; measured on 2 CPU cores, forward and backward
MOST_IN_ROWS = 400, 32  # nodes and columns of a grid whose L Triton's kernels form

CORNERS = {"top left": (), "top right": (2,), "bottom left": (1,), "bottom right": (1, 2)}
"""Which dimensions of [G, R, K, …] to flip so that a corner becomes the top left one."""


def grid_resolvent(
    left: Float[Tensor, "G R K H"],
    top: Float[Tensor, "G R K H"],
    B: Float[Tensor, "G R K S"],
    C: Float[Tensor, "G R K S"],
    V: Float[Tensor, "G R K H P"],
    *,
    form: Form = "auto",
    backend: Backend = "auto",
) -> Float[Tensor, "G R K H P"]:
    """Mix values along all paths of a grid that run right and down, from the top left corner on.

    Equals `kernels.resolvent` on the grid's edges. With R_r the chain matrix of row r, the rows of
    L obey L_r = R_r (diag(top_r) L_{r−1} + E_r): either they are formed and masked by C Bᵀ, or the
    S × P states obey the same recurrence. Weights may have any sign. Gradients flow to all five
    inputs, once.

    Args:
        left: weight of the edge that enters a node from its left; not read in the first column.
        top: weight of the edge that enters a node from above; not read in the first row.
        B, C: input and output projection of every node, shared by the heads.
        V: values per head.
        form: `row` carries rows of L, n numbers a node; `state` carries states, S · P numbers a
            node; `auto` takes the one with fewer numbers, and `row` on grids of up to 768 nodes,
            where its larger matrix products make it the faster one on a CPU; Triton's kernels know
            the state form alone.
        backend: `triton`, `torch` or `auto`, see `kernels.resolvent`.

    Returns:
        [G, R, K, H, P] mixed values, in V's dtype; computed in float32 at least.

    Raises:
        ValueError: shapes, form or backend do not fit.

    Source: Lahoti et al., arXiv:2510.12111, vision experiments.
    """
    if {left.shape, top.shape} != {V.shape[:4]} or {B.shape[:3], C.shape[:3]} != {V.shape[:3]}:
        raise ValueError(
            f"With V of shape {list(V.shape)}, left and top must be {list(V.shape[:4])} and B and "
            f"C {list(V.shape[:3])} and a state, got {list(left.shape)}, {list(top.shape)}, "
            f"{list(B.shape)} and {list(C.shape)}."
        )
    if B.shape != C.shape:
        raise ValueError(f"B and C must be alike, got {list(B.shape)} and {list(C.shape)}.")
    if form not in ("auto", "row", "state"):
        raise ValueError(f"form must be 'auto', 'row' or 'state', got {form!r}.")
    inputs = (left, top, B, C, V)
    able = form != "row" and V.shape[2] <= MOST_COLUMNS_ON_GPU
    knows = f"grids of up to {MOST_COLUMNS_ON_GPU} columns by their states"
    backend = choose_backend(backend, inputs, able, knows)
    if not V.numel():
        return torch.zeros_like(V)
    if backend == "triton":
        from kernels.grid import triton_backend  # where there is Triton

        return triton_backend.grid_product(*inputs)
    nodes, states = V.shape[1] * V.shape[2], B.shape[-1] * V.shape[-1]
    if form == "auto":
        form = "state" if nodes > max(states, STATES_FROM) else "row"
    return in_float32(row_form if form == "row" else state_form, *inputs)


class GridDag(NamedTuple):
    """One DAG of a batch of grids, in the images' own orientation.

    Attributes:
        left: weight of the edge that enters a node along its row, from the side of the root; not
            read in the first column seen from there.
        top: weight of the edge that enters a node along its column, from the side of the root; not
            read in the first row seen from there.
        scale: factor of a node's values, such as the step Δ.
        B, C: input and output projection of every node, shared by the heads.
        root: one of `CORNERS`, from which edges lead away.
    """

    left: Float[Tensor, "G R K H"]
    top: Float[Tensor, "G R K H"]
    scale: Float[Tensor, "G R K H"]
    B: Float[Tensor, "G R K S"]
    C: Float[Tensor, "G R K S"]
    root: str = "top left"

    def mix(
        self, V: Float[Tensor, "G R K H P"], form: Form, backend: Backend
    ) -> Float[Tensor, "G R K H P"]:
        """`grid_resolvent` of this DAG."""
        dims = CORNERS[self.root]
        inputs = (self.left, self.top, self.B, self.C, V * self.scale.unsqueeze(-1))
        turned = (x.flip(dims) for x in inputs) if dims else inputs
        y = grid_resolvent(*turned, form=form, backend=backend)
        return y.flip(dims) if dims else y


def grid_dags(
    dags: Sequence[GridDag],
    V: Float[Tensor, "G R K H P"],
    skip: Float[Tensor, "G R K H"] | None = None,
    *,
    form: Form = "auto",
    backend: Backend = "auto",
) -> Float[Tensor, "G R K H P"]:
    """skip · V and the sum over DAGs of `grid_resolvent` with values scale · V.

    Below float64 all DAGs are worked on together on a CPU where numba is installed, and on a GPU by
    rows, which Triton's kernels know of grids of up to 400 nodes and 32 columns. Gradients flow to
    all tensors, once, and do not depend on the number of threads.

    Args:
        dags: what is summed, over the same grids from any corners. Those whose B and C are the same
            tensors share work.
        V: values per head, the same for all.
        skip: what a node's values add beside the DAGs; None for nothing.
        form: `row` carries rows of L: the sum of all DAGs' masked matrices, n numbers a node, is
            multiplied once by V; `state` carries states, S · P numbers a node and DAG; `auto` takes
            the one that is expected to be faster. Where the DAGs are mixed one by one, as in
            `grid_resolvent`.
        backend: as in `grid_resolvent`.

    Returns:
        [G, R, K, H, P] mixed values, in V's dtype; computed in float32 at least.

    Raises:
        ValueError: shapes, a root, form or backend do not fit.

    Source: Lahoti et al., arXiv:2510.12111, vision experiments.
    """
    for dag in dags:
        _check(dag, V)
    if skip is not None and skip.shape != V.shape[:4]:
        raise ValueError(f"skip must be {list(V.shape[:4])} as V is, got {list(skip.shape)}.")
    if form not in ("auto", "row", "state"):
        raise ValueError(f"form must be 'auto', 'row' or 'state', got {form!r}.")
    inputs = (*itertools.chain.from_iterable(dag[:5] for dag in dags), V)
    by_rows = form != "state" and _has_row_kernels(dags, V)
    able = by_rows or (form != "row" and V.shape[2] <= MOST_COLUMNS_ON_GPU)
    knows = (
        f"grids of up to {MOST_COLUMNS_ON_GPU} columns by their states, and of up to "
        f"{MOST_IN_ROWS[1]} columns and {MOST_IN_ROWS[0]} nodes, with a DAG from a corner, by rows"
    )
    backend = choose_backend(backend, inputs, able, knows)
    skip = V.new_zeros(V.shape[:4]) if skip is None else skip
    if not V.numel() or not dags:
        return V * skip.unsqueeze(-1)
    if backend == "triton" and by_rows:
        log_choice("grid_dags", backend, "one matrix a head", V.device.type)
        return _by_row_kernels(dags, V, skip)
    on_cpu = backend == "torch" and all(
        x.device.type == "cpu" and x.dtype != torch.float64 for x in (*inputs, skip)
    )
    if on_cpu and _has_numba():
        return _by_numba(dags, V, skip, form)
    log_choice("grid_dags", backend, "DAG by DAG", V.device.type)

    def mix(*inputs: Tensor) -> Tensor:
        *operands, skip, V = inputs
        total = V * skip.unsqueeze(-1)
        for i, dag in enumerate(dags):
            left, top, scale, B, C = operands[5 * i : 5 * i + 5]
            total = total + GridDag(left, top, scale, B, C, dag.root).mix(V, form, backend)
        return total

    given = (*inputs[:-1], skip, V)
    return mix(*given) if backend == "triton" else in_float32(mix, *given)


@functools.cache
def _has_numba() -> bool:
    try:
        import kernels.grid.numba_backend  # noqa: F401  not installed on every machine
    except ImportError:
        return False
    return True


@uncompiled
def _by_numba(dags: Sequence[GridDag], V: Tensor, skip: Tensor, form: Form) -> Tensor:
    from kernels.grid import numba_backend  # where there is numba

    if form == "auto":
        form = numba_backend.faster_form(len(dags), V, dags[0].B.shape[-1])
    log_choice("grid_dags", "torch", f"{form} form by numba", "cpu")
    # Those of several DAGs once.
    groups = list({(id(dag.B), id(dag.C)): dag for dag in dags}.values())
    of_dags = [
        next(i for i, other in enumerate(groups) if dag.B is other.B and dag.C is other.C)
        for dag in dags
    ]
    computed = numba_backend.RowForm if form == "row" else numba_backend.StateForm
    ways = numba_backend.Ways([dag.root for dag in dags], of_dags)
    weights = [*(x.left for x in dags), *(x.top for x in dags), *(x.scale for x in dags)]
    tensors = [*weights, *(x.B for x in groups), *(x.C for x in groups)]
    return in_float32(lambda *x: computed.apply(ways, *x[-2:], *x[:-2]), *tensors, skip, V)


def _check(dag: GridDag, V: Tensor) -> None:
    if dag.root not in CORNERS:
        raise ValueError(f"root must be one of {', '.join(CORNERS)}, got {dag.root!r}.")
    shapes = [list(x.shape) for x in dag[:5]]
    nodes, heads = list(V.shape[:3]), list(V.shape[:4])
    fits = shapes[:3] == [heads] * 3 and shapes[3] == shapes[4] and shapes[3][:-1] == nodes
    if not fits:
        raise ValueError(
            f"With V of shape {list(V.shape)}, left, top and scale must be {heads} and B and C "
            f"both {nodes} and a state, got {', '.join(map(str, shapes[:4]))} and {shapes[4]}."
        )


def _has_row_kernels(dags: Sequence[GridDag], V: Tensor) -> bool:
    most_nodes, most_columns = MOST_IN_ROWS
    _, rows, columns, _, _ = V.shape
    small = rows * columns <= most_nodes and columns <= most_columns
    return small and len({dag.root for dag in dags}) == len(dags)


def _by_row_kernels(dags: Sequence[GridDag], V: Tensor, skip: Tensor) -> Tensor:
    """DAGs that share B and C have one product C Bᵀ."""
    from kernels.grid import triton_backend  # where there is Triton

    shared: list[GridDag] = []
    sets = []
    for dag in dags:
        same = [i for i, it in enumerate(shared) if it.B is dag.B and it.C is dag.C]
        sets.append(same[0] if same else len(shared))
        shared += [] if same else [dag]
    left, top, scale = (torch.stack(x) for x in list(zip(*dags, strict=True))[:3])
    B, C = (torch.stack(x) for x in list(zip(*shared, strict=True))[3:5])
    corners = [list(CORNERS).index(dag.root) for dag in dags]
    return triton_backend.grid_rows(left, top, scale, B, C, skip, V, corners, sets)
