"""What tests, ahead-of-time checks and benchmarks must know of an op, declared once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
"""Keyword arguments of an op."""


@dataclass(frozen=True)
class OpSpec:
    """One op.

    Attributes:
        name: of the op and of its folder.
        function: the public function.
        reference: the same in float64, as the textbook has it; takes the inputs of a case.
        differentiable: names of the inputs that have a gradient, where they are given.
        variants: every backend or form that is to be tested, as options of `function`.
        gpu_variants: likewise of the kernels for a GPU, which tests interpret where there is none.
        cases: inputs by name, made for a dtype from a seed.
        benchmarks: inputs of real size by name, likewise.
        peers: other ways to the same result by name; they take the inputs of a case.
        gpu_peers: likewise, on a GPU alone.
        flop: of a forward pass of the kernels on some inputs, and of a backward pass.
    """

    name: str
    function: Callable
    reference: Callable
    differentiable: tuple[str, ...]
    variants: Mapping[str, dict[str, Any]]
    gpu_variants: Mapping[str, dict[str, Any]]
    cases: Mapping[str, Callable[[torch.dtype, int], Inputs]]
    benchmarks: Mapping[str, Callable[[torch.dtype, int], Inputs]]
    peers: Mapping[str, Callable]
    gpu_peers: Mapping[str, Callable]
    flop: Callable[..., tuple[int, int]]

    def leaves(self, inputs: Inputs) -> dict[str, Tensor]:
        """The given inputs that have a gradient, as leaves to differentiate by."""
        given = {name: inputs[name] for name in self.differentiable if name in inputs}
        return {name: x.detach().requires_grad_() for name, x in given.items()}
