"""Chimera on text by the resolvent of any graph, which is told a sentence's edges alone.

It gives what `lit_models.chimera_text` gives, slower; made to hold the two against each other.
Shapes: N tokens of all sentences without padding, H heads, P head dimension.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.resolvent import ChainPlan, resolvent
from lit_models.chimera_text import ChimeraText, ChimeraTextMixer, TwoChains


class LineGraphMixer(ChimeraTextMixer):
    """`ChimeraTextMixer` on the edges i → i + 1, and on the edges i + 1 → i, of every sentence."""

    def mix(
        self, v: Float[Tensor, "N H P"], chains: TwoChains, plan: ChainPlan
    ) -> Float[Tensor, "N H P"]:
        ptr = torch.tensor([0, *plan.sizes]).cumsum(0)
        node = torch.arange(int(ptr[-1]))
        left = node[~torch.isin(node, ptr[1:] - 1)]
        to_the_right = torch.stack([left, left + 1])
        y = v * self.D.unsqueeze(-1)
        both = (to_the_right, to_the_right.flip(0))
        for edges, chain in zip(both, chains.apart(), strict=True):
            log_weight, delta, B, C = chain
            V = v * delta.unsqueeze(-1)
            y = y + resolvent(edges, log_weight[edges[1]].exp(), B, C, V, ptr=ptr)
        return y


class LineGraphText(ChimeraText):
    """`ChimeraText` of such layers."""

    mixer: ClassVar[type[ChimeraTextMixer]] = LineGraphMixer
