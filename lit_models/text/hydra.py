"""Hydra on text: the quasi-separable mixer, two shifted chains and a diagonal that sees its input.

Hwang, Lahoti, Dao, Gu, "Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers",
arXiv:2407.09941. Shapes as in `lit_models.text.chimera`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.chain import DecayingChain, decaying_chains
from lit_models.layers.chain_mixer import ChainMixer
from lit_models.layers.sentences import Sentences
from lit_models.text.chimera import ChimeraText


class QuasiseparableMixer(ChainMixer):
    """y = shift(left to right) + shift(right to left) + (D + δ(x)) x, all else as in Chimera.

    A shift moves a chain's outputs one token on, so that a token sees each neighbour's state once
    and itself by the diagonal alone, of which δ is linear in the token's values.

    Args: as `ChainMixer`.

    Source: arXiv:2407.09941, section 3.2, and its released code.
    """

    def __init__(self, width: int, state: int = 64, **options):
        super().__init__(width, state, **options)
        self.diagonal = nn.Linear(self.mixed_sizes[0], self.heads, bias=False)

    def mix(
        self, v: Float[Tensor, "N H P"], chains: Sequence[DecayingChain], sizes: tuple[int, ...]
    ) -> Float[Tensor, "N H P"]:
        there, back = (decaying_chains([chain], v, sizes=sizes) for chain in chains)
        firsts = Sentences(sizes).firsts
        lasts = [first - 1 for first in (*firsts[1:], len(v))]
        there = there.roll(1, 0).index_fill(0, torch.tensor(firsts, device=v.device), 0)
        back = back.roll(-1, 0).index_fill(0, torch.tensor(lasts, device=v.device), 0)
        return there + back + v * (self.D + self.diagonal(v.flatten(1))).unsqueeze(-1)


class HydraText(ChimeraText):
    """Quasi-separable mixing layers alone, post-normalised; no positional embedding is needed.

    Args: as `ChimeraText`.
    """

    mixer = QuasiseparableMixer
