"""Padding, packing, and a convolution that no sentence shares with its neighbour."""

import pytest
import torch
from torch.nn import functional as F

from lit_models.layers.sentences import DepthwiseConv, Sentences

RAGGED = (3, 1, 4)


def test_padding_by_hand():
    x = torch.arange(1, 9)
    rows = torch.tensor([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [5, 6, 7, 8, 0]])
    assert torch.equal(Sentences(RAGGED).pad(x, 5), rows)
    assert torch.equal(Sentences(RAGGED).pad(x), rows[:, :4])
    assert torch.equal(Sentences(RAGGED).unpad(rows), x)
    assert Sentences(RAGGED).firsts == [0, 3, 4]


def test_equal_sentences_are_a_rectangle_and_may_be_padded_more():
    x = torch.arange(1, 7)
    assert torch.equal(Sentences((3, 3)).pad(x), x.view(2, 3))
    rows = Sentences((3, 3)).pad(x, 4)
    assert torch.equal(rows, torch.tensor([[1, 2, 3, 0], [4, 5, 6, 0]]))
    assert torch.equal(Sentences((3, 3)).unpad(rows), x)


def test_lengths_and_offsets_say_the_same():
    tokens = torch.zeros(3, 5, dtype=torch.long)
    assert Sentences.of(tokens, torch.tensor(RAGGED)) == Sentences(RAGGED)
    packed = torch.zeros(1, 8, dtype=torch.long)
    assert Sentences.of(packed, ptr=torch.tensor([0, 3, 4, 8])) == Sentences(RAGGED)


@pytest.mark.parametrize("lengths", [[3, 1], [3, 0, 4], [3, 1, 6]])
def test_lengths_that_do_not_fit(lengths):
    tokens = torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="need 3 lengths from 1 to 5, got"):
        Sentences.of(tokens, torch.tensor(lengths))


@pytest.mark.parametrize("ptr", [[0, 3, 3, 8], [0, 3, 7], [1, 3, 8], [0]])
def test_offsets_that_do_not_fit(ptr):
    with pytest.raises(ValueError, match="ptr rises from 0 to total, got"):
        Sentences.of(torch.zeros(1, 8, dtype=torch.long), ptr=torch.tensor(ptr))


def test_one_of_lengths_and_offsets_is_needed():
    tokens = torch.zeros(1, 8, dtype=torch.long)
    for both in ({}, {"lengths": torch.tensor([8]), "ptr": torch.tensor([0, 8])}):
        with pytest.raises(ValueError, match="either lengths or ptr"):
            Sentences.of(tokens, **both)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("sizes", [RAGGED, (5, 5), (9,), (1, 1)])
def test_a_convolution_sees_its_sentence_alone(sizes, kernel):
    conv = DepthwiseConv(6, kernel)
    x = torch.randn(sum(sizes), 6, requires_grad=True)
    alone = [
        F.conv1d(part.mT[None], conv.weight, conv.bias, padding=kernel // 2, groups=6)[0].mT
        for part in x.split(sizes)
    ]
    found, expected = conv(x, Sentences(sizes)), torch.cat(alone)
    torch.testing.assert_close(found, expected)
    dy = torch.randn_like(found)
    inputs = [x, conv.weight, conv.bias]
    pairs = (torch.autograd.grad(y, inputs, dy) for y in (found, expected))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_filter_has_a_middle():
    with pytest.raises(ValueError, match="an odd number, got 4"):
        DepthwiseConv(6, 4)
