"""Token sequences: laid end to end in a cache, padded or packed in a batch.

Shapes: B sequences; T tokens of the longest; N tokens of all of them together.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from datamodules.text.tokeniser import PAD

Sample = dict[str, Tensor]
IGNORED = -100
"""Label of a token that no loss is about."""
# Values of a sample with one entry a token, and what stands behind them where they are padded.
PER_TOKEN = {"tokens": PAD, "token_types": 0, "labels": IGNORED}


@dataclass
class Collate:
    """Joins samples to a batch.

    Args:
        packing: False gives tokens and token_types (and labels, where every token has one) of shape
            [B, T] with lengths [B]; True gives them as [1, N], one sequence after the other, with
            ptr [B + 1], where each begins, and N. Whatever else a sample has is stacked to [B].
    """

    packing: bool

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        batch = {}
        for name in samples[0]:
            values = [sample[name] for sample in samples]
            if name not in PER_TOKEN:
                batch[name] = torch.stack(values)
            elif self.packing:
                batch[name] = torch.cat(values).unsqueeze(0)
            else:
                batch[name] = pad_sequence(values, batch_first=True, padding_value=PER_TOKEN[name])
        lengths = torch.tensor([len(sample["tokens"]) for sample in samples])
        if self.packing:
            return batch | {"ptr": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])}
        return batch | {"lengths": lengths}


@dataclass
class TokenTable:
    """The labelled sequences of one split, end to end; what a cached file holds.

    Attributes:
        tokens: int16 [N], special ones included; the vocabulary has 30,522.
        starts: int64 [B + 1], where each begins.
        first: int64 [B], tokens of its first sentence, [CLS] and [SEP] included.
        label: int64 or float32 [B].
        idx: int64 [B], its number in the file it comes from.
        mismatched: bool [B], of MNLI's test set: from a genre that is not in the training set.
    """

    tokens: Tensor
    starts: Tensor
    first: Tensor
    label: Tensor
    idx: Tensor
    mismatched: Tensor

    @classmethod
    def of(cls, tokens: list[Tensor], label: Tensor, **columns: Tensor) -> Self:
        """Lay sequences end to end.

        Args:
            tokens: int16 [n] of each, special ones included.
            label: int64 or float32 [B].
            columns: others of the table; without them every sequence is one sentence, is numbered
                as it comes and is not mismatched.
        """
        lengths = torch.tensor([len(sequence) for sequence in tokens])
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        usual = {"first": lengths, "idx": torch.arange(len(tokens))}
        usual["mismatched"] = torch.zeros(len(tokens), dtype=torch.bool)
        return cls(torch.cat(tokens), starts, label=label, **usual | columns)

    def content(self) -> str:
        """SHA-256 of the sequences and their columns."""
        digest = hashlib.sha256()
        for name, tensor in sorted(vars(self).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


class LabelledSequences(Dataset):
    """Rows of a TokenTable: tokens and token_types int64 [n], label, idx and mismatched scalars."""

    def __init__(self, table: TokenTable, rows: Tensor | None = None):
        self.table = table
        self.rows = torch.arange(len(table.label)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        start, end = self.table.starts[row : row + 2].tolist()
        tokens = self.table.tokens[start:end].long()
        return {
            "tokens": tokens,
            "token_types": (torch.arange(len(tokens)) >= self.table.first[row]).long(),
            "label": self.table.label[row],
            "idx": self.table.idx[row],
            "mismatched": self.table.mismatched[row],
        }

    @property
    def lengths(self) -> Tensor:
        """int64 [len(self)]: tokens of each."""
        return self.table.starts.diff()[self.rows]

    def index_select(self, rows: Tensor) -> "LabelledSequences":
        """These rows alone."""
        return LabelledSequences(self.table, self.rows[rows])
