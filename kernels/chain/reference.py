"""The textbook: chains as graphs, whose resolvent is taken in float64."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.chain import ChainPlan
from kernels.resolvent import resolvent_reference


def chain_reference(
    weight: Float[Tensor, "N H"],
    B: Float[Tensor, "N S"],
    C: Float[Tensor, "N S"],
    V: Float[Tensor, "N H P"],
    *,
    plan: ChainPlan | None = None,
) -> Float[Tensor, "N H P"]:
    """Same arguments and result as `kernels.chain.chain_resolvent`, computed in float64."""
    plan = ChainPlan((len(V),)) if plan is None else plan
    ptr = torch.tensor([0, *plan.sizes]).cumsum(0)
    edges = chain_edges(ptr, plan.reverse).to(V.device)
    return resolvent_reference(edges, weight[edges[1]], B, C, V, ptr=ptr, terms=None)


def chain_edges(ptr: Int[Tensor, " G1"], reverse: bool) -> Int[Tensor, "2 E"]:
    """Source and target of every edge, chain after chain."""
    source = torch.cat([torch.arange(a, max(a, b - 1)) for a, b in pairwise(ptr.tolist())])
    edges = torch.stack([source, source + 1])
    return edges.flip(0) if reverse else edges
