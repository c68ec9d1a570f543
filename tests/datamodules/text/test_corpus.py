"""Text for masked language modelling, offline: small files and the grammar."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.errors import DataError, DownloadError
from datamodules.text import corpus as text_corpus
from datamodules.text.corpus import TextCorpusDataModule, hide_words
from datamodules.text.token_batches import IGNORED
from datamodules.text.tokeniser import CLS, FIRST_WORD, MASK, SEP, UNK, VOCABULARY, wordpiece

DOCUMENTS = [f"Story {i}: the doctor, number {7 * i}, followed the horses." for i in range(80)]
TESTED = [f"Another story, the {i}th, of a pilot and his boat." for i in range(12)]


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("\n".join(DOCUMENTS) + "\n\n")
    (folder / "validation.txt").write_text("\n".join(TESTED))
    return folder


def ready(tmp_path: Path, **options) -> TextCorpusDataModule:
    options = {"data_dir": tmp_path / "raw", "cache_dir": tmp_path / "cache"} | options
    data = TextCorpusDataModule(**({"max_length": 16, "validation_share": 0.2} | options))
    data.prepare_data()
    data.setup()
    return data


def generated(tmp_path: Path, **options) -> TextCorpusDataModule:
    options = {"source": "generated", "generated_size": (20, 4, 4), "batch_size": 4} | options
    return ready(tmp_path, data_dir=None, **options)


def clean(sample: dict) -> list[int]:
    """A block with nothing hidden."""
    return torch.where(sample["labels"] == IGNORED, sample["tokens"], sample["labels"]).tolist()


def text_of(dataset) -> list[int]:
    return [token for sample in dataset for token in clean(sample)[1:-1]]


def stream(documents: list[str]) -> list[int]:
    encode = wordpiece().encode
    return [t for d in documents for t in (*encode(d, add_special_tokens=False).ids, SEP)]


def test_blocks_are_the_documents_end_to_end(tmp_path):
    write(tmp_path / "raw" / "english")
    data = ready(tmp_path)
    assert data.source_used == "file"
    assert data.task == "mlm-english"
    whole = stream(TESTED)
    assert text_of(data.test_dataset) == whole[: len(whole) // 14 * 14]
    for sample in data.train_dataset:
        assert len(sample["tokens"]) == 16
        assert sample["tokens"][0] == CLS
        assert sample["tokens"][-1] == SEP


def test_a_document_trains_or_validates(tmp_path):
    folder = write(tmp_path / "raw" / "english")
    (folder / "train.txt").write_text("\n".join(DOCUMENTS * 2))
    data = ready(tmp_path)
    of = {split: data._split for split in ("train", "val")}
    train = [d for d in DOCUMENTS * 2 if of["train"](d) == "train"]
    val = [d for d in DOCUMENTS * 2 if of["val"](d) == "val"]
    assert len(train) + len(val) == 160
    assert not set(train) & set(val)
    for dataset, documents in ((data.train_dataset, train), (data.val_dataset, val)):
        whole = stream(documents)
        assert text_of(dataset) == whole[: len(whole) // 14 * 14]
    assert 4 < len(set(val)) < 32


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_what_is_hidden_has_the_published_shares(share):
    rng = np.random.default_rng(0)
    tokens = rng.integers(FIRST_WORD, VOCABULARY, 40_000)
    tokens[::10], tokens[1::10], tokens[2::100] = SEP, CLS, UNK
    seen, labels = hide_words(tokens, share, VOCABULARY, rng)
    chosen = labels != IGNORED
    assert not chosen[tokens < FIRST_WORD].any()
    assert chosen.sum() == round(share * (tokens >= FIRST_WORD).sum())
    assert (labels[chosen] == tokens[chosen]).all()
    assert (seen[~chosen] == tokens[~chosen]).all()
    masked = (seen[chosen] == MASK).mean()
    stay = (seen[chosen] == tokens[chosen]).mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert stay == pytest.approx(0.1, abs=0.015)
    others = seen[chosen][(seen[chosen] != MASK) & (seen[chosen] != tokens[chosen])]
    assert others.min() >= FIRST_WORD
    assert len(np.unique(others)) > 0.9 * len(others)


def test_a_random_word_is_of_the_vocabulary():
    rng = np.random.default_rng(0)
    seen, _ = hide_words(rng.integers(FIRST_WORD, 3000, 40_000), 0.5, 3000, rng)
    assert 2900 < seen.max() < 3000


def test_a_block_always_has_a_word_to_fill_in():
    rng = np.random.default_rng(0)
    seen, labels = hide_words(np.array([CLS, 2000, SEP]), 0.15, VOCABULARY, rng)
    assert (labels != IGNORED).tolist() == [False, True, False]
    seen, labels = hide_words(np.array([CLS, SEP]), 0.15, VOCABULARY, rng)
    assert (labels == IGNORED).all()
    assert seen.tolist() == [CLS, SEP]


def epoch_of(loader) -> list[dict]:
    return list(loader)


def same(one: list[dict], two: list[dict]) -> bool:
    pairs = list(zip(one, two, strict=True))
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


def hidden_by_block(batches: list[dict]) -> dict[int, list[int]]:
    rows = [(b["idx"], b["labels"]) for b in batches]
    return {int(i): labels.tolist() for idx, many in rows for i, labels in zip(idx, many)}


def test_every_epoch_hides_other_words_and_evaluation_the_same(tmp_path):
    data = generated(tmp_path)
    train, val = data.train_dataloader(), data.val_dataloader()
    first, second = epoch_of(train), epoch_of(train)
    one, two = hidden_by_block(first), hidden_by_block(second)
    assert one.keys() == two.keys()
    assert sum(one[i] == two[i] for i in one) < len(one) / 10
    assert same(epoch_of(val), epoch_of(val))
    assert same(epoch_of(data.test_dataloader()), epoch_of(generated(tmp_path).test_dataloader()))
    words = sum(int((b["labels"] != IGNORED).sum()) for b in first)
    assert 0.25 < words / (14 * len(one)) < 0.3  # [SEP] of documents is no word
    other = generated(tmp_path, shuffle_seed=1)
    assert same(epoch_of(other.test_dataloader()), epoch_of(data.test_dataloader()))
    assert hidden_by_block(epoch_of(other.train_dataloader())) != one


def test_a_resumed_run_sees_the_same_blocks_and_the_same_hidden_words(tmp_path):
    whole = generated(tmp_path).train_dataloader()
    epochs = [epoch_of(whole) for _ in range(2)]
    broken = generated(tmp_path).train_dataloader()
    epoch_of(broken)
    begun = iter(broken)
    next(begun), next(begun)
    resumed = generated(tmp_path).train_dataloader()
    resumed.load_state_dict(broken.state_dict())
    assert same(epoch_of(resumed), epochs[1][2:])


def test_loading_processes_hide_the_same_words(tmp_path):
    alone, helped = (generated(tmp_path, num_workers=n).train_dataloader() for n in (0, 1))
    for _ in range(2):
        assert same(epoch_of(alone), epoch_of(helped))


def test_packed_blocks_are_the_padded_ones(tmp_path):
    padded, packed = (generated(tmp_path, packing=p).val_dataloader() for p in (False, True))
    for rows, line in zip(padded, packed, strict=True):
        for name in ("tokens", "token_types", "labels"):
            assert torch.equal(rows[name].flatten(), line[name][0])
        assert line["ptr"].diff().tolist() == rows["lengths"].tolist()


def test_text_is_tokenised_once_for_all_lengths(tmp_path, monkeypatch):
    data = generated(tmp_path)
    monkeypatch.setattr(text_corpus, "wordpiece", lambda *_: pytest.fail("tokenised again"))
    longer = generated(tmp_path, max_length=30)
    assert text_of(longer.train_dataset)[:100] == text_of(data.train_dataset)[:100]
    assert longer.fingerprint != data.fingerprint
    limited = generated(tmp_path, limit=5)
    assert len(limited.train_dataset) == 5
    everything = [clean(sample) for sample in data.train_dataset]
    assert all(clean(sample) in everything for sample in limited.train_dataset)


def test_without_a_file_auto_generates_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="USING GENERATED DATA for mlm-generated"):
        data = ready(tmp_path, data_dir=None, generated_size=(20, 4, 4))
    assert data.provenance["source"] == "generated"
    assert data.provenance["masking"] == {"train": 0.3, "eval": 0.15}
    assert set(data.provenance["samples"]) == {"train", "val", "test"}


def test_a_stream_is_read_no_further_than_needed(tmp_path, monkeypatch):
    read = {"train": 0, "validation": 0}

    def load_dataset(name, configuration, revision, streaming, split):
        assert (name, configuration, revision, streaming) == ("a/b", "en", "1f", True)
        for text in DOCUMENTS if split == "train" else TESTED:
            read[split] += 1
            yield {"text": text}

    hub = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(text_corpus, "hub_datasets", lambda what: hub)
    options = {"source": "datasets", "dataset": ["a/b", "en", "1f"], "data_dir": None}
    data = ready(tmp_path, streamed_documents=(30, 3, 4), **options)
    assert data.source_used == "datasets"
    assert data.task == "mlm-a-b-en"
    train = [d for d in DOCUMENTS if data._split(d) == "train"][:30]
    val = [d for d in DOCUMENTS if data._split(d) == "val"][:3]
    for dataset, documents in (
        (data.train_dataset, train),
        (data.val_dataset, val),
        (data.test_dataset, TESTED[:4]),
    ):
        whole = stream(documents)
        assert text_of(dataset) == whole[: len(whole) // 14 * 14]
    assert read == {"train": DOCUMENTS.index(train[-1]) + 1, "validation": 4}
    hub.load_dataset = lambda *names, **options: 1 / 0
    with pytest.raises(DownloadError, match="Cannot stream a/b"):
        ready(tmp_path, streamed_documents=(31, 3, 4), **options)


def not_utf8(folder: Path) -> None:
    (folder / "train.txt").write_bytes(b"caf\xe9\n" * 100)


def too_short(folder: Path) -> None:
    (folder / "validation.txt").write_text("Short.")


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (not_utf8, {}, "save it as UTF-8"),
        (too_short, {}, "at least one block of 16 tokens to test on"),
        (lambda f: (f / "validation.txt").unlink(), {"source": "file"}, "one document a line, in"),
        (lambda f: None, {"source": "datasets"}, "Cannot reach"),
        (lambda f: None, {"source": "official"}, "one of file, datasets, generated"),
        (lambda f: None, {"masking": 1.5}, "data.masking is 1.5"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(damage, options, message, tmp_path):
    damage(write(tmp_path / "raw" / "english"))
    with pytest.raises(DataError, match=message):
        ready(tmp_path, **options)


def test_real_text(real, tmp_path):
    lines = real("english/validation.txt").read_text().splitlines()[:20]
    (tmp_path / "raw" / "english").mkdir(parents=True)
    for name in ("train", "validation"):
        (tmp_path / "raw" / "english" / f"{name}.txt").write_text("\n".join(lines))
    data = ready(tmp_path, source="file", max_length=128)
    tokens = torch.tensor(text_of(data.test_dataset))
    assert len(tokens) > 10_000
    assert (tokens == UNK).float().mean() < 0.01
