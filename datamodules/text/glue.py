"""GLUE: nine tasks about sentences and pairs of them.

Source: Wang et al., "GLUE", arXiv:1804.07461; files and column names of nyu-mll/glue at Hugging
Face.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.base import SPLITS
from datamodules.batching import Samples
from datamodules.cache_folder import CachePlan, file_key, load_tensors, save_tensors
from datamodules.cached import GENERATED
from datamodules.errors import DataError, DownloadError, one_line
from datamodules.hub import hub_datasets
from datamodules.parquet import count_rows, readable
from datamodules.text import generated_sentences
from datamodules.text.module import MOST_VALIDATED, TextDataModule, place
from datamodules.text.token_batches import LabelledSequences, TokenTable
from datamodules.text.tokeniser import wordpiece

if TYPE_CHECKING:
    from pyarrow import Table

REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
"""Of nyu-mll/glue."""
CACHE_FORMAT = 1
"""Raise it with every change of what cached files hold: older ones are then rebuilt."""
ENCODED_AT_ONCE = 4096
MISMATCHED = "validation_mismatched"
GENERATED_PLACES = {"val": (0.0, 0.2), "test": (0.2, 0.4), "train": (0.4, 1.0)}
"""Where among all sentences, see `place`, those of a generated split are."""


@dataclass(frozen=True)
class GLUETask:
    """What a task's files look like.

    Attributes:
        columns: its sentence, or its first and its second.
        labels: name of each class; none where the label is a number.
        train, test: names of files; those for training beyond the first may be missing, as where
            MRPC's are not apart.
        variant: folder of files that are like the official ones and are not.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    train: tuple[str, ...] = ("train",)
    test: tuple[str, ...] = ("validation",)
    variant: str | None = None


PAIR = ("sentence1", "sentence2")
FOLLOWS = ("entailment", "not_entailment")
TASKS = {
    "cola": GLUETask(("sentence",), ("unacceptable", "acceptable"), variant="cola_lowercased"),
    "sst2": GLUETask(("sentence",), ("negative", "positive")),
    "mrpc": GLUETask(
        PAIR, ("not_equivalent", "equivalent"), train=("train", "validation"), test=("test",)
    ),
    "stsb": GLUETask(PAIR, ()),
    "qqp": GLUETask(("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": GLUETask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        test=("validation_matched", MISMATCHED),
    ),
    "qnli": GLUETask(("question", "sentence"), FOLLOWS),
    "rte": GLUETask(PAIR, FOLLOWS, variant="rte_resplit"),
    "wnli": GLUETask(PAIR, ("not_entailment", "entailment"), variant="wnli_resplit"),
}

OFFICIAL_ROWS = {
    "cola": {"train": 8_551, "validation": 1_043},
    "sst2": {"train": 67_349, "validation": 872},
    "mrpc": {"train": 4_076, "test": 1_725},
    "stsb": {"train": 5_749, "validation": 1_500},
    "qqp": {"train": 363_846, "validation": 40_430},
    "mnli": {"train": 392_702, "validation_matched": 9_815, MISMATCHED: 9_832},
    "qnli": {"train": 104_743, "validation": 5_463},
    "rte": {"train": 2_490, "validation": 277},
    "wnli": {"train": 635, "validation": 71},
}
"""Examples in the official files, by task: in those for training together, in each for testing."""

_log = logging.getLogger(__name__)


class GLUEDataModule(TextDataModule):
    """Training, validation and test sentences, or pairs, of one GLUE task.

    The labels of GLUE's own test sets are not public. Here the official validation set is the test
    set, MNLI's matched and mismatched ones together, and a share of the official training set
    validates; MRPC, whose test labels are public, is tested on its test set and trained and
    validated on all others. Examples whose first sentences are equal are never split between
    training and validation.

    Batches are {"tokens", "token_types", "lengths" or "ptr", see `Collate`; "label": int64 [B], of
    STS-B float32 from 0 to 5; "idx": int64 [B], the number in its file; "mismatched": bool [B]}.
    They hold equal numbers of tokens, and sentences of similar length.

    Args:
        task: one of `TASKS`.
        source: "official", from `<data_dir>/glue/<task>/<name>.parquet`, names as in nyu-mll/glue,
            with as many examples as were published, or downloaded; "variant", from such files with
            other numbers of examples, else from the folder that `GLUETask.variant` names;
            "generated"; or "auto".
        validation_share: of the training examples, at most 2,000.
        text: see TextDataModule; `generated_size` counts examples.

    Attributes:
        label_names: of the classes.

    Raises:
        DataError: an unknown task, a share that is none, and as TextDataModule says.
    """

    def __init__(self, task: str, validation_share: float = 0.1, **text: Any):
        super().__init__(**text)
        if task not in TASKS:
            raise DataError(
                f"There is no GLUE task {task!r}: set data.task to one of {', '.join(TASKS)}."
            )
        if not 0 < validation_share < 1:
            raise DataError(
                "Expected a share between 0 and 1, but data.validation_share is "
                f"{validation_share}."
            )
        # Lightning's own may be None.
        self.name: str = task  # pyright: ignore[reportIncompatibleVariableOverride]
        self.spec, self.validation_share = TASKS[task], validation_share
        self.label_names = list(self.spec.labels)

    @property
    def task(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For reports: a variant bears its own name."""
        return self._meta["task"] if self.source_used == "variant" else f"glue-{self.name}"

    @property
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        return {
            "official": self._plan_official,
            "variant": self._plan_variant,
            GENERATED: self._plan_generated,
        }

    def _plan_official(self) -> CachePlan:
        folder = self._given(self.name)
        if folder is None:
            key = {"validation_share": self.validation_share, "revision": REVISION}
            return self._plan("official", self.name, key, self._download)
        rows = self._rows(folder)
        for name, official in OFFICIAL_ROWS[self.name].items():
            if rows[name] != official:
                raise DownloadError(
                    f"Expected {official:,} examples in {name} of {folder}, found {rows[name]:,}: "
                    "download the official files, or set data.source=variant."
                )
        return self._plan_files("official", self.name, folder)

    def _plan_variant(self) -> CachePlan:
        folder = self._given(self.name)
        if folder is not None and self._rows(folder) != OFFICIAL_ROWS[self.name]:
            return self._plan_files("variant", f"{self.name}-variant", folder)
        name = self.spec.variant
        folder = None if name is None else self._given(name)
        if name is None or folder is None:
            wanted = f"glue/{self.name} with other numbers of examples than GLUE's"
            raise DownloadError(
                f"Expected a folder {wanted}{'' if name is None else f', or glue/{name},'} in "
                "DATA_DIR, found none: add it, or set data.source to official or generated."
            )
        return self._plan_files("variant", name, folder)

    def _plan_generated(self) -> CachePlan:
        key = {"generator": generated_sentences.GENERATOR_VERSION, "sizes": self.generated_size}
        return self._plan(GENERATED, self.name, key, self._generate)

    def _plan_files(self, source: str, name: str, folder: Path) -> CachePlan:
        paths = [folder / f"{file}.parquet" for file in self._present(folder)]
        key: dict[str, Any] = {"validation_share": self.validation_share}
        key["files"] = {path.name: file_key(path) for path in paths}
        return self._plan(source, name, key, partial(self._read, partial(_read_parquet, folder)))

    def _plan(
        self,
        source: str,
        name: str,
        key: dict[str, Any],
        read: "Callable[[Path], Iterable[Table]]",
    ) -> CachePlan:
        key = key | {"format": CACHE_FORMAT, "max_length": self.max_length, "seed": self.seed}
        key["vocabulary"] = self.vocabulary
        about = {"task": f"glue-{name}", "source": source}
        fill = partial(self._fill, read)
        return CachePlan(self.cache_dir / "glue", f"{self.name}-{source}", key, about, fill)

    def _given(self, name: str) -> Path | None:
        """The folder of `data_dir` with a task's files, None if there is none."""
        data_dir = self.given_folder()
        folder = data_dir / "glue" / name if data_dir else None
        return folder if folder is not None and folder.is_dir() else None

    def _present(self, folder: Path) -> list[str]:
        """The names of a task's files that are there."""
        names = (*self.spec.train[:1], *self.spec.test)
        for name in names:
            path = folder / f"{name}.parquet"
            if not path.exists():
                raise DataError(
                    f"Expected {' and '.join(f'{one}.parquet' for one in names)} side by side, but "
                    f"{path} is missing: add it, or unset DATA_DIR to download all."
                )
        more = [name for name in self.spec.train[1:] if (folder / f"{name}.parquet").exists()]
        return [*names, *more]

    def _rows(self, folder: Path) -> dict[str, int]:
        """The numbers of examples of a folder, as OFFICIAL_ROWS has them."""
        rows = {
            name: count_rows(folder / f"{name}.parquet", "GLUE") for name in self._present(folder)
        }
        train = sum(rows.get(name, 0) for name in self.spec.train)
        return {"train": train} | {name: rows[name] for name in self.spec.test}

    def open_split(self, folder: Path, split: str) -> LabelledSequences:
        return LabelledSequences(TokenTable(**load_tensors(folder, split)))

    def sizes(self, dataset: Samples) -> Tensor:
        assert isinstance(dataset, LabelledSequences)
        return dataset.lengths

    @property
    def provenance(self) -> dict[str, Any]:
        return super().provenance | {"max_length": self.max_length, "vocabulary": self.vocabulary}

    def _fill(
        self, read: "Callable[[Path], Iterable[Table]]", ready: Path, scratch: Path
    ) -> dict[str, Any]:
        content = {}
        for split, table in zip(SPLITS, read(scratch), strict=True):
            _log.info("Tokenising %d examples of %s.", len(table), self.name)
            encoded = self._encode(table)
            content[split] = encoded.content()
            save_tensors(ready, split, vars(encoded))
        return {"content": content}

    def _encode(self, table: "Table") -> TokenTable:
        tokeniser = wordpiece(self.max_length, self.vocabulary)
        tokens, first = [], []
        for part in table.to_batches(ENCODED_AT_ONCE):
            columns = [part[name].to_pylist() for name in ("first", "second")]
            texts = columns[0] if columns[1][0] is None else list(zip(*columns, strict=True))
            for encoding in tokeniser.encode_batch_fast(texts):
                tokens.append(torch.tensor(encoding.ids, dtype=torch.int16))
                first.append(len(encoding.ids) - sum(encoding.type_ids))
        kind = torch.int64 if self.spec.labels else torch.float32
        return TokenTable.of(
            tokens,
            first=torch.tensor(first),
            label=torch.tensor(table["label"].to_pylist(), dtype=kind),
            idx=torch.tensor(table["idx"].to_pylist()),
            mismatched=torch.tensor(table["mismatched"].to_pylist()),
        )

    def _download(self, scratch: Path) -> "Sequence[Table]":
        datasets = hub_datasets(f"GLUE's {self.name}")
        _log.info("Downloading GLUE's %s.", self.name)
        try:
            loaded = datasets.load_dataset(
                "nyu-mll/glue", self.name, revision=REVISION, cache_dir=str(scratch)
            )
        # Whatever goes wrong on the way fails with almost any exception.
        except Exception as error:
            raise DownloadError(
                f"Cannot download GLUE's {self.name} ({one_line(error)}): try again, or set "
                f"DATA_DIR to a folder with glue/{self.name}/train.parquet."
            ) from error
        return self._read(lambda name: loaded[name].data.table if name in loaded else None, scratch)

    def _read(self, read: "Callable[[str], Table | None]", scratch: Path) -> "Sequence[Table]":
        """Tables of first, second, label, idx and mismatched for all splits, given one by name."""
        import pyarrow as pa
        from pyarrow import compute

        test = [self._columns(read(name), name) for name in self.spec.test]
        tables = [(name, read(name)) for name in self.spec.train]
        train = pa.concat_tables([self._columns(t, name) for name, t in tables if t is not None])
        share = min(self.validation_share, MOST_VALIDATED / len(train))
        held_out = [place(text, self.seed) < share for text in train["first"].to_pylist()]
        if not 0 < sum(held_out) < len(train):
            raise DataError(
                f"{self.validation_share} of {len(train)} examples of {self.name} leave none to "
                "train or to validate on: change data.validation_share or data.seed."
            )
        kept = pa.array(held_out)
        # pyarrow makes its functions while it is imported.
        others = compute.invert(kept)  # pyright: ignore[reportAttributeAccessIssue]
        return train.filter(others), train.filter(kept), pa.concat_tables(test)

    def _columns(self, table: "Table", name: str) -> "Table":
        """The columns that matter, checked, under the same names for all tasks."""
        import pyarrow as pa

        needed = {*self.spec.columns, "label"}
        if not needed <= set(table.column_names) or not len(table):
            raise DataError(
                f"Expected examples with {', '.join(sorted(needed))} in {name} of {self.name}, got "
                f"{len(table)} with {', '.join(table.column_names)}: the file is not GLUE's."
            )
        label = table["label"].to_pylist()
        most = len(self.spec.labels) - 1 if self.spec.labels else 5
        missing = any(table[column].null_count for column in self.spec.columns)
        if missing or not all(self._is_label(value, most) for value in label):
            whole = "whole labels" if self.spec.labels else "labels"
            raise DataError(
                f"Expected sentences with {whole} from 0 to {most} in {name} of {self.name}, but "
                "some are missing, fractional or out of range: GLUE's own test sets have none, and "
                "are not used; else download the file again."
            )
        count, sentences = len(table), [table[c].cast(pa.string()) for c in self.spec.columns]
        idx = table["idx"] if "idx" in table.column_names else pa.array(range(count))
        if idx.null_count or not pa.types.is_integer(idx.type):
            raise DataError(
                f"Expected whole numbers in idx in {name} of {self.name}, but some are missing or "
                "fractional: the file is not GLUE's."
            )
        return pa.table(
            {
                "first": sentences[0],
                "second": sentences[1] if len(sentences) > 1 else pa.nulls(count, pa.string()),
                "label": pa.array(label, pa.float64()),
                "idx": idx.cast(pa.int64()),
                "mismatched": pa.array([name == MISMATCHED] * count),
            }
        )

    def _is_label(self, value: Any, most: int) -> bool:
        is_number = isinstance(value, int | float) and 0 <= value <= most
        return is_number and (not self.spec.labels or value == int(value))

    def _generate(self, scratch: Path) -> "Iterable[Table]":
        import pyarrow as pa

        for split, size in zip(SPLITS, self.generated_size, strict=True):
            rng = Random(f"{self.name} {split} {self.seed}")
            examples = [self._draw(split, rng)._asdict() for _ in range(size)]
            columns = {name: [one[name] for one in examples] for name in examples[0]}
            columns["label"] = [float(label) for label in columns["label"]]
            yield pa.table(
                columns | {"second": pa.array(columns["second"], pa.string()), "idx": range(size)}
            )

    def _draw(self, split: str, rng: Random) -> generated_sentences.Example:
        """An example whose first sentence is in no other split."""
        first, last = GENERATED_PLACES[split]
        while True:
            one = generated_sentences.example(self.name, rng, test=split == "test")
            if first <= place(one.first, self.seed) < last:
                return one


def _read_parquet(folder: Path, name: str) -> "Table | None":
    path = folder / f"{name}.parquet"
    if not path.exists():
        return None
    with readable(path, "GLUE") as parquet:
        return parquet.read_table(path)
