"""What all encoders of text share: from tokens to one vector a token, padded or packed.

Shapes: R rows of T tokens; N tokens of all B sentences without padding; W width.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_models.layers.initialisation import weight_scale
from lit_models.layers.sentences import Sentences

NORM_EPSILON = 1e-12  # BERT's
TOKEN_TYPES = 2  # first or second sentence of a pair


class TextEncoder(nn.Module):
    """Maps tokens to features: an embedding, then blocks one after the other.

    A sentence has the same features whatever stands beside it in the batch.

    Args:
        parts: each maps [N, W] and the batch's `Sentences` to [N, W]; a block is one of them in
            `PostNorm`.
        vocabulary: number of tokens.
        width: W.
        dropout: probability, on the embedding and behind every part.
        max_length: most tokens of a sentence, each position with an embedding of its own; None for
            no positional embedding, and any length.
    """

    def __init__(
        self,
        parts: Iterable[nn.Module],
        *,
        vocabulary: int,
        width: int,
        dropout: float,
        max_length: int | None = None,
    ):
        super().__init__()
        self.vocabulary, self.width, self.max_length = vocabulary, width, max_length
        self.embedding = TextEmbedding(vocabulary, width, dropout, max_length)
        self.blocks = nn.ModuleList(PostNorm(width, dropout, part) for part in parts)
        initialise_as_bert(self, width)

    @property
    def words(self) -> nn.Embedding:
        """The embedding of tokens, to which a language model's output is tied."""
        return self.embedding.words

    def forward(
        self,
        tokens: Int[Tensor, "R T"],
        token_types: Int[Tensor, "R T"],
        lengths: Int[Tensor, " B"] | None = None,
        ptr: Int[Tensor, " B1"] | None = None,
    ) -> Float[Tensor, "R T W"]:
        """The features of every token.

        Args:
            tokens: [B, T] with `lengths`, or [1, N] with `ptr`, sentences one after the other.
            token_types: 0, or 1 in the second sentence of a pair.
            lengths: [B] tokens of each sentence; those behind are padding.
            ptr: [B + 1] first token of each sentence, and N.

        Returns:
            Features, zero for padding.

        Raises:
            ValueError: lengths or ptr do not fit, or a sentence is longer than `max_length`.
        """
        sentences = Sentences.of(tokens, lengths, ptr)
        if self.max_length is not None and max(sentences.sizes) > self.max_length:
            raise ValueError(
                f"A sentence has {max(sentences.sizes)} tokens, but this encoder takes at most "
                f"{self.max_length}: cut it, or raise max_length."
            )
        if ptr is not None:
            return self.encode(tokens[0], token_types[0], sentences).unsqueeze(0)
        features = self.encode(sentences.unpad(tokens), sentences.unpad(token_types), sentences)
        return sentences.pad(features, tokens.shape[1])

    def encode(
        self, tokens: Int[Tensor, " N"], token_types: Int[Tensor, " N"], sentences: Sentences
    ) -> Float[Tensor, "N W"]:
        """The features of all tokens without padding."""
        x = self.embedding(tokens, token_types, sentences)
        for block in self.blocks:
            x = block(x, sentences)
        return x


class TextEmbedding(nn.Module):
    """LayerNorm of the sum of a token's, its type's and, up to `max_length`, its position's."""

    def __init__(self, vocabulary: int, width: int, dropout: float, max_length: int | None):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.types = nn.Embedding(TOKEN_TYPES, width)
        self.positions = nn.Embedding(max_length, width) if max_length else None
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Int[Tensor, " N"], token_types: Int[Tensor, " N"], sentences: Sentences
    ) -> Float[Tensor, "N W"]:
        x = self.words(tokens) + self.types(token_types)
        if self.positions is not None:
            x = x + torch.cat([self.positions.weight[:size] for size in sentences.sizes])
        return self.dropout(self.norm(x))


class PostNorm(nn.Module):
    """LayerNorm(x + dropout(f(x)))."""

    def __init__(self, width: int, dropout: float, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, x: Float[Tensor, "N W"], sentences: Sentences) -> Float[Tensor, "N W"]:
        return self.norm(x + self.dropout(self.inner(x, sentences)))


class FeedForward(nn.Module):
    """BERT's two-layer MLP on every token."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Float[Tensor, "N W"], sentences: Sentences) -> Float[Tensor, "N W"]:
        return self.layers(x)


def initialise_as_bert(net: nn.Module, width: int) -> None:
    """Weights of linear layers and embeddings normal with `weight_scale`, biases zero."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=weight_scale(width))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
