"""Pictures of text models: what is drawn is what the layers do, and a training leaves them."""

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from kernels.resolvent import resolvent_matrix
from lit_models.callbacks import confusion
from lit_models.callbacks.confusion import draw_confusion
from lit_models.layers.sentences import Sentences
from lit_models.text.pictures import (
    TextPictures,
    filled_in,
    mixing_matrices,
    mixing_matrix,
)
from lit_models.text.tasks import IGNORED
from tests.lit_models.callbacks.fitting import fit
from tests.lit_models.text.fabricated import (
    ENCODERS,
    VOCABULARY,
    WIDTH,
    language_model,
    packed,
    padded,
    sentences_of,
)
from tests.lit_models.text.test_classifier import classifier

WORDS = tuple(f"w{i}" for i in range(VOCABULARY))


class Texts(L.LightningDataModule):
    """Ready-made batches, the same for training and validation."""

    batch_size, words = 2, WORDS

    def __init__(self, batches: list[dict], label_names: tuple[str, ...] = ()):
        super().__init__()
        self.batches, self.label_names = batches, list(label_names)

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = train_dataloader


def events_of(folder, model, data, callback, epochs: int) -> EventAccumulator:
    fit(folder, model, data, callback, epochs=epochs)
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


def hidden_batch() -> dict:
    batch = padded(sentences_of((7, 4)))
    labels = torch.full_like(batch["tokens"], IGNORED)
    labels[0, 2], labels[1, 3] = 5, 6
    return batch | {"labels": labels}


@pytest.mark.parametrize("name", ["chimera", "hydra", "bert", "bert, convolved", "fnet"])
def test_a_training_leaves_pictures_of_the_first_and_the_last_validation(name, tmp_path):
    model = language_model(ENCODERS[name])
    events = events_of(tmp_path, model, Texts([hidden_batch()] * 2), TextPictures(), epochs=3)
    images = [] if name == "fnet" else ["token_mixing"]
    assert events.Tags()["images"] == images
    for tag in images:
        assert [event.step for event in events.Images(tag)] == [2, 6]
    texts = events.Tensors("filled_in/text_summary")
    assert [event.step for event in texts] == [2, 6]
    told = texts[0].tensor_proto.string_val[0].decode()
    assert "[w5 → w" in told
    assert "[w6 → w" in told


def test_the_matrix_of_chimera_is_both_resolvents():
    net = ENCODERS["chimera"]()
    layer, n = net.blocks[0].inner, 6
    x, sentence = torch.randn(n, WIDTH), Sentences((n,))
    weights = [chain.log_weight.exp() for chain in layer.operands(x, sentence)]
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    expected = sum(
        resolvent_matrix(e, weight[e[1]], n).abs().mean(0)
        for e, weight in zip((edges, edges.flip(0)), weights, strict=True)
    )
    torch.testing.assert_close(mixing_matrix(layer, x, sentence), expected.float())


def test_the_matrix_of_bert_is_its_attention():
    net, batch = ENCODERS["bert"](), padded(sentences_of((9, 4)))
    drawn = mixing_matrices(net, batch, 7)
    net.bert.set_attn_implementation("eager")
    tokens, types = batch["tokens"][:1, :7], batch["token_types"][:1, :7]
    said = net.bert(input_ids=tokens, token_type_ids=types, output_attentions=True).attentions
    assert len(drawn) == len(said) == 2
    for mine, theirs in zip(drawn.values(), said, strict=True):
        torch.testing.assert_close(mine, theirs[0].mean(0))


def test_the_matrix_of_convolved_bert_gives_its_outputs():
    net = ENCODERS["bert, convolved"](heads=1)
    layer, sentence = net.bert.encoder.layer[0].attention.self, Sentences((6,))
    x = torch.randn(6, WIDTH)
    value = layer.convs[2](layer.value(x), sentence)
    y, _ = layer(x.unsqueeze(0), sentences=sentence)
    torch.testing.assert_close(mixing_matrix(layer, x, sentence) @ value, y[0])


def test_words_are_filled_in_where_they_are_hidden():
    words = ["[MASK]", "the", "cat", "##s", "sat", "dog"]
    sentences = [(torch.tensor(s), torch.zeros(len(s), dtype=torch.long)) for s in
                 ([1, 0, 3, 4], [0, 5])]  # fmt: skip
    logits = torch.full((2, 6), -30.0)
    logits[0, 2] = 0.0
    logits[1, 4], logits[1, 1] = torch.tensor([0.75, 0.25]).log()
    rows, flat = padded(sentences), packed(sentences)
    rows["labels"] = torch.tensor([[IGNORED, 2, IGNORED, IGNORED], [1] + [IGNORED] * 3])
    flat["labels"] = torch.tensor([[IGNORED, 2, IGNORED, IGNORED, 1, IGNORED]])
    expected = ["the **[cat → cat 1.00]**s sat", "[the → sat 0.75] dog"]
    assert filled_in(rows, logits, words) == filled_in(flat, logits, words) == expected


def test_a_training_leaves_confusion_matrices(tmp_path, monkeypatch):
    sentences = [padded(sentences_of((5, 3))) for _ in range(2)]
    labels = [torch.tensor([0, 1]), torch.tensor([2, 2])]
    batches = [s | {"label": y} for s, y in zip(sentences, labels, strict=True)]
    model, drawn = classifier(ENCODERS["chimera"], dropout=0.0), []
    monkeypatch.setattr(
        confusion, "draw_confusion", lambda *given: drawn.append(given) or draw_confusion(*given)
    )
    data = Texts(batches, ("no", "maybe", "yes"))
    events = events_of(tmp_path, model, data, confusion.ConfusionMatrix(), epochs=2)
    assert [event.step for event in events.Images("confusion")] == [2, 4]
    counts, names = drawn[-1]
    assert names == ["no", "maybe", "yes"]
    expected = torch.zeros(3, 3, dtype=torch.long)
    with torch.no_grad():
        for batch in batches:
            for true, said in zip(batch["label"], model(batch).argmax(1), strict=True):
                expected[true, said] += 1
    assert torch.equal(counts, expected)
    assert not model.net._forward_hooks


def test_counts_stand_at_their_true_and_predicted_class():
    figure = draw_confusion(torch.tensor([[3, 1], [0, 7]]), ["a", "b"])
    (axes,) = figure.axes
    told = {text.get_position(): text.get_text() for text in axes.texts}
    assert told == {(0, 0): "3", (1, 0): "1", (0, 1): "0", (1, 1): "7"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
