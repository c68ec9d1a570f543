"""Chains as an op: reference, test inputs and peers."""

from collections.abc import Sequence
from functools import partial

import torch

from kernels.chain import ChainPlan, chain_resolvent, peers
from kernels.chain.reference import chain_reference
from kernels.resolvent.spec import make, path
from kernels.spec import Inputs, OpSpec


def chains(sizes: Sequence[int], dtype: torch.dtype, seed: int, **options) -> Inputs:
    """A batch of directed chains, whose weights are those that `make` gives such graphs."""
    graphs = make([(path, nodes) for nodes in sizes], dtype, seed, **options)
    into, given = graphs["edge_index"][1], graphs["edge_weight"]
    weight = given.new_zeros(sum(sizes), given.shape[1]).index_copy(0, into, given)
    nodes = {name: graphs[name] for name in ("B", "C", "V")}
    return {"weight": weight, "plan": ChainPlan(tuple(sizes))} | nodes


def flop_of_chains(B, V, **_) -> tuple[int, int]:
    """Of chunks of 64 nodes, with the states that pass between them."""
    (nodes, heads, P), S, Q = V.shape, B.shape[1], 64
    forward = 2 * Q * (S + P) + 4 * S * P
    backward = 2 * Q * (3 * S + 2 * P + Q) + 10 * S * P
    return nodes * heads * forward, nodes * heads * backward


CHAIN = OpSpec(
    name="chain",
    function=chain_resolvent,
    reference=chain_reference,
    differentiable=("weight", "B", "C", "V"),
    variants={"torch": {}},
    gpu_variants={"triton": {"backend": "triton"}},
    cases={
        **{f"chain of {n}": partial(chains, [n]) for n in (1, 2, 63, 64, 65, 444)},
        "chains": partial(chains, [5, 1, 70, 33, 5], signed=True),
        "slow decay": partial(chains, [100], margin=1e-2, scale=1e3),
    },
    benchmarks={
        **{
            f"1 chain of {n:,}": partial(chains, [n], heads=8, state=64, head_dim=64)
            for n in (1024, 4096, 16384)
        },
        "8 chains of 4,096": partial(chains, [4096] * 8, heads=4, state=16, head_dim=32),
    },
    peers={
        f"ssd_minimal, blocks of {n}": partial(peers.ssd_minimal, block=n) for n in (32, 64, 128)
    },
    gpu_peers={
        **{
            f"mamba-ssm, chunks of {n}": partial(peers.mamba_chunk_scan, chunk=n)
            for n in (64, 128, 256)
        },
        "flash-linear-attention": peers.simple_gla,
    },
    flop=flop_of_chains,
)
