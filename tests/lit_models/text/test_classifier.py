"""Fine-tuning on whole sentences, from nothing or from what was trained before."""

import pytest
import torch

from lit_models.module import Optimisation, UnfitDataError
from lit_models.text.classifier import LitTextClassifier, TextClassifier
from lit_models.text.tasks import SentenceClassification
from tests.lit_models.text.fabricated import ENCODERS, language_model, packed, padded, sentences_of

encoders = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)


def classifier(make, dropout: float = 0.1, **options) -> LitTextClassifier:
    net = TextClassifier(make(), 3, dropout)
    return LitTextClassifier(SentenceClassification(3), net, Optimisation(), **options)


@encoders
def test_padded_or_packed_the_logits_are_the_same(make):
    model, sentences = classifier(make).eval(), sentences_of((5, 9, 7))
    logits = model(padded(sentences, 12))
    assert logits.shape == (3, 3)
    torch.testing.assert_close(model(packed(sentences)), logits, rtol=0, atol=1e-5)


@encoders
def test_every_parameter_learns(make):
    model = classifier(make, dropout=0.0)
    batch = padded(sentences_of((5, 9, 7))) | {"label": torch.tensor([0, 1, 2])}
    model.training_loss(batch).backward()
    for name in ("pooler.0.weight", "out.weight", "out.bias"):
        assert model.net.get_parameter(name).grad.abs().max() > 0
    assert model.net.encoder.words.weight.grad.abs().max() > 0


def test_the_pooler_reads_the_first_token():
    net = classifier(ENCODERS["chimera"], dropout=0.0).net
    batch = padded(sentences_of((5, 9)))
    first = net.encoder(**batch)[:, 0]
    expected = torch.tanh(first @ net.pooler[0].weight.T + net.pooler[0].bias)
    torch.testing.assert_close(net(batch), net.out(expected))


def saved(model, path):
    """As Lightning leaves it in a run's folder."""
    (path / "checkpoints").mkdir()
    torch.save({"state_dict": model.state_dict()}, path / "checkpoints" / "best.ckpt")
    return str(path)


def test_it_begins_with_a_language_models_encoder(tmp_path):
    before = language_model(ENCODERS["chimera"])
    model = classifier(ENCODERS["chimera"], pretrained=saved(before, tmp_path))
    pooler = model.net.pooler[0].weight.clone()
    model.setup("test")
    assert not torch.equal(model.net.encoder.words.weight, before.net.encoder.words.weight)
    model.setup("fit")
    for name, value in before.net.encoder.state_dict().items():
        assert torch.equal(model.net.encoder.state_dict()[name], value), name
    assert torch.equal(model.net.pooler[0].weight, pooler)


def test_it_takes_another_tasks_pooler_and_not_its_classes(tmp_path):
    before = classifier(ENCODERS["bert"])
    before.net.out = torch.nn.Linear(16, 2)
    model = classifier(ENCODERS["bert"], pretrained=saved(before, tmp_path))
    model.setup("fit")
    assert torch.equal(model.net.pooler[0].weight, before.net.pooler[0].weight)
    assert model.net.out.weight.shape == (3, 16)


def test_a_checkpoint_that_is_not_there(tmp_path):
    model = classifier(ENCODERS["bert"], pretrained=str(tmp_path))
    with pytest.raises(UnfitDataError, match=r"no checkpoint .*best.ckpt: set model.pretrained"):
        model.setup("fit")


@pytest.mark.parametrize("other", [lambda: ENCODERS["hydra"](), lambda: ENCODERS["bert"](width=8)])
def test_a_checkpoint_of_another_encoder(other, tmp_path):
    before = language_model(other)
    model = classifier(ENCODERS["bert"], pretrained=saved(before, tmp_path))
    with pytest.raises(UnfitDataError, match=r"another encoder, .* differs: set model\.net\.enc"):
        model.setup("fit")
