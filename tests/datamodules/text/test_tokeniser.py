"""BERT's WordPiece against numbers that its papers' code gives."""

import pytest

from datamodules.errors import DataError
from datamodules.text import tokeniser
from datamodules.text.tokeniser import (
    CLS,
    FIRST_WORD,
    MASK,
    PAD,
    SEP,
    UNK,
    VOCABULARY,
    wordpiece,
    words,
)


def test_the_vocabulary_is_that_of_bert():
    special = {PAD: "[PAD]", UNK: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
    assert len(words()) == len(set(words())) == VOCABULARY
    assert all(words()[token] == text for token, text in special.items())
    assert words()[FIRST_WORD] == "!"
    assert all(word.startswith("[") for word in words()[:FIRST_WORD])


def test_a_sentence_and_a_pair():
    assert wordpiece().encode("Hello, World!").ids == [CLS, 7592, 1010, 2088, 999, SEP]
    pair = wordpiece().encode("unaffable café", "hello")
    assert pair.tokens == ["[CLS]", "una", "##ffa", "##ble", "cafe", "[SEP]", "hello", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 0, 0, 0, 1, 1]


def test_a_text_cannot_say_a_special_token():
    assert MASK not in wordpiece().encode("[MASK] [SEP]", add_special_tokens=False).ids
    assert SEP not in wordpiece().encode("[MASK] [SEP]", add_special_tokens=False).ids


def test_the_longer_sentence_of_a_pair_is_cut():
    pair = wordpiece(8).encode("a b c d e f g", "h i")
    assert pair.tokens == ["[CLS]", "a", "b", "c", "[SEP]", "h", "i", "[SEP]"]
    assert wordpiece(4).encode("a b c d").tokens == ["[CLS]", "a", "b", "[SEP]"]


def test_rarer_words_of_a_smaller_vocabulary_fall_into_parts():
    small = wordpiece(vocabulary=8192)
    text = "the unaffable captain of a frigate, 1848"
    tokens = small.encode(text, add_special_tokens=False)
    assert max(tokens.ids) < 8192
    assert UNK not in tokens.ids
    assert len(tokens.ids) > len(wordpiece().encode(text, add_special_tokens=False).ids)
    whole = "".join(token.removeprefix("##") for token in tokens.tokens)
    assert whole == text.replace(" ", "")
    for size in (1000, 40_000):
        with pytest.raises(DataError, match="a vocabulary of 2100 to 30522"):
            wordpiece(vocabulary=size)


def test_a_package_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(tokeniser, "PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"not installed: pip install '\.\[language\]'"):
        tokeniser.vocabulary_file()
