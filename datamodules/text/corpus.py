"""Plain text for masked language modelling, in blocks of equal length.

Source: Devlin et al., arXiv:1810.04805; the shares of Lahoti et al., Chimera, arXiv:2510.12111.
Shapes: T tokens of a block, special ones included.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import SPLITS
from datamodules.cache_folder import CachePlan, file_key, sha256, sync
from datamodules.cached import GENERATED
from datamodules.errors import DataError, DownloadError, one_line
from datamodules.hub import hub_datasets
from datamodules.text import generated_sentences
from datamodules.text.module import TextDataModule, place
from datamodules.text.token_batches import IGNORED, Sample
from datamodules.text.tokeniser import CLS, FIRST_WORD, MASK, SEP, wordpiece

CACHE_FORMAT = 1
"""Raise it with every change of what cached files hold: older ones are then rebuilt."""
TOKEN = np.dtype("<i2")
"""How tokens are saved; the vocabulary has 30,522."""
DOCUMENTS_AT_ONCE = 256
FILES = ("train.txt", "validation.txt")
HIDDEN, RANDOM = 0.8, 0.1
"""Of the chosen tokens these shares become [MASK] and a random word; the others stay."""

_log = logging.getLogger(__name__)


class TextCorpusDataModule(TextDataModule):
    """Blocks of T tokens of which some are hidden, to be filled in.

    Documents are laid end to end, [SEP] behind each, and cut into stretches of T − 2 tokens, which
    stand between [CLS] and [SEP]; what is left at the end is dropped. The corpus's validation
    documents are the test set, and a share of its training documents validates.

    Batches are {"tokens", "token_types", "lengths" or "ptr", see `Collate`; "labels", like tokens:
    the word behind a chosen token, IGNORED elsewhere; "idx": int64 [B]}. What is chosen for
    training depends on shuffle_seed, epoch and block alone, so that a resumed run sees what the
    uninterrupted one would have seen; for validation and test it is always the same.

    Args:
        source: "file", of `<data_dir>/<folder>/train.txt` and `validation.txt`, one document a
            line; "datasets", streamed from Hugging Face, of which the tokens alone are kept, two
            bytes each; "generated", documents of a small grammar; or "auto", which streams nothing.
        folder: below `data_dir`.
        dataset: name, configuration and revision at Hugging Face; it has a column `text` and the
            splits train and validation.
        streamed_documents: at most so many for training, validation and test are kept.
        masking, eval_masking: shares of the words that are chosen, in training and otherwise.
        validation_share: of the training documents.
        text: see TextDataModule; `generated_size` counts documents.

    Raises:
        DataError: a share that is none, and as TextDataModule says.
    """

    only_if_asked = ("datasets",)  # a corpus of gigabytes

    def __init__(
        self,
        folder: str = "english",
        dataset: Sequence[str] = ("allenai/c4", "en", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"),
        streamed_documents: Sequence[int] = (20_000, 500, 500),
        masking: float = 0.3,
        eval_masking: float = 0.15,
        validation_share: float = 0.05,
        **text: Any,
    ):
        super().__init__(**text)
        shares = {"masking": masking, "eval_masking": eval_masking}
        for name, share in (shares | {"validation_share": validation_share}).items():
            if not 0 < share < 1:
                raise DataError(f"Expected a share between 0 and 1, but data.{name} is {share}.")
        self.folder, self.dataset = folder, tuple(dataset)
        self.streamed_documents = tuple(streamed_documents)
        self.masking, self.eval_masking = masking, eval_masking
        self.validation_share = validation_share

    @property
    def sources(self) -> Mapping[str, Callable[[], CachePlan]]:
        return {
            "file": self._plan_file,
            "datasets": self._plan_datasets,
            GENERATED: self._plan_generated,
        }

    @property
    def task(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For reports: which text it is."""
        of = {"datasets": self._dataset_name, GENERATED: GENERATED}
        return f"mlm-{of.get(self.source_used or self.source, self.folder)}"

    def _plan_file(self) -> CachePlan:
        paths = self._paths()
        key: dict[str, Any] = {"files": {path.name: file_key(path) for path in paths}}
        key["validation_share"] = self.validation_share
        return self._plan("file", self.folder, key, partial(self._read, paths))

    def _plan_datasets(self) -> CachePlan:
        key: dict[str, Any] = {"dataset": self.dataset, "documents": self.streamed_documents}
        key["validation_share"] = self.validation_share
        return self._plan("datasets", self._dataset_name, key, self._stream)

    def _plan_generated(self) -> CachePlan:
        key = {"generator": generated_sentences.GENERATOR_VERSION, "sizes": self.generated_size}
        return self._plan(GENERATED, GENERATED, key, self._generate)

    def _plan(
        self,
        source: str,
        name: str,
        key: dict[str, Any],
        read: Callable[[], Iterator[tuple[str, str]]],
    ) -> CachePlan:
        key = {"format": CACHE_FORMAT, "seed": self.seed, "vocabulary": self.vocabulary} | key
        about = {"task": f"mlm-{name}", "source": source}
        return CachePlan(self.cache_dir / "text", name, key, about, partial(self._fill, read))

    @property
    def _dataset_name(self) -> str:
        return "-".join(self.dataset[:2]).replace("/", "-")

    def _paths(self) -> list[Path]:
        data_dir = self.given_folder()
        paths = [data_dir / self.folder / name for name in FILES] if data_dir else []
        if not paths or not all(path.is_file() for path in paths):
            raise DownloadError(
                f"Expected {' and '.join(FILES)}, one document a line, in {self.folder}/ of "
                f"DATA_DIR ({data_dir or 'not set'}): add them, or set data.source to datasets or "
                "generated."
            )
        return paths

    def open_split(self, folder: Path, split: str) -> "MaskedBlocks":
        training = split == "train"
        return MaskedBlocks(
            folder / f"{split}.bin",
            self.max_length,
            self.masking if training else self.eval_masking,
            self.vocabulary,
            seed=self.shuffle_seed if training else self.seed,
            fixed=not training,
        )

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        for split in SPLITS:
            if not len(getattr(self, f"{split}_dataset")):
                raise DataError(
                    f"Expected at least one block of {self.max_length} tokens to {split} on, got "
                    f"none of {self.task}: use more text, or lower data.max_length."
                )

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal for equal blocks, equally hidden when they are tested."""
        self.cached_folder()
        parts = [self._meta["content"], self.limit, self.max_length, self.eval_masking, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def provenance(self) -> dict[str, Any]:
        own: dict[str, Any] = {"max_length": self.max_length, "vocabulary": self.vocabulary}
        own["masking"] = {"train": self.masking, "eval": self.eval_masking}
        return super().provenance | own

    def _fill(
        self, read: Callable[[], Iterator[tuple[str, str]]], ready: Path, scratch: Path
    ) -> dict[str, Any]:
        tokeniser, documents = wordpiece(vocabulary=self.vocabulary), read()
        _log.info("Tokenising the text of %s.", self.task)
        files = {split: (ready / f"{split}.bin").open("wb") for split in SPLITS}
        try:
            while several := list(islice(documents, DOCUMENTS_AT_ONCE)):
                texts = [text for _, text in several]
                encoded = tokeniser.encode_batch_fast(texts, add_special_tokens=False)
                for (split, _), encoding in zip(several, encoded, strict=True):
                    files[split].write(np.array([*encoding.ids, SEP], dtype=TOKEN).tobytes())
            for file in files.values():
                sync(file)
        finally:
            for file in files.values():
                file.close()
        return {"content": {split: sha256(ready / f"{split}.bin") for split in SPLITS}}

    def _read(self, paths: list[Path]) -> Iterator[tuple[str, str]]:
        """Every document with its split."""
        for path in paths:
            try:
                with path.open(encoding="utf-8") as file:
                    for text in map(str.strip, file):
                        if text:
                            yield self._split(text) if path == paths[0] else "test", text
            except UnicodeDecodeError as error:
                raise DataError(
                    f"Expected text in UTF-8, one document a line, in {path}, but it cannot be "
                    f"read ({one_line(error)}): save it as UTF-8."
                ) from error

    def _stream(self) -> Iterator[tuple[str, str]]:
        name, configuration, revision = self.dataset
        datasets = hub_datasets(f"The text of {name}")
        left: dict[str, int] = dict(zip(SPLITS, self.streamed_documents, strict=True))
        try:
            load = partial(
                datasets.load_dataset, name, configuration, revision=revision, streaming=True
            )
            for row in islice(load(split="validation"), left["test"]):
                yield "test", row["text"]
            for row in load(split="train"):
                split = self._split(row["text"])
                # One validation document too many is dropped: its like may have been kept.
                if left[split]:
                    left[split] -= 1
                    yield split, row["text"]
                if not left["train"]:
                    return
        # Whatever goes wrong on the way fails with almost any exception.
        except Exception as error:
            raise DownloadError(
                f"Cannot stream {name} ({type(error).__name__}: {one_line(error)}): connect to the "
                "network and try again, or set data.source to file or generated."
            ) from error

    def _split(self, text: str) -> str:
        return "val" if place(text, self.seed) < self.validation_share else "train"

    def _generate(self) -> Iterator[tuple[str, str]]:
        for split, size in zip(SPLITS, self.generated_size, strict=True):
            rng = Random(f"document {split} {self.seed}")
            for _ in range(size):
                yield split, generated_sentences.document(rng)


class MaskedBlocks(Dataset):
    """Blocks of a file of tokens, some of their words hidden: see TextCorpusDataModule.

    Args:
        path: the tokens, one after the other.
        max_length: T.
        share: of the words that are chosen.
        vocabulary: number of tokens.
        seed: of the choice.
        fixed: the choice is the same in every epoch.
        rows: which blocks; None for all.

    Attributes:
        epoch: that is read; told by the loader.
    """

    def __init__(
        self,
        path: Path,
        max_length: int,
        share: float,
        vocabulary: int,
        seed: int,
        fixed: bool,
        rows: Tensor | None = None,
    ):
        self.path, self.words, self.share = path, max_length - 2, share
        self.vocabulary = vocabulary
        self.seed, self.fixed, self.epoch = seed, fixed, 0
        blocks = path.stat().st_size // TOKEN.itemsize // self.words
        self.rows = torch.arange(blocks) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        # Read, not mapped: a process that loads is handed a path, however large the file.
        first = row * self.words * TOKEN.itemsize
        stretch = np.fromfile(self.path, TOKEN, self.words, offset=first).astype(np.int64)
        tokens = np.concatenate([[CLS], stretch, [SEP]])
        rng = np.random.default_rng([self.seed, 0 if self.fixed else 1 + self.epoch, row])
        seen, labels = map(torch.from_numpy, hide_words(tokens, self.share, self.vocabulary, rng))
        return {
            "tokens": seen,
            "token_types": torch.zeros_like(seen),
            "labels": labels,
            "idx": torch.tensor(row),
        }

    def index_select(self, rows: Tensor) -> "MaskedBlocks":
        """These blocks alone."""
        chosen = copy(self)
        chosen.rows = self.rows[rows]
        return chosen


def hide_words(
    tokens: np.ndarray, share: float, vocabulary: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What a model sees of tokens, int64 [T], and what it is to fill in, IGNORED where nothing.

    A share of the words, rounded and at least one, is chosen; of these 80 % become [MASK], 10 % a
    random word, and 10 % stay. Special tokens and unknown words are never chosen.

    Source: arXiv:1810.04805, section 3.1 and its code, which fixes the number of chosen words.
    """
    words = np.flatnonzero(tokens >= FIRST_WORD)
    chosen = rng.permutation(words)[: max(1, round(share * len(words)))]
    labels = np.full_like(tokens, IGNORED)
    labels[chosen] = tokens[chosen]
    seen, fate = tokens.copy(), rng.random(len(chosen))
    seen[chosen[fate < HIDDEN]] = MASK
    changed = chosen[(fate >= HIDDEN) & (fate < HIDDEN + RANDOM)]
    seen[changed] = rng.integers(FIRST_WORD, vocabulary, len(changed))
    return seen, labels
