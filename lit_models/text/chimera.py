"""Chimera on text: a state-space model on the undirected line, which is two chains.

Lahoti, Marwah, Puduppully, Gu, "Chimera: State Space Models Beyond Sequences", arXiv:2510.12111.
Shapes: N tokens of all sentences without padding, W width, H heads, P head dimension, S state size.
"""

from collections.abc import Sequence
from typing import ClassVar

from lit_models.layers.chain_mixer import ChainMixer
from lit_models.text.encoder import TextEncoder


class ChimeraText(TextEncoder):
    """Mixing layers alone, post-normalised; no positional embedding is needed.

    Args:
        vocabulary: number of tokens.
        width: W.
        layers: number of mixing layers.
        dropout: probability, on the embedding and behind every mixing layer.
        state, head_dim, expand, kernel, delta_range: of every layer, see `ChainMixer`.
        max_length: most tokens of a sentence, each position with an embedding of its own; None for
            none, and any length.

    Raises:
        ValueError: as `ChainMixer`.
    """

    mixer: ClassVar[type[ChainMixer]] = ChainMixer

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        width: int = 768,
        layers: int = 23,
        state: int = 64,
        head_dim: int = 64,
        expand: int = 2,
        kernel: int = 7,
        delta_range: Sequence[float] = (1e-3, 1e-1),
        max_length: int | None = None,
        dropout: float = 0.1,
    ):
        sizes = {"head_dim": head_dim, "expand": expand, "kernel": kernel}
        super().__init__(
            (self.mixer(width, state, **sizes, delta_range=delta_range) for _ in range(layers)),
            vocabulary=vocabulary,
            width=width,
            dropout=dropout,
            max_length=max_length,
        )
