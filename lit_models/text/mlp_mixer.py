"""MLP-Mixer on text: an MLP over the tokens in the place of attention.

Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", arXiv:2105.01601.
Shapes: N tokens of all sentences without padding, B sentences padded to T tokens, W width.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.layers.sentences import Sentences
from lit_models.text.encoder import FeedForward, TextEncoder


class TokenMixing(nn.Module):
    """A two-layer MLP along the positions of a sentence, the same for every channel.

    Positions behind a sentence count as zero, so padding changes nothing; but a weight belongs to
    absolute positions, and those of late ones learn from long sentences alone.

    Args:
        max_length: positions that it has weights for.
        hidden: of the MLP.
    """

    def __init__(self, max_length: int, hidden: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(max_length, hidden), nn.Linear(hidden, max_length)

    def forward(self, x: Float[Tensor, "N W"], sentences: Sentences) -> Float[Tensor, "N W"]:
        rows = sentences.pad(x).mT
        most = rows.shape[-1]  # of the zeros up to max_length none needs to be multiplied
        hidden = F.gelu(F.linear(rows, self.enter.weight[:, :most], self.enter.bias))
        out = F.linear(hidden, self.leave.weight[:most], self.leave.bias[:most])
        return sentences.unpad(out.mT)


class MLPMixerText(TextEncoder):
    """BERT with `TokenMixing` for attention; post-normalised as BERT, so that mixing alone differs.

    Args:
        vocabulary: number of tokens.
        width: W.
        layers: each a token mixing and a feed-forward network.
        token_hidden: of the token mixing.
        hidden: of the feed-forward network.
        max_length: most tokens of a sentence.
        dropout: probability, on the embedding and behind every mixing and feed-forward network.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        width: int = 768,
        layers: int = 17,
        token_hidden: int = 384,
        hidden: int = 3072,
        max_length: int = 512,
        dropout: float = 0.1,
    ):
        parts = (
            part
            for _ in range(layers)
            for part in (TokenMixing(max_length, token_hidden), FeedForward(width, hidden))
        )
        super().__init__(
            parts,
            vocabulary=vocabulary,
            width=width,
            dropout=dropout,
            max_length=max_length,
        )
