"""State-space mixing along sequences in both directions: the undirected line, which is two chains.

Lahoti, Marwah, Puduppully, Gu, "Chimera: State Space Models Beyond Sequences", arXiv:2510.12111.
Shapes: N tokens of all sentences without padding, W width, H heads, P head dimension, S state size.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.chain import DecayingChain, decaying_chains
from lit_models.layers.delta import delta_bias_init
from lit_models.layers.gated_norm import gated_norm
from lit_models.layers.sentences import DepthwiseConv, Sentences


class ChainMixer(nn.Module):
    """One mixing layer along sentences, both ways, [N, W] → [N, W].

    An input is projected to a gate z, x, B and C of each direction, and Δ of each direction; x, B
    and C pass through a depthwise convolution and SiLU. An edge weighs exp(−e^{A_log} Δ) and a
    value is Δ x, so that B̄ = Δ B; then out = W · (RMSNorm(y_left_to_right + y_right_to_left +
    D x) ⊙ SiLU(z)). A_log, the bias of Δ and D are of a head, for both directions.

    Args:
        width: W.
        state: S.
        head_dim: P, which divides the inner width.
        expand: inner width over W.
        kernel: tokens that the convolution sees, an odd number.
        delta_range: Δ starts log-uniform in this interval, for inputs of zero.

    Raises:
        ValueError: `head_dim` does not divide the inner width, or `kernel` is even.
    """

    def __init__(
        self,
        width: int,
        state: int = 64,
        *,
        head_dim: int = 64,
        expand: int = 2,
        kernel: int = 7,
        delta_range: Sequence[float] = (1e-3, 1e-1),
    ):
        super().__init__()
        inner = expand * width
        if inner % head_dim:
            raise ValueError(f"Expected a head_dim that divides {inner}, got {head_dim}.")
        self.heads = inner // head_dim
        self.sizes = [inner, inner + 4 * state, 2 * self.heads]
        self.mixed_sizes = [inner, *[state] * 4]
        self.in_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.conv = DepthwiseConv(inner + 4 * state, kernel)
        self.delta_bias = nn.Parameter(delta_bias_init(1, self.heads, delta_range)[0])
        self.log_decay = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "N W"], sentences: Sentences) -> Float[Tensor, "N W"]:
        z, v, chains = self._projected(x, sentences)
        y = self.mix(v, chains, sentences.sizes).flatten(1)
        return F.linear(gated_norm(y, z), self.out_proj.weight * self.norm_weight)

    def mix(
        self, v: Float[Tensor, "N H P"], chains: Sequence[DecayingChain], sizes: tuple[int, ...]
    ) -> Float[Tensor, "N H P"]:
        """The sum of both chains, and D v."""
        return decaying_chains(chains, v, self.D.expand(v.shape[:2]), sizes=sizes)

    def operands(self, x: Float[Tensor, "N W"], sentences: Sentences) -> Sequence[DecayingChain]:
        """What the resolvent would get, left to right and right to left, for looking at."""
        return self._projected(x, sentences)[-1]

    def _projected(
        self, x: Tensor, sentences: Sentences
    ) -> tuple[Tensor, Tensor, Sequence[DecayingChain]]:
        """Gate z, values v, and what the chains mix."""
        # Product by product: the gradient of a part need not be copied into that of a whole.
        z, given, raw = (F.linear(x, part) for part in self.in_proj.weight.split(self.sizes))
        given = F.silu(self.conv(given, sentences))
        v, B, B_back, C, C_back = given.split(self.mixed_sizes, dim=-1)
        v = v.unflatten(-1, (self.heads, -1))
        # float32: the slow modes would be lost first.
        delta, delta_back = F.softplus(
            raw.float().unflatten(-1, (2, self.heads)) + self.delta_bias
        ).unbind(1)
        rate = -self.log_decay.exp()
        there = DecayingChain(rate * delta, delta, B, C)
        back = DecayingChain(rate * delta_back, delta_back, B_back, C_back, reverse=True)
        return z, v, (there, back)
