"""BERT, of `transformers`, and BERT that convolves what attention compares.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
arXiv:1810.04805. Shapes: N tokens of all sentences without padding, B sentences padded to T
tokens, W width.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention

from lit_models.layers.initialisation import weight_scale
from lit_models.layers.sentences import DepthwiseConv, Sentences
from lit_models.text.encoder import TOKEN_TYPES, TextEncoder


class Bert(TextEncoder):
    """`transformers.BertModel` without its pooler; attention never sees padding.

    Args:
        vocabulary: number of tokens.
        width: W, a multiple of `heads`.
        layers: number of layers.
        heads: of the attention.
        hidden: of the feed-forward network.
        max_length: most tokens of a sentence, each position with an embedding of its own; None for
            none, and any length.
        kernel: tokens that a depthwise convolution of queries, keys and values sees, see
            `ConvolvedSelfAttention`; None for BERT as it is.
        dropout: probability, as BERT's, that on attention weights included.

    Raises:
        ValueError: `width` is no multiple of `heads`, or `kernel` is even.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        max_length: int | None = 512,
        kernel: int | None = None,
        dropout: float = 0.1,
    ):
        nn.Module.__init__(self)  # the embedding and the blocks are BertModel's
        self.vocabulary, self.width, self.max_length = vocabulary, width, max_length
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden,
            max_position_embeddings=max_length or 1,
            type_vocab_size=TOKEN_TYPES,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue] of every configuration
            initializer_range=weight_scale(width),
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        if kernel is not None:
            for layer in self.bert.encoder.layer:
                attention = cast(BertLayer, layer).attention
                mixer = cast(BertSelfAttention, attention.self)
                attention.register_module("self", ConvolvedSelfAttention(mixer, kernel))
        if max_length is None:
            self.bert.embeddings.register_module("position_embeddings", NoPositions())

    @property
    def words(self) -> nn.Embedding:
        return self.bert.embeddings.word_embeddings

    def encode(
        self, tokens: Int[Tensor, " N"], token_types: Int[Tensor, " N"], sentences: Sentences
    ) -> Float[Tensor, "N W"]:
        mask = sentences.pad(torch.ones_like(tokens))
        features = self.bert(
            input_ids=sentences.pad(tokens),
            token_type_ids=sentences.pad(token_types),
            attention_mask=mask,
            sentences=sentences,  # handed down to every layer's attention
        )
        return sentences.unpad(features.last_hidden_state)


class NoPositions(nn.Module):
    """Stands for an embedding that adds nothing."""

    def forward(self, positions: Tensor) -> float:
        return 0.0


class ConvolvedSelfAttention(nn.Module):
    """Queries, keys and values pass through a depthwise convolution before attention.

    It is the convolution that Chimera has, both ways along the sentence, without activation; it
    begins as the identity, so that training begins with BERT.

    Args:
        attention: whose projections are kept.
        kernel: tokens that the convolution sees, an odd number.

    Raises:
        ValueError: `kernel` is even.

    Source: as So et al., "Primer", arXiv:2109.08668, section 4, do to the left alone.
    """

    def __init__(self, attention: BertSelfAttention, kernel: int):
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.heads, self.dropout = attention.num_attention_heads, attention.dropout
        width = self.query.out_features
        convs = [DepthwiseConv(width, kernel) for _ in range(3)]
        for conv in convs:
            nn.init.dirac_(conv.weight, groups=width)
            nn.init.zeros_(cast(Tensor, conv.bias))
        self.convs = nn.ModuleList(convs)

    def forward(
        self,
        hidden_states: Float[Tensor, "B T W"],
        attention_mask: Tensor | None = None,
        *,
        sentences: Sentences,
        **others: Any,
    ) -> tuple[Float[Tensor, "B T W"], None]:
        x = sentences.unpad(hidden_states)
        value = self.convs[2](self.value(x), sentences)
        query, key, value = (
            sentences.pad(y, hidden_states.shape[1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (*self.queries_and_keys(x, sentences), value)
        )
        dropout = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout
        )
        return y.transpose(1, 2).flatten(2), None

    def queries_and_keys(
        self, x: Float[Tensor, "N W"], sentences: Sentences
    ) -> tuple[Float[Tensor, "N W"], Float[Tensor, "N W"]]:
        """What attention compares."""
        projections = zip((self.query, self.key), self.convs[:2], strict=True)
        query, key = (conv(project(x), sentences) for project, conv in projections)
        return query, key
