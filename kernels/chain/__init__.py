"""The resolvent product on directed chains, and sums of it along decaying ones."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.backends import Backend, choose_backend
from kernels.chain.matrix import chain_matrix
from kernels.chain.torch_backend.any_weights import AnyWeights
from kernels.chain.torch_backend.layout import entries, lay_out
from kernels.chain.torch_backend.mild_decays import CHUNK, MildDecays, strong_heads
from kernels.precision import in_float32

__all__ = ["ChainPlan", "DecayingChain", "chain_matrix", "chain_resolvent", "decaying_chains"]


@dataclass(frozen=True)
class ChainPlan:
    """The chains of a batch: one per graph, over its nodes in order.

    Attributes:
        sizes: nodes of each chain.
        reverse: edges run i + 1 → i instead of i → i + 1.
    """

    sizes: tuple[int, ...]
    reverse: bool = False


def chain_resolvent(
    weight: Float[Tensor, "N H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    plan: ChainPlan | None = None,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "N H P"]:
    """Mix node values along chains: y_i = ⟨C_i, h_i⟩, h_i = w_i h_{i−1} + B_i ⊗ v_i per head.

    Equals `kernels.resolvent` on the chain's edges, in linear time. Weights may have any sign and
    may be zero: products are formed directly, without logarithms or divisions. Inputs below float32
    are computed in float32 and the result is returned in V's dtype. Gradients flow to weight, B, C
    and V.

    Args:
        weight: [N, H] weight of the edge that enters each node, dimensionless; not read at the
            first node of a chain.
        B: [N, S] input projection of every node, shared by the heads.
        C: [N, S] output projection of every node, shared by the heads.
        V: [N, H, P] values per head.
        plan: the chains of a batch and their direction; None for one chain 0 → 1 → … → N − 1.
            A zero weight also ends a chain, but lets a NaN through.
        chunk: most nodes of one chunk of the torch backend; None takes 64, or 32 where
            S · P < 2048.
        backend: `triton`, `torch` or `auto`, see `kernels.resolvent`.

    Returns:
        [N, H, P] mixed values.

    Raises:
        ValueError: shapes, plan, chunk or backend do not fit.

    Source: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, section 6; a chain is Chimera's
    simplest graph, Lahoti et al., arXiv:2510.12111.
    """
    nodes = V.shape[0]
    plan = ChainPlan((nodes,)) if plan is None else plan
    backend = choose_backend(backend, (weight, B, C, V), chunk is None, "chains without chunk")
    if chunk is None:
        chunk = 64 if B.shape[-1] * V.shape[-1] >= 2048 else 32
    if weight.shape != V.shape[:2] or B.shape != C.shape or B.shape[0] != nodes:
        raise ValueError(
            f"With V of shape {list(V.shape)}, weight must be {list(V.shape[:2])} and B and C both "
            f"[{nodes}, state], got {list(weight.shape)}, {list(B.shape)} and {list(C.shape)}."
        )
    if sum(plan.sizes) != nodes or chunk < 1:
        raise ValueError(
            f"The plan's chains hold {sum(plan.sizes)} nodes and chunks {chunk}, but V has {nodes} "
            "nodes: give the sizes of the batch's own chains, and chunks of at least 1 node."
        )
    if not V.numel():
        return torch.zeros_like(V)
    if backend == "triton":
        from kernels.chain import triton_backend  # where there is Triton

        return triton_backend.chain_product(weight, B, C, V, plan.sizes, plan.reverse)
    layout = lay_out(plan.sizes, plan.reverse, chunk, V.device)
    return in_float32(lambda *t: AnyWeights.apply(*t, layout), weight, B, C, V)


class DecayingChain(NamedTuple):
    """One way along a batch's chains.

    Attributes:
        log_weight: [N, H], natural logarithm of the weight of the edge that enters each node; not
            read at the first node of a chain.
        scale: [N, H] factor of a node's values, such as the step Δ.
        B, C: [N, S] input and output projection of every node, shared by the heads.
        reverse: edges run i + 1 → i instead of i → i + 1.
    """

    log_weight: Float[Tensor, "N H"]
    scale: Float[Tensor, "N H"]
    B: Float[Tensor, "N S"]
    C: Float[Tensor, "N S"]
    reverse: bool = False

    def mix(
        self, V: Float[Tensor, "N H P"], sizes: tuple[int, ...], backend: Backend
    ) -> Float[Tensor, "N H P"]:
        """`chain_resolvent` of this chain, whatever its weights."""
        return chain_resolvent(
            self.log_weight.exp(),
            self.B,
            self.C,
            V * self.scale.unsqueeze(-1),
            plan=ChainPlan(sizes, self.reverse),
            backend=backend,
        )


def decaying_chains(
    chains: Sequence[DecayingChain],
    V: Float[Tensor, "N H P"],
    skip: Float[Tensor, "N H"] | None = None,
    *,
    sizes: tuple[int, ...] | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "N H P"]:
    """skip · V and the sum of `chain_resolvent`s of weights exp(log_weight) and values scale · V.

    On a CPU it is faster than those in heads whose weights are mild: at most 1, and none of their
    products over 33 neighbours below 1e-25. Other heads take `chain_resolvent`. The gradient of
    log_weight is a difference of sums over a chunk's nodes, and as exact as those.

    Args:
        chains: what is summed, over the same nodes in either direction.
        V: [N, H, P] values per head.
        skip: [N, H] what a node's values add beside the chains; None for nothing.
        sizes: nodes of each chain of the batch; None for one chain.
        backend: as in `chain_resolvent`.

    Returns:
        [N, H, P] mixed values, in V's dtype.

    Raises:
        ValueError: as `chain_resolvent`.
    """
    sizes = (V.shape[0],) if sizes is None else sizes
    inputs = (V, *itertools.chain.from_iterable(chain[:4] for chain in chains))
    on_triton = choose_backend(backend, inputs, True, "chains") == "triton"
    fits = sum(sizes) == len(V) and all(
        chain.log_weight.shape == V.shape[:2]
        and chain.B.shape == chain.C.shape
        and len(chain.B) == len(V)
        for chain in chains
    )
    if on_triton or not fits or not V.numel():
        return _sum_of_any(chains, V, skip, sizes, backend)
    # In the order of nodes, whichever way a chain runs.
    layout = lay_out(sizes, False, CHUNK, V.device)
    # What would enter a chain, so that nothing reads it.
    chains = [
        chain._replace(
            log_weight=chain.log_weight.index_fill(0, entries(sizes, chain.reverse, V.device), 0)
        )
        for chain in chains
    ]
    strong = [
        strong_heads(chain.log_weight, chain.reverse, layout).nonzero()[:, 0] for chain in chains
    ]
    if all(len(heads) == V.shape[1] for heads in strong):
        return _sum_of_any(chains, V, skip, sizes, backend)
    mild = [
        tensor
        for (log_weight, scale, B, C, _), heads in zip(chains, strong, strict=True)
        for tensor in (log_weight.index_fill(1, heads, 0), scale.index_fill(1, heads, 0), B, C)
    ]
    reverse = [chain.reverse for chain in chains]
    skip = V.new_zeros(V.shape[:2]) if skip is None else skip

    def mix(*inputs: Tensor) -> Tensor:
        y, *values = MildDecays.apply(layout, reverse, strong, *inputs)
        for chain, heads, v in zip(chains, strong, values, strict=True):
            if len(heads):
                log_weight, scale = (x.index_select(1, heads) for x in chain[:2])
                part = chain._replace(log_weight=log_weight, scale=scale)
                y.index_add_(1, heads, part.mix(v, sizes, backend))
        return y

    return in_float32(mix, *mild, skip, V)


def _sum_of_any(
    chains: Sequence[DecayingChain],
    V: Tensor,
    skip: Tensor | None,
    sizes: tuple[int, ...],
    backend: Backend,
) -> Tensor:
    mixed = [chain.mix(V, sizes, backend) for chain in chains]
    total = sum(mixed if skip is None else [V * skip.unsqueeze(-1), *mixed])
    assert isinstance(total, Tensor)  # of one chain at least
    return total
