"""Tables of sequences that are no task of GLUE's."""

import torch

from datamodules.text.token_batches import LabelledSequences, TokenTable


def test_sequences_are_single_sentences_in_their_order_unless_columns_say_otherwise():
    tokens = [
        torch.tensor([101, 7, 102], dtype=torch.int16),
        torch.tensor([101], dtype=torch.int16),
    ]
    label = torch.tensor([1, 0])
    samples = LabelledSequences(TokenTable.of(tokens, label))
    assert [sample["tokens"].tolist() for sample in samples] == [[101, 7, 102], [101]]
    assert [sample["token_types"].tolist() for sample in samples] == [[0, 0, 0], [0]]
    assert [sample["label"].item() for sample in samples] == [1, 0]
    assert [sample["idx"].item() for sample in samples] == [0, 1]
    assert not any(sample["mismatched"] for sample in samples)
    table = TokenTable.of(tokens, label, first=torch.tensor([2, 1]), idx=torch.tensor([4, 5]))
    assert LabelledSequences(table)[0]["token_types"].tolist() == [0, 0, 1]
    assert table.idx.tolist() == [4, 5]
