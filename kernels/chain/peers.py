"""Other ways along chains, to be measured against; each takes the tensors of `chain_resolvent`.

Shapes: N nodes, H heads, S state, P head dimension.
"""

import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor

from kernels.chain import ChainPlan


def ssd_minimal(
    weight: Tensor, B: Tensor, C: Tensor, V: Tensor, plan: ChainPlan, block: int
) -> Tensor:
    """mamba-ssm's pure-torch listing of SSD, on chains of equal length with positive weights."""
    weight, B, C, V = _sequences(plan, weight, B, C, V)
    # Nothing enters the first node of a chain, where the weight is 0 and its logarithm is not.
    log_weight = torch.cat([torch.zeros_like(weight[:, :1]), weight[:, 1:].log()], dim=1)
    listing = mamba_module("modules.ssd_minimal").ssd_minimal_discrete
    Y = listing(V, log_weight, B.unsqueeze(2), C.unsqueeze(2), block)[0]
    return Y.flatten(0, 1)


def mamba_chunk_scan(
    weight: Tensor, B: Tensor, C: Tensor, V: Tensor, plan: ChainPlan, chunk: int
) -> Tensor:
    """mamba-ssm's Triton kernels of SSD, on chains of equal length with weights between 0 and 1."""
    weight, B, C, V = _sequences(plan, weight, B, C, V)
    scan = mamba_module("ops.triton.ssd_combined").mamba_chunk_scan_combined
    # Its step Δ both decays the state and scales the input. Nothing enters the first node.
    delta = torch.cat([torch.ones_like(weight[:, :1]), -weight[:, 1:].log()], dim=1)
    rate = -torch.ones(V.shape[2], device=V.device)
    values = (V / delta.unsqueeze(-1)).to(V.dtype)
    return scan(values, delta, rate, B.unsqueeze(2), C.unsqueeze(2), chunk).flatten(0, 1)


def simple_gla(weight: Tensor, B: Tensor, C: Tensor, V: Tensor, plan: ChainPlan) -> Tensor:
    """flash-linear-attention's Triton kernels of attention with one decay a head, likewise.

    They share no projections among heads: B and C are copied for each.
    """
    # Installed for benchmarks on a GPU alone.
    from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

    weight, B, C, V = _sequences(plan, weight, B, C, V)
    log_weight = torch.cat([torch.zeros_like(weight[:, :1]), weight[:, 1:].log()], dim=1)
    of_heads = (x.unsqueeze(2).expand(-1, -1, V.shape[2], -1).contiguous() for x in (C, B))
    return chunk_simple_gla(*of_heads, V, g=log_weight.float(), scale=1.0)[0].flatten(0, 1)


def _sequences(plan: ChainPlan, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Each as [chains, length, …]."""
    shape = (len(plan.sizes), plan.sizes[0])
    return tuple(x.unflatten(0, shape) for x in tensors)


def mamba_module(module: str) -> ModuleType:
    """A module of mamba-ssm without the package's own __init__, which asks for a CUDA extension.

    Raises:
        ModuleNotFoundError: mamba-ssm is not installed.
    """
    if "mamba_ssm" not in sys.modules:
        found = importlib.util.find_spec("mamba_ssm")
        if found is None:
            raise ModuleNotFoundError("mamba-ssm is not installed: make benchmark does that.")
        package = ModuleType("mamba_ssm")
        package.__spec__ = found
        package.__path__ = found.submodule_search_locations or []
        sys.modules["mamba_ssm"] = package
    return importlib.import_module(f"mamba_ssm.{module}")
