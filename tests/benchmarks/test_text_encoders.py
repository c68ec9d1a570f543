"""Layers that mix text, of equal size, against the length of a sentence; on a GPU if any."""

from collections.abc import Callable

import pytest
import torch

from lit_models.text.bert import Bert
from lit_models.text.chimera import ChimeraText
from lit_models.text.hydra import HydraText
from tests.benchmarks.timing import compare
from tests.kernels.comparing import DEVICE

pytestmark = pytest.mark.timeout(1800)

GREEN = ("lit_models/text/test_chimera.py", "lit_models/text/test_hydra.py")
GREEN += ("lit_models/text/test_bert.py", "kernels/chain/test_decaying_chains.py")
SENTENCES = 8
LENGTHS = (512, 2048, 4096, 8192, 16384)
LONGEST_WITH_EIGHT = 2048 if DEVICE == "cpu" else LENGTHS[-1]
# Two mixing layers stand for attention and its feed-forward network.
LAYERS = {
    "two Chimera layers": (ChimeraText, {"layers": 2}),
    "two Hydra layers": (HydraText, {"layers": 2}),
    "a BERT layer": (Bert, {"layers": 1, "max_length": None}),
}


def step(encoder: torch.nn.Module, sentences: int, length: int) -> Callable[[], None]:
    """Forward and backward pass from tokens to features, on a GPU in mixed precision."""
    tokens = torch.randint(0, encoder.vocabulary, (sentences, length), device=DEVICE)
    types, lengths = torch.zeros_like(tokens), torch.full((sentences,), length)

    def run() -> None:
        encoder.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            features = encoder(tokens, types, lengths)
        features.sum().backward()

    return run


@pytest.mark.parametrize("length", LENGTHS)
def test_layers_of_equal_size(green, record, length):
    """Width 768; a batch of 8, on a CPU of one where the sentences are longer than 2,048."""
    green(*GREEN)
    sentences = SENTENCES if length <= LONGEST_WITH_EIGHT else 1
    encoders = {
        name: encoder(vocabulary=100, dropout=0.0, **options).to(DEVICE)
        for name, (encoder, options) in LAYERS.items()
    }
    parameters = {
        name: sum(p.numel() for p in encoder.parameters()) for name, encoder in encoders.items()
    }
    times = compare(
        {name: step(encoder, sentences, length) for name, encoder in encoders.items()},
        rounds=11 if DEVICE == "cuda" else 3,
    )
    result = {"sentences": sentences, "length": length, "parameters": parameters, "times": times}
    record(f"layers of text, {length} tokens", result)
