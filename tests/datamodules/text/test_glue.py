"""The GLUE data module, offline: fabricated files in the official layout."""

import warnings
from itertools import chain
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from datamodules.errors import DataError, DownloadError
from datamodules.text import glue
from datamodules.text.generated_sentences import GOOD, example
from datamodules.text.glue import OFFICIAL_ROWS, TASKS, GLUEDataModule
from datamodules.text.tokeniser import CLS, PAD, SEP, wordpiece
from tests.datamodules.fabricated import snapshot

SIZES = {"train": 60, "test": 8}


def fabricated_rows(task: str) -> dict[str, int]:
    spec = TASKS[task]
    return {"train": SIZES["train"] * len(spec.train)} | dict.fromkeys(spec.test, SIZES["test"])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What `write` leaves has the numbers of examples of the official files."""
    monkeypatch.setattr(glue, "OFFICIAL_ROWS", {task: fabricated_rows(task) for task in TASKS})


def examples(task: str, count: int, seed: int, start: int = 0) -> dict[str, list]:
    """Columns of a file of a task, under the official names."""
    rng, spec = Random(seed), TASKS[task]
    made = [example(task, rng) for _ in range(count)]
    label = [float(one.label) if not spec.labels else int(one.label) for one in made]
    texts = zip(spec.columns, ("first", "second"), strict=False)
    columns = {name: [getattr(one, part) for one in made] for name, part in texts}
    return columns | {"label": label, "idx": list(range(start, start + count))}


def write(folder: Path, task: str) -> dict[str, dict[str, list]]:
    """The official files of a task; their columns by name."""
    spec = TASKS[task]
    folder.mkdir(parents=True)
    files = {name: examples(task, SIZES["train"], i) for i, name in enumerate(spec.train)}
    files |= {name: examples(task, SIZES["test"], 9 + i) for i, name in enumerate(spec.test)}
    for name, columns in files.items():
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet")
    return files


def ready(task: str, tmp_path: Path, **options) -> GLUEDataModule:
    options = {"data_dir": tmp_path / "raw", "cache_dir": tmp_path / "cache"} | options
    data = GLUEDataModule(task, **options)
    data.prepare_data()
    data.setup()
    return data


def texts_of(columns: dict[str, list], task: str) -> list[tuple[str, ...]]:
    return list(zip(*(columns[name] for name in TASKS[task].columns), strict=True))


def tokens_of(texts: list[tuple[str, ...]]) -> list[list[int]]:
    tokeniser = wordpiece()
    return [tokeniser.encode(*text).ids for text in texts]


@pytest.mark.parametrize("task", TASKS)
def test_official_files_are_read_and_left_alone(task, tmp_path):
    files = write(tmp_path / "raw" / "glue" / task, task)
    before = snapshot(tmp_path / "raw")
    data = ready(task, tmp_path, source="official")
    assert data.source_used == data.provenance["source"] == "official"
    assert data.task == f"glue-{task}"
    # The test set is the official validation set (of MRPC its test set), in its order.
    tests = [(name, files[name]) for name in TASKS[task].test]
    texts = [text for _, columns in tests for text in texts_of(columns, task)]
    assert [one["tokens"].tolist() for one in data.test_dataset] == tokens_of(texts)
    label = [value for _, columns in tests for value in columns["label"]]
    assert [one["label"].item() for one in data.test_dataset] == pytest.approx(label)
    away = [name == "validation_mismatched" for name, c in tests for _ in c["label"]]
    assert [bool(one["mismatched"]) for one in data.test_dataset] == away
    idx = [i for _, columns in tests for i in columns["idx"]]
    assert [int(one["idx"]) for one in data.test_dataset] == idx
    # Training and validation together are all other files.
    given = tokens_of([text for name in TASKS[task].train for text in texts_of(files[name], task)])
    used = [one["tokens"].tolist() for d in (data.train_dataset, data.val_dataset) for one in d]
    assert sorted(used) == sorted(given)
    types = data.test_dataset[0]["token_types"]
    pair = wordpiece().encode(*texts[0])
    assert types.tolist() == pair.type_ids
    assert types.max() == len(TASKS[task].columns) - 1
    assert snapshot(tmp_path / "raw") == before


def first_sentences(dataset) -> set[tuple[int, ...]]:
    return {tuple(one["tokens"][one["token_types"] == 0].tolist()) for one in dataset}


def test_no_first_sentence_both_trains_and_validates(tmp_path, monkeypatch):
    folder = tmp_path / "raw" / "glue" / "rte"
    write(folder, "rte")
    columns = examples("rte", 100, 0)
    three = {name: values * 3 for name, values in columns.items()}  # as in MNLI
    three["sentence2"] = [f"{i} {text}" for i, text in enumerate(three["sentence2"])]
    parquet.write_table(pa.table(three), folder / "train.parquet")
    monkeypatch.setitem(glue.OFFICIAL_ROWS["rte"], "train", 300)
    data = ready("rte", tmp_path, source="official", validation_share=0.3)
    assert not first_sentences(data.train_dataset) & first_sentences(data.val_dataset)
    assert 45 < len(data.val_dataset) < 135
    again = ready(
        "rte", tmp_path, source="official", validation_share=0.3, cache_dir=tmp_path / "b"
    )
    other = ready("rte", tmp_path, source="official", validation_share=0.3, seed=1)
    assert again.fingerprint == data.fingerprint != other.fingerprint


def test_a_variant_never_passes_for_official(tmp_path):
    write(tmp_path / "raw" / "glue" / "cola_lowercased", "cola")
    with pytest.raises(DownloadError, match="Cannot reach"):
        ready("cola", tmp_path, source="official")
    asked = ready("cola", tmp_path, source="variant")
    with pytest.warns(UserWarning, match="USING VARIANT DATA for glue-cola_lowercased"):
        found = ready("cola", tmp_path)
    for data in (asked, found):
        assert data.source_used == data.provenance["source"] == "variant"
        assert data.provenance["task"] == "glue-cola_lowercased"
    with pytest.raises(DataError, match=r"glue/sst2 with other numbers of examples .* found none"):
        ready("sst2", tmp_path, source="variant")


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("name", ["train", "test"])
def test_files_with_other_numbers_of_examples_are_a_variant(name, more, tmp_path, monkeypatch):
    write(tmp_path / "raw" / "glue" / "mrpc", "mrpc")
    official = glue.OFFICIAL_ROWS["mrpc"]
    with pytest.raises(DataError, match=r"glue/mrpc with other numbers of examples .* found none"):
        ready("mrpc", tmp_path, source="variant")
    found = official[name]
    monkeypatch.setitem(official, name, found - more)
    sentence = f"Expected {found - more} examples in {name} of .*, found {found}: .*=variant"
    with pytest.raises(DownloadError, match=sentence):
        ready("mrpc", tmp_path, source="official")
    with pytest.warns(UserWarning, match="USING VARIANT DATA for glue-mrpc-variant"):
        data = ready("mrpc", tmp_path)
    again = GLUEDataModule("mrpc", data_dir=data.data_dir, cache_dir=data.cache_dir)
    again.setup()  # as another process does
    for one in (data, again):
        assert (one.source_used, one.task) == ("variant", "glue-mrpc-variant")


def test_without_all_of_its_examples_a_task_is_a_variant(tmp_path):
    write(tmp_path / "raw" / "glue" / "mrpc", "mrpc")
    (tmp_path / "raw" / "glue" / "mrpc" / "validation.parquet").unlink()
    with pytest.raises(DownloadError, match=r"Expected 120 examples in train of .*, found 60"):
        ready("mrpc", tmp_path, source="official")
    assert ready("mrpc", tmp_path, source="variant").task == "glue-mrpc-variant"


def test_the_official_numbers_are_those_of_the_files_that_are_read():
    rows = OFFICIAL_ROWS  # before they are made small
    assert rows.keys() == TASKS.keys()
    for task, spec in TASKS.items():
        assert rows[task].keys() == {"train", *spec.test}


def test_auto_prefers_the_official_files(tmp_path):
    write(tmp_path / "raw" / "glue" / "cola_lowercased", "cola")
    write(tmp_path / "raw" / "glue" / "cola", "cola")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert ready("cola", tmp_path).source_used == "official"


def test_without_data_auto_generates_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="USING GENERATED DATA for glue-sst2"):
        data = ready("sst2", tmp_path, data_dir=None, generated_size=(6, 3, 2))
    assert data.source_used == "generated"
    assert [len(d) for d in (data.train_dataset, data.val_dataset, data.test_dataset)] == [6, 3, 2]


def test_what_is_downloaded_is_read_like_files(tmp_path, monkeypatch):
    files = write(tmp_path / "raw" / "glue" / "mrpc", "mrpc")
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options["revision"]))
        tables = {name: pa.table(columns) for name, columns in files.items()}
        return {n: SimpleNamespace(data=SimpleNamespace(table=t)) for n, t in tables.items()}

    hub = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(glue, "hub_datasets", lambda what: hub)
    loaded = ready("mrpc", tmp_path, source="official", data_dir=None)
    assert asked == [(("nyu-mll/glue", "mrpc"), glue.REVISION)]
    assert loaded.fingerprint == ready("mrpc", tmp_path, source="official").fingerprint
    hub.load_dataset = lambda *names, **options: 1 / 0
    with pytest.raises(DownloadError, match="Cannot download GLUE's qqp"):
        ready("qqp", tmp_path, source="official", data_dir=None)


def test_text_is_tokenised_once(tmp_path, monkeypatch):
    write(tmp_path / "raw" / "glue" / "stsb", "stsb")
    data = ready("stsb", tmp_path, source="official")
    with monkeypatch.context() as patch:
        patch.setattr(glue, "wordpiece", lambda *_: pytest.fail("tokenised again"))
        again = ready("stsb", tmp_path, source="official")
    assert again.fingerprint == data.fingerprint
    saved = next((tmp_path / "cache" / "glue").glob("stsb-official-*")) / "train.pt"
    saved.write_bytes(saved.read_bytes()[:-8])  # as a full disk would leave it
    with pytest.warns(UserWarning, match="damaged"):
        assert ready("stsb", tmp_path, source="official").fingerprint == data.fingerprint


def unpadded(batch: dict[str, Tensor], name: str) -> list[list[int]]:
    rows = zip(batch[name], batch["lengths"].tolist(), strict=True)
    return [row[:length].tolist() for row, length in rows]


def test_packed_batches_hold_what_padded_ones_do(tmp_path):
    options = {"source": "generated", "generated_size": (40, 4, 9), "batch_size": 8}
    padded, packed = (ready("mnli", tmp_path, packing=p, **options) for p in (False, True))
    assert padded.fingerprint == packed.fingerprint
    loaders = zip(padded.train_dataloader(), packed.train_dataloader(), strict=True)
    for rows, line in loaders:
        total = int(rows["lengths"].sum())
        assert line["tokens"].shape == line["token_types"].shape == (1, total)
        assert line["ptr"].tolist() == [0, *rows["lengths"].cumsum(0).tolist()]
        for name in ("tokens", "token_types"):
            assert line[name][0].tolist() == list(chain(*unpadded(rows, name)))
        behind = torch.arange(rows["tokens"].shape[1]) >= rows["lengths"].unsqueeze(1)
        assert (rows["tokens"][behind] == PAD).all()
        assert rows["tokens"].shape[1] == rows["lengths"].max()
        for name in ("label", "idx", "mismatched"):
            assert torch.equal(rows[name], line[name])
        assert (rows["tokens"][:, 0] == CLS).all()
        assert all(tokens[-1] == SEP for tokens in unpadded(rows, "tokens"))


def test_batches_hold_sentences_of_like_length(tmp_path):
    sizes = {"generated_size": (400, 4, 4), "batch_size": 16, "size_jitter": 0.0}
    data = ready("sst2", tmp_path, source="generated", **sizes)
    lengths = data.train_dataset.lengths
    assert lengths.tolist() == [len(one["tokens"]) for one in data.train_dataset]
    wasted = sum(int((b["tokens"] == PAD).sum()) for b in data.train_dataloader())
    blind = sum(int((part.max() - part).sum()) for part in lengths.split(16))
    assert wasted < blind / 2


def test_sentences_are_cut_at_max_length(tmp_path):
    data = ready("mnli", tmp_path, source="generated", generated_size=(9, 3, 3), max_length=12)
    assert int(data.train_dataset.lengths.max()) == 12
    assert all(one["tokens"][-1] == SEP for one in data.train_dataset)
    assert data.provenance["max_length"] == 12


@pytest.mark.parametrize("task", TASKS)
def test_generated_labels_are_those_of_the_task(task, tmp_path):
    data = ready(task, tmp_path, source="generated", generated_size=(120, 9, 60))
    label = torch.stack([one["label"] for one in data.train_dataset])
    if task == "stsb":
        assert set(label.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
        assert data.label_names == []
    else:
        assert label.dtype == torch.int64
        counts = torch.bincount(label, minlength=len(data.label_names))
        assert len(counts) == len(data.label_names)
        assert counts.min() > 20
    splits = [first_sentences(d) for d in (data.train_dataset, data.val_dataset, data.test_dataset)]
    assert not splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2]
    away = [bool(one["mismatched"]) for one in data.test_dataset]
    assert any(away) == (task == "mnli")
    assert not all(away)


def test_generated_sentiment_follows_its_rule():
    rng = Random(0)
    for _ in range(50):
        made = example("sst2", rng)
        good = any(word in made.first.split() for word in GOOD)
        assert made.label == (good != (" not " in made.first))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ax"}, "set data.task to one of cola, sst2"),
        ({"source": "c4"}, "set data.source to auto or one of official, variant, generated"),
        ({"max_length": 4}, "data.max_length is 4"),
        ({"validation_share": 1.0}, "data.validation_share is 1.0"),
        ({"generated_size": (1, 2)}, "data.generated_size"),
        ({"limit": 0}, "data.limit is 0"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(DataError, match=message):
        GLUEDataModule(**({"task": "sst2"} | options))


def cut_short(folder: Path) -> None:
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:200])


def rewrite(folder: Path, change) -> None:
    columns = parquet.read_table(folder / "train.parquet").to_pydict()
    change(columns)
    parquet.write_table(pa.table(columns), folder / "train.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "validation.parquet").unlink(), "validation.parquet is missing: add it"),
        (cut_short, "cannot be read .*: download it again"),
        (lambda f: rewrite(f, lambda c: c.pop("label")), "with label, sentence in train of sst2"),
        (lambda f: rewrite(f, lambda c: c["label"].__setitem__(0, -1)), "labels from 0 to 1"),
        (lambda f: rewrite(f, lambda c: c["label"].__setitem__(0, 2)), "labels from 0 to 1"),
        (
            lambda f: rewrite(f, lambda c: c.update(label=[0.2, 0.7] * 30)),
            "whole labels from 0 to 1",
        ),
        (lambda f: rewrite(f, lambda c: c.update(label=["0"] * 60)), "whole labels from 0 to 1"),
        (lambda f: rewrite(f, lambda c: c["idx"].__setitem__(0, None)), "whole numbers in idx"),
        (lambda f: rewrite(f, lambda c: c["sentence"].__setitem__(0, None)), "some are missing"),
    ],
)
def test_damaged_files_are_one_sentence_and_nothing_takes_their_place(damage, message, tmp_path):
    folder = tmp_path / "raw" / "glue" / "sst2"
    write(folder, "sst2")
    damage(folder)
    with pytest.raises(DataError, match=message):
        ready("sst2", tmp_path)  # auto
    assert not list((tmp_path / "cache").glob("glue/sst2-*"))


def test_similarities_may_be_fractional_and_not_missing(tmp_path):
    folder = tmp_path / "raw" / "glue" / "stsb"
    write(folder, "stsb")
    rewrite(folder, lambda c: c.update(label=[0.2, 4.9] * 30))
    data = ready("stsb", tmp_path)
    labels = {one["label"].item() for one in data.train_dataset}
    assert labels == {torch.tensor(x).item() for x in (0.2, 4.9)}
    rewrite(folder, lambda c: c["label"].__setitem__(0, float("nan")))
    with pytest.raises(DataError, match="labels from 0 to 5"):
        ready("stsb", tmp_path)


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist: correct the path"):
        ready("sst2", tmp_path)


def test_setup_without_preparation_is_one_sentence(tmp_path):
    data = GLUEDataModule("rte", source="generated", cache_dir=tmp_path)
    with pytest.raises(DataError, match="call prepare_data"):
        data.setup()


@pytest.mark.parametrize(
    ("task", "source", "sizes"),
    [
        ("stsb", "official", (5749, 1500)),
        ("mrpc", "official", (4076, 1725)),
        ("cola", "variant", (8551, 516)),
        ("wnli", "variant", (565, 70)),
    ],
)
def test_real_files(task, source, sizes, real, tmp_path, monkeypatch):
    monkeypatch.setattr(glue, "OFFICIAL_ROWS", OFFICIAL_ROWS)
    folder = real(f"glue/{TASKS[task].variant if source == 'variant' else task}")
    data = ready(task, tmp_path, source=source, data_dir=str(folder.parents[1]))
    assert (len(data.train_dataset) + len(data.val_dataset), len(data.test_dataset)) == sizes
    assert 0.05 < len(data.val_dataset) / sizes[0] < 0.15
