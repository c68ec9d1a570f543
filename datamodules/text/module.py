"""What data modules of text share: how it is batched, downloaded and split."""

import hashlib
from typing import Any

from datamodules.cached import CachedDataModule
from datamodules.errors import DataError
from datamodules.text.token_batches import Collate
from datamodules.text.tokeniser import VOCABULARY, words

MOST_VALIDATED = 2000
"""Samples beyond which a validation set costs time and tells no more."""


class TextDataModule(CachedDataModule):
    """Sequences of tokens, tokenised once and cached.

    Args:
        max_length: most tokens of a sequence, special ones included.
        packing: batches without padding, see `Collate`.
        vocabulary: number of tokens that are known, see `wordpiece`.
        cached: see CachedDataModule; `seed` is also of the choice of what validates.

    Attributes:
        words: the text of every token.

    Raises:
        DataError: too short a max_length, a package is not installed, and as CachedDataModule
            says.
    """

    def __init__(
        self,
        max_length: int = 128,
        packing: bool = False,
        vocabulary: int = VOCABULARY,
        **cached: Any,
    ):
        super().__init__(**cached)
        if max_length < 8:
            raise DataError(f"Expected at least 8 tokens, but data.max_length is {max_length}.")
        self.max_length, self.packing, self.vocabulary = max_length, packing, vocabulary
        self.collate = Collate(packing)

    @property
    def words(self) -> tuple[str, ...]:
        """The text of every token."""
        return words()[: self.vocabulary]


def place(text: str, seed: int) -> float:
    """A number in [0, 1) that chooses a split, evenly spread over texts, and equal for equal ones.

    So no text is in two splits, in whatever order and whichever file it comes.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=6, key=f"{seed}".encode()).digest()
    return int.from_bytes(digest, "big") / 2**48
