"""FNet: a Fourier transform in the place of attention.

Lee-Thorp, Ainslie, Eckstein, Ontañón, "FNet: Mixing Tokens with Fourier Transforms",
arXiv:2105.03824. Shapes: N tokens of all sentences without padding, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_models.layers.sentences import Sentences
from lit_models.text.encoder import FeedForward, TextEncoder


class FourierMixing(nn.Module):
    """The real part of the Fourier transform over a sentence's tokens and their channels.

    The transform is of the sentence's own length. The paper's runs over the padding too, so that a
    sentence's features depend on what it was batched with; in return frequencies are there the
    same for all sentences, here multiples of one over the sentence's length.
    """

    def forward(self, x: Float[Tensor, "N W"], sentences: Sentences) -> Float[Tensor, "N W"]:
        with torch.autocast(x.device.type, enabled=False):  # no transform of bfloat16
            parts = x.float().split(sentences.sizes)
            lengths = dict.fromkeys(sentences.sizes)
            mixed = {
                n: iter(torch.fft.fft2(torch.stack([p for p in parts if len(p) == n])).real)
                for n in lengths
            }
            return torch.cat([next(mixed[n]) for n in sentences.sizes])


class FNet(TextEncoder):
    """BERT with `FourierMixing` for attention.

    Args:
        vocabulary: number of tokens.
        width: W.
        layers: each a Fourier mixing and a feed-forward network.
        hidden: of the feed-forward network.
        max_length: most tokens of a sentence, for the positional embedding.
        dropout: probability, on the embedding and behind every mixing and feed-forward network.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        width: int = 768,
        layers: int = 18,
        hidden: int = 3072,
        max_length: int = 512,
        dropout: float = 0.1,
    ):
        super().__init__(
            (part for _ in range(layers) for part in (FourierMixing(), FeedForward(width, hidden))),
            vocabulary=vocabulary,
            width=width,
            dropout=dropout,
            max_length=max_length,
        )
