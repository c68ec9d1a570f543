"""Other ways to the resolvent, to be measured against; each takes the tensors of `resolvent`.

Shapes: G graphs, n nodes of the largest, N nodes, E edges, H heads, S state, P head dimension.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from kernels.resolvent.chain import ChainPlan
from kernels.resolvent.neumann import neumann_form
from kernels.resolvent.ragged import Ragged

DOUBLING_TERMS = 64


def padded_inverse_float64(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """The released way: the inverse of every padded matrix, dense, in float64.

    One matrix at a time on a CPU, where torch's batched LAPACK calls hang or corrupt above 128 rows
    once the number of threads has been set.
    """
    batch = Ragged(ptr, V.shape[0], stacked=False)
    (stack,) = batch.stacks
    A_GHnn = _adjacency(batch, edge_index, edge_weight.double())
    M_KnN = (torch.eye(stack.nodes, dtype=A_GHnn.dtype, device=V.device) - A_GHnn).flatten(0, 1)
    if V.device.type == "cpu":
        L_Knn = torch.stack([torch.linalg.inv(M) for M in M_KnN])
    else:
        L_Knn = torch.linalg.inv(M_KnN)
    C_GnS, B_GnS, V_GnHP = (stack.of(batch.padded(x).double()) for x in (C, B, V))
    kernel_Gnn = C_GnS @ B_GnS.mT
    masked_GHnn = L_Knn.view_as(A_GHnn) * kernel_Gnn[:, None]
    V_GHnP = V_GnHP.transpose(1, 2)
    Y_GnHP = (masked_GHnn @ V_GHnP).transpose(1, 2)
    return batch.unpadded(Y_GnHP.flatten(0, 1)).to(V.dtype)


def inverse_each(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """The inverse of every graph by itself, dense, without padding, in the inputs' own dtype."""
    edges = torch.bincount(torch.bucketize(edge_index[0], ptr[1:], right=True), minlength=len(ptr))
    parts = []
    sizes = ptr.diff().tolist()
    first = 0
    for number, (start, size) in enumerate(zip(ptr[:-1].tolist(), sizes, strict=True)):
        # The edges of a batch stand graph by graph, as torch-geometric lays them out.
        last = first + int(edges[number])
        graph = Ragged(ptr.new_tensor([0, size]), size)
        A_Hnn = _adjacency(graph, edge_index[:, first:last] - start, edge_weight[first:last])[0]
        eye = torch.eye(size, dtype=V.dtype, device=V.device)
        L_Hnn = torch.stack([torch.linalg.inv(eye - A) for A in A_Hnn])
        nodes = slice(start, start + size)
        masked_Hnn = L_Hnn * (C[nodes] @ B[nodes].T)
        parts.append((masked_Hnn @ V[nodes].transpose(0, 1)).transpose(0, 1))
        first = last
    return torch.cat(parts)


def doubling(
    edge_index: Tensor, edge_weight: Tensor, B: Tensor, C: Tensor, V: Tensor, ptr: Tensor
) -> Tensor:
    """The paper's relaxation with 64 terms, which is not exact on graphs with cycles."""
    batch = Ragged(ptr, V.shape[0])
    return neumann_form(edge_index, edge_weight, B, C, V, batch=batch, terms=DOUBLING_TERMS)


def ssd_minimal(
    edge_index: Tensor,
    edge_weight: Tensor,
    B: Tensor,
    C: Tensor,
    V: Tensor,
    ptr: Tensor,
    plan: ChainPlan,
    block: int,
) -> Tensor:
    """mamba-ssm's pure-torch listing of SSD, on chains of equal length with positive weights."""
    chains, length = len(plan.sizes), plan.sizes[0]
    weight = plan.weights(edge_index, edge_weight)
    weight, B, C, V = (x.unflatten(0, (chains, length)) for x in (weight, B, C, V))
    # Nothing enters the first node of a chain, where the weight is 0 and its logarithm is not.
    log_weight = torch.cat([torch.zeros_like(weight[:, :1]), weight[:, 1:].log()], dim=1)
    Y = _ssd_minimal_discrete()(V, log_weight, B.unsqueeze(2), C.unsqueeze(2), block)[0]
    return Y.flatten(0, 1)


@functools.cache
def _ssd_minimal_discrete() -> Callable:
    """By its file alone, for mamba-ssm's own __init__ asks for a CUDA extension.

    Raises:
        ModuleNotFoundError: mamba-ssm is not installed.
    """
    package = importlib.util.find_spec("mamba_ssm")
    if package is None:
        raise ModuleNotFoundError("mamba-ssm is not installed: make benchmark does that.")
    path = Path(package.origin).parent / "modules" / "ssd_minimal.py"
    spec = importlib.util.spec_from_file_location("ssd_minimal", path)
    module = importlib.util.module_from_spec(spec)
    unused = "mamba_ssm.ops.triton.ssd_combined"
    parts = unused.split(".")
    names = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in names}):
        spec.loader.exec_module(module)
    return module.ssd_minimal_discrete


def _adjacency(batch: Ragged, edge_index: Tensor, weight_EH: Tensor) -> Tensor:
    """A [G, H, n, n] of a batch in one stack, with A[target, source] = weight."""
    (stack,) = batch.stacks
    A_H = batch.adjacency(edge_index, weight_EH)
    return A_H.unflatten(1, (stack.graphs, stack.nodes, stack.nodes)).transpose(0, 1)
