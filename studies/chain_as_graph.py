"""Sentences mixed as chains, and as graphs of which nobody says that they are chains.

Source: Lahoti et al., "Chimera: State Space Models Beyond Sequences", arXiv:2510.12111: a
sequence is its line graph.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.resolvent import ChainPlan, resolvent
from lit_models.chimera_text import ChimeraTextMixer, TwoChains
from lit_models.layers.sentences import Sentences


class LineGraphMixer(ChimeraTextMixer):
    """`ChimeraTextMixer` by the resolvent of any graph, on the edges i → i + 1 and i + 1 → i."""

    def mix(
        self, v: Float[Tensor, "N H P"], chains: TwoChains, plan: ChainPlan
    ) -> Float[Tensor, "N H P"]:
        ptr = torch.tensor([0, *plan.sizes]).cumsum(0)
        node = torch.arange(int(ptr[-1]))
        left = node[~torch.isin(node, ptr[1:] - 1)]
        right_edges = torch.stack([left, left + 1])
        y = v * self.D.unsqueeze(-1)
        for edges, *tensors in zip((right_edges, right_edges.flip(0)), *chains, strict=True):
            weight, B, C, V = tensors
            y = y + resolvent(edges, weight[edges[1]], B, C, V, ptr=ptr)
        return y


def measure(
    width: int, state: int, head_dim: int, sizes: Sequence[int], *, seed: int
) -> dict[str, dict[str, float]]:
    """How far a layer on chains is from the same layer on graphs, in float32.

    Args:
        width, state, head_dim: of the layer, see `ChimeraTextMixer`.
        sizes: tokens of each sentence.
        seed: of weights, inputs and cotangent.

    Returns:
        {"test": {"output": …, "gradient": …}}: the largest difference over the largest number of
        the output, and of the gradient of the input or of the parameter where that is largest.
    """
    torch.manual_seed(seed)
    mixers = [kind(width, state, head_dim=head_dim) for kind in (ChimeraTextMixer, LineGraphMixer)]
    mixers[1].load_state_dict(mixers[0].state_dict())
    x, cotangent = torch.randn(2, sum(sizes), width)
    results = []
    for mixer in mixers:
        given = x.clone().requires_grad_()
        y = mixer(given, Sentences(tuple(sizes)))
        gradients = torch.autograd.grad(y, [given, *mixer.parameters()], cotangent)
        results.append([y.detach(), *gradients])
    far = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]
    return {"test": {"output": far[0], "gradient": max(far[1:])}}
