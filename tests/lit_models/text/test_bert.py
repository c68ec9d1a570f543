"""BERT is that of transformers; its convolved version begins as BERT."""

import pytest
import torch

from lit_models.text.bert import Bert
from tests.lit_models.text.fabricated import ENCODERS, VOCABULARY, padded, sentences_of


def test_it_is_transformers_own():
    net, batch = ENCODERS["bert"](), padded(sentences_of((9, 4)))
    mask = torch.arange(9) < batch["lengths"][:, None]
    expected = net.bert(
        input_ids=batch["tokens"], token_type_ids=batch["token_types"], attention_mask=mask.long()
    ).last_hidden_state
    torch.testing.assert_close(net(**batch)[mask], expected[mask])


def test_convolutions_begin_as_the_identity():
    plain, batch = ENCODERS["bert"](), padded(sentences_of((9, 4)))
    convolved = Bert(
        vocabulary=VOCABULARY,
        width=16,
        layers=2,
        heads=2,
        hidden=32,
        max_length=24,
        kernel=7,
        dropout=0.0,
    )
    missing, unexpected = convolved.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".convs." in name for name in missing)
    assert len(missing) == 2 * 3 * 2  # layers, projections, weight and bias
    torch.testing.assert_close(convolved(**batch), plain(**batch))


def test_a_convolution_sees_three_tokens_to_either_side():
    attention = ENCODERS["bert, convolved"]().bert.encoder.layer[0].attention.self
    assert all(conv.weight.shape == (16, 1, 7) for conv in attention.convs)


@pytest.mark.parametrize(("name", "alike"), [("bert, no positions", True), ("bert", False)])
def test_without_positions_a_permutation_permutes(name, alike):
    net, (sentence,) = ENCODERS[name](), sentences_of((9,))
    order = torch.randperm(9)
    there = net(**padded([sentence]))[0, order]
    permuted = net(**padded([tuple(x[order] for x in sentence)]))[0]
    assert ((there - permuted).abs().max() < 1e-5) == alike


def test_without_positions_there_are_no_parameters_for_them():
    names = dict(ENCODERS["bert, no positions"]().named_parameters())
    assert not any("position" in name for name in names)
