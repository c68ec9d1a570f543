"""Chimera on text by the resolvent of any graph, which is told a sentence's edges alone.

It gives what `lit_models.text.chimera` gives, slower; made to hold the two against each other.
Shapes: N tokens of all sentences without padding, H heads, P head dimension.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.chain import DecayingChain
from kernels.resolvent import resolvent
from lit_models.layers.chain_mixer import ChainMixer
from lit_models.text.chimera import ChimeraText


class LineGraphMixer(ChainMixer):
    """`ChainMixer` on the edges i → i + 1, and on the edges i + 1 → i, of every sentence."""

    def mix(
        self, v: Float[Tensor, "N H P"], chains: Sequence[DecayingChain], sizes: tuple[int, ...]
    ) -> Float[Tensor, "N H P"]:
        ptr = torch.tensor([0, *sizes]).cumsum(0)
        node = torch.arange(int(ptr[-1]))
        left = node[~torch.isin(node, ptr[1:] - 1)]
        to_the_right = torch.stack([left, left + 1])
        y = v * self.D.unsqueeze(-1)
        for chain in chains:
            edges = to_the_right.flip(0) if chain.reverse else to_the_right
            V = v * chain.scale.unsqueeze(-1)
            weight = chain.log_weight[edges[1]].exp()
            y = y + resolvent(edges, weight, chain.B, chain.C, V, ptr=ptr)
        return y


class LineGraphText(ChimeraText):
    """`ChimeraText` of such layers."""

    mixer: ClassVar[type[ChainMixer]] = LineGraphMixer
