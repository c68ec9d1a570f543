"""Filling in hidden words: the tied head, and that an encoder learns it."""

import math

import pytest
import torch

from lit_models.text.masked_lm import MaskedLM, MaskedLMHead
from lit_models.text.tasks import IGNORED, MaskedLanguageModelling
from tests.lit_models.text.fabricated import (
    ENCODERS,
    VOCABULARY,
    language_model,
    packed,
    padded,
    sentences_of,
)

HIDDEN = 0  # the token that stands for a hidden one
encoders = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)


def hide(batch, places):
    """Hide the tokens at these (row, place)."""
    labels = torch.full_like(batch["tokens"], IGNORED)
    for at in places:
        labels[at] = batch["tokens"][at]
        batch["tokens"][at] = HIDDEN
    return batch | {"labels": labels}


@encoders
def test_padded_or_packed_the_logits_are_the_same(make):
    sentences = sentences_of((5, 9, 7))
    net = MaskedLM(make())
    logits = net(hide(padded(sentences), [(0, 1), (0, 4), (2, 3)]))
    assert logits.shape == (3, VOCABULARY)
    same = net(hide(packed(sentences), [(0, 1), (0, 4), (0, 14 + 3)]))
    torch.testing.assert_close(same, logits, rtol=0, atol=1e-5)


def test_the_output_is_tied_to_the_embedding():
    encoder = ENCODERS["chimera"]()
    net = MaskedLM(encoder)
    assert sum(p.shape == encoder.words.weight.shape for p in net.parameters()) == 1
    batch = hide(padded(sentences_of((5,))), [(0, 2)])
    before = net(batch)
    never_read = next(w for w in range(VOCABULARY) if w not in batch["tokens"])
    with torch.no_grad():
        encoder.words.weight[never_read] += torch.randn(encoder.width)
    changed = (net(batch) - before)[0].abs() > 1e-6
    assert changed.nonzero().flatten().tolist() == [never_read]


def test_the_head_by_hand():
    head, x, words = MaskedLMHead(6, 9), torch.randn(4, 6), torch.randn(9, 6)
    torch.nn.init.normal_(head.bias)
    h = x @ head.dense.weight.T + head.dense.bias
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    h = (h - h.mean(1, keepdim=True)) / h.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(head(x, words), h @ words.T + head.bias, rtol=1e-4, atol=1e-4)


def test_a_batch_has_as_many_samples_as_sentences():
    task, sentences = MaskedLanguageModelling(VOCABULARY), sentences_of((3, 5))
    assert task.samples(padded(sentences)) == task.samples(packed(sentences)) == 2


@encoders
def test_it_learns_that_a_hidden_word_is_what_the_others_are(make):
    model = language_model(make)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    chance, losses = math.log(VOCABULARY - 1), []
    for _ in range(120):
        words = torch.randint(1, VOCABULARY, (16, 1)).expand(16, 6)
        batch = padded([(row, torch.zeros_like(row)) for row in words])
        batch = hide(batch, [(row, int(torch.randint(6, ()))) for row in range(16)])
        loss = model.training_loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(chance, abs=0.5)
    assert sum(losses[-10:]) / 10 < chance / 2
