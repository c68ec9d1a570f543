"""A bag of words: what every token learns of its sentence is a mean, in which order is lost.

The lower bound of mixers that know no order, such as BERT without positions. It is the invariant
network of Zaheer et al., "Deep Sets", arXiv:1703.06114, in BERT's shell. Shapes: N tokens of all
sentences without padding, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_models.layers.sentences import Sentences
from lit_models.text.encoder import FeedForward, TextEncoder


class MeanMixing(nn.Module):
    """To every token the same linear map of the mean of its sentence's tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N W"], sentences: Sentences) -> Float[Tensor, "N W"]:
        sizes = torch.tensor(sentences.sizes, device=x.device)
        means = torch.segment_reduce(x, "mean", lengths=sizes)
        return self.linear(means).repeat_interleave(sizes, dim=0, output_size=len(x))


class BagOfWords(TextEncoder):
    """BERT with `MeanMixing` for attention and without positions.

    Args:
        vocabulary: number of tokens.
        width: W.
        layers: each a mean mixing and a feed-forward network.
        hidden: of the feed-forward network.
        dropout: probability, on the embedding and behind every mixing and feed-forward network.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        width: int = 768,
        layers: int = 12,
        hidden: int = 4352,
        dropout: float = 0.1,
    ):
        super().__init__(
            (
                part
                for _ in range(layers)
                for part in (MeanMixing(width), FeedForward(width, hidden))
            ),
            vocabulary=vocabulary,
            width=width,
            dropout=dropout,
        )
