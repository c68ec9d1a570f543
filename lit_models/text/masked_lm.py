"""Masked language modelling: an encoder learns to fill in words that are hidden from it.

Devlin et al., arXiv:1810.04805. A batch is {"tokens", "token_types", "labels": [B, T], "lengths":
[B]}, or packed {… [1, N], "ptr": [B + 1]}, see `TextEncoder`; labels are the words behind hidden
tokens, and IGNORED at all others. Shapes: M hidden tokens of a batch, V words, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.text.encoder import NORM_EPSILON, TextEncoder, initialise_as_bert
from lit_models.text.tasks import IGNORED, TextBatch


class MaskedLMHead(nn.Module):
    """BERT's: linear, GELU, LayerNorm, and the inner product with every word's embedding."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        initialise_as_bert(self, width)

    def forward(self, x: Float[Tensor, "M W"], words: Float[Tensor, "V W"]) -> Float[Tensor, "M V"]:
        return F.linear(self.norm(F.gelu(self.dense(x))), words, self.bias)


class MaskedLM(nn.Module):
    """Encoder and head, its output tied to the encoder's embedding: a batch to logits [M, V]."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.encoder = encoder
        self.head = MaskedLMHead(encoder.width, encoder.vocabulary)

    def forward(self, batch: TextBatch) -> Float[Tensor, "M V"]:
        features = encode(self.encoder, batch)
        return self.head(features[batch["labels"] != IGNORED], self.encoder.words.weight)


def encode(encoder: TextEncoder, batch: TextBatch) -> Float[Tensor, "R T W"]:
    """The features of a batch's tokens."""
    return encoder(batch["tokens"], batch["token_types"], batch.get("lengths"), batch.get("ptr"))
