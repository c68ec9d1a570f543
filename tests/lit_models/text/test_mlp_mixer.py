"""MLP-Mixer's token mixing against whole rows of zeros behind every sentence."""

import torch
from torch.nn import functional as F

from lit_models.layers.sentences import Sentences
from lit_models.text.mlp_mixer import TokenMixing


def test_what_is_behind_a_sentence_counts_as_zero():
    mixing, sentences = TokenMixing(8, 5), Sentences((6, 2, 4))
    x = torch.randn(12, 3)
    rows = sentences.pad(x, 8).mT
    expected = mixing.leave(F.gelu(mixing.enter(rows))).mT
    torch.testing.assert_close(mixing(x, sentences), sentences.unpad(expected))
