"""Y = ((I − A)⁻¹ ⊙ C Bᵀ) V on a GPU by every node's S × P state; without cycles, a scan of the DAG.

The states are X = (I − A)⁻¹ (B ⊗ V), the outputs Y_i = Σ_s C_is X_is. With the adjoint states
Z = (I − A)⁻ᵀ (C ⊗ dY) the gradients are dV_i = Σ_s B_is Z_is, dB_is = ⟨Z_is, V_i⟩,
dC_is = ⟨X_is, dY_i⟩ and, on an edge from j to i, dA = ⟨Z_i, X_j⟩.

Shapes: N nodes, E edges, H heads, S state, P head dimension; s of the S states at a time.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from kernels.autograd import differentiate_by
from kernels.launch import cdiv, launch, next_power_of_2
from kernels.resolvent.schedule import Schedule
from kernels.resolvent.triton_backend.factors import factorise, solve_states_
from kernels.resolvent.triton_backend.row import edge_products

MOST_NUMBERS = 2**28  # of the states that are held at once
MOST_OF_A_NODE = 2**13  # for a program of `contract_kernel`, which holds a node's states


def state_form(
    edge_index: Int[Tensor, "2 E"],
    edge_weight: Float[Tensor, "E H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    schedule: Schedule,
) -> Float[Tensor, "N H P"]:
    """As `torch_backend.state_form`, in V's dtype, accumulated in float32."""
    sizes = [int(number) for number in schedule[1:]]
    return _state(edge_weight, B, C, V, edge_index, schedule.table, sizes)[0]


@torch.library.custom_op("resolvent::state", mutates_args=())
def _state(
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    edge_index: Tensor,
    table: Tensor,
    sizes: list[int],
) -> tuple[Tensor, Tensor]:
    """Y, and the factors for the backward pass."""
    schedule = Schedule(table, *sizes)
    values = factorise(weight, schedule)
    Y = torch.zeros(V.shape, dtype=torch.float32, device=V.device)
    for states in _parts(B, V):
        X = _solution(values, schedule, B[:, states], V, transposed=False)
        Y += _contract(X, C[:, states], None)[0]
    return Y.to(V.dtype), values


@_state.register_fake
def _(weight, B, C, V, edge_index, table, sizes):
    values = V.new_empty(V.shape[1], Schedule(table, *sizes).slots, dtype=torch.float32)
    return torch.empty_like(V, memory_format=torch.contiguous_format), values


@torch.library.custom_op("resolvent::state_backward", mutates_args=())
def _state_backward(
    dY: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    edge_index: Tensor,
    table: Tensor,
    values: Tensor,
    sizes: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    schedule = Schedule(table, *sizes)
    dB, dC, dV, d_weight = (
        torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (B, C, V, weight)
    )
    for states in _parts(B, V):
        X = _solution(values, schedule, B[:, states], V, transposed=False)
        Z = _solution(values, schedule, C[:, states], dY, transposed=True)
        dC[:, states] = _contract(X, None, dY)[1].sum(0)
        read, of_heads = _contract(Z, B[:, states], V)
        dB[:, states] = of_heads.sum(0)
        dV += read
        width = X.shape[2] * X.shape[3]
        d_weight += edge_products(Z, X, edge_index, schedule, width=width)
    return d_weight.to(weight.dtype), dB.to(B.dtype), dC.to(C.dtype), dV.to(V.dtype)


differentiate_by(_state, _state_backward, gradients=4)


def _parts(B: Tensor, V: Tensor) -> list[slice]:
    """Parts of the states whose solutions fit into memory, and into a program."""
    states = B.shape[1]
    of_a_node = MOST_OF_A_NODE // next_power_of_2(max(1, V.shape[2]))
    step = max(1, min(of_a_node, MOST_NUMBERS // max(1, V.numel())))
    return [slice(first, min(first + step, states)) for first in range(0, states, step)]


def _solution(
    values: Tensor, schedule: Schedule, left_Ns: Tensor, right_NHP: Tensor, transposed: bool
) -> Tensor:
    """(I − A)⁻¹ or (I − A)⁻ᵀ times the outer products left ⊗ right: [H, N, s, P] in float32."""
    right_HNP = right_NHP.transpose(0, 1).float().contiguous()
    X_HNsP = left_Ns.float()[:, :, None] * right_HNP[:, :, None]
    solve_states_(X_HNsP.flatten(2), values, schedule, transposed)
    return X_HNsP


def _contract(X_HNsP: Tensor, by_Ns: Tensor | None, by_NHP: Tensor | None) -> tuple[Tensor, Tensor]:
    """(Σ_s by_Ns X [N, H, P], Σ_p by_NHP X [H, N, s]) in float32; unwritten without that `by`."""
    heads, nodes, states, P = X_HNsP.shape
    over_states = X_HNsP.new_empty(nodes, heads, P)
    over_values = X_HNsP.new_empty(heads, nodes, states)
    rows, columns = next_power_of_2(states), next_power_of_2(P)
    some = max(1, 4096 // (rows * columns))
    launch(
        contract_kernel,
        (cdiv(nodes, some), heads),
        *(X_HNsP, X_HNsP if by_Ns is None else by_Ns.contiguous()),
        *(X_HNsP if by_NHP is None else by_NHP.contiguous(), over_states, over_values),
        *(nodes, heads, states, P),
        OVER_STATES=by_Ns is not None,
        OVER_VALUES=by_NHP is not None,
        NODES=some,
        STATES=rows,
        COLUMNS=columns,
    )
    return over_states, over_values


@triton.jit(do_not_specialize=["nodes"])
@no_type_check
def contract_kernel(
    X,
    by_states,
    by_values,
    over_states,
    over_values,
    nodes,
    heads,
    states,
    P,
    OVER_STATES: tl.constexpr,
    OVER_VALUES: tl.constexpr,
    NODES: tl.constexpr,
    STATES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program takes NODES nodes and one head; X is read once for both sums."""
    head = tl.program_id(1)
    node = tl.program_id(0) * NODES + tl.arange(0, NODES)
    s, p = tl.arange(0, STATES), tl.arange(0, COLUMNS)
    of_states = (node < nodes)[:, None] & (s < states)[None, :]
    of_values = (node < nodes)[:, None] & (p < P)[None, :]
    at_state = node[:, None] * states + s[None, :]
    at_value = (node[:, None].to(tl.int64) * heads + head) * P + p[None, :]
    row = (head.to(tl.int64) * nodes + node)[:, None] * states + s[None, :]
    at = X + row[:, :, None] * P + p[None, None, :]
    x = tl.load(at, mask=of_states[:, :, None] & of_values[:, None, :], other=0.0)
    if OVER_STATES:
        by = tl.load(by_states + at_state, mask=of_states, other=0.0).to(tl.float32)
        tl.store(over_states + at_value, tl.sum(by[:, :, None] * x, axis=1), mask=of_values)
    if OVER_VALUES:
        by = tl.load(by_values + at_value, mask=of_values, other=0.0).to(tl.float32)
        tl.store(over_values + row, tl.sum(by[:, None, :] * x, axis=2), mask=of_states)
