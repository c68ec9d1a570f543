"""What every encoder of text must do: no sentence knows its neighbours or its padding."""

import pytest
import torch

from lit_models.text.chimera import ChimeraText
from tests.lit_models.text.fabricated import (
    ENCODERS,
    LONGEST,
    VOCABULARY,
    WIDTH,
    packed,
    padded,
    sentences_of,
)

SIZES = (5, 1, 13, 8, 13)
encoders = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)


def features_and_gradients(net, batches, weights):
    """Of every batch in turn, the features of its tokens alone; then the gradients of all."""
    features = []
    for batch in batches:
        rows = net(**batch)
        if "lengths" in batch:
            parts = zip(rows, batch["lengths"].tolist(), strict=True)
            features += [row[:n] for row, n in parts]
        else:
            features += rows[0].split(batch["ptr"].diff().tolist())
    loss = sum((f * w).sum() for f, w in zip(features, weights, strict=True))
    used = [p for p in net.parameters() if p.requires_grad]
    return features, torch.autograd.grad(loss, used)


@encoders
def test_a_sentence_is_the_same_alone_padded_and_packed(make):
    net, sentences = make(), sentences_of(SIZES)
    weights = [torch.randn(n, WIDTH) for n in SIZES]
    expected = features_and_gradients(net, [padded([s]) for s in sentences], weights)
    for batch in (padded(sentences), padded(sentences, LONGEST), packed(sentences)):
        found = features_and_gradients(net, [batch], weights)
        for mine, theirs in zip(found[0], expected[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        for mine, theirs in zip(found[1], expected[1], strict=True):
            assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)


@encoders
def test_nothing_passes_between_sentences(make):
    net, sentences = make(), sentences_of(SIZES)
    batch = packed(sentences)
    first, last = batch["ptr"][2:4].tolist()
    x = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    net.words.weight.data.copy_(x)
    before = net(**batch)
    others = torch.cat([torch.arange(first), torch.arange(last, len(batch["tokens"][0]))])
    batch["tokens"][0, others] = (batch["tokens"][0, others] + 1) % VOCABULARY
    after = net(**batch)
    assert (after - before)[0, others].abs().max() > 1e-2
    torch.testing.assert_close(after[0, first:last], before[0, first:last], rtol=0, atol=1e-5)


@encoders
def test_a_token_sees_all_of_its_sentence(make):
    net, (sentence,) = make(), sentences_of((9,))
    batch = padded([sentence], 11)
    reach = {}
    hook = net.words.register_forward_hook(lambda _, __, x: reach.update(x=x))
    y = net(**batch)
    hook.remove()
    for token in (0, 4, 8):
        (gradient,) = torch.autograd.grad(y[0, token].square().sum(), reach["x"], retain_graph=True)
        seen = gradient.reshape(-1, WIDTH).abs().amax(1)
        assert (seen[:9] > 0).all()
        assert not seen[9:].any()


@encoders
def test_features_of_padding_are_zero(make):
    assert not make()(**padded(sentences_of((3, 7)), 9))[0, 3:].any()


@encoders
def test_every_parameter_learns(make):
    net = make()
    y = net(**padded(sentences_of((LONGEST, 9, 17))))
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "key.bias" not in name:  # softmax does not see it
            assert parameter.grad.abs().max() > 0, name


@encoders
def test_in_bfloat16_it_is_nearly_the_same(make):
    net, batch = make(), padded(sentences_of(SIZES))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(**batch)
    expected = net(**batch)
    assert (y - expected).norm() < 0.03 * expected.norm()
    y.sum().backward()


@encoders
def test_dropout_is_there(make):
    net, batch = make(dropout=0.5), padded(sentences_of((7, 3)))
    assert (net(**batch) - net(**batch)).abs().max() > 0.1
    net.eval()
    assert torch.equal(net(**batch), net(**batch))


@pytest.mark.parametrize("name", ["bert", "bert, convolved", "fnet", "mlp_mixer"])
def test_a_sentence_that_is_too_long(name):
    net = ENCODERS[name]()
    with pytest.raises(ValueError, match=r"has 25 tokens, but this encoder takes at most 24"):
        net(**padded(sentences_of((25, 3))))


@pytest.mark.parametrize("name", ["chimera", "hydra", "bert, no positions"])
def test_without_positions_any_length_will_do(name):
    assert ENCODERS[name]()(**padded(sentences_of((99, 3)))).isfinite().all()


def test_weights_begin_as_berts():
    net = ChimeraText(layers=1)
    assert net.words.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert net.blocks[0].inner.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.01)
