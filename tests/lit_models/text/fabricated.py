"""Small encoders of text, one of each kind, and batches for them."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_models.module import LitModule, Optimisation
from lit_models.text.bag_of_words import BagOfWords
from lit_models.text.bert import Bert
from lit_models.text.chimera import ChimeraText
from lit_models.text.encoder import TextEncoder
from lit_models.text.fnet import FNet
from lit_models.text.hydra import HydraText
from lit_models.text.masked_lm import MaskedLM
from lit_models.text.mlp_mixer import MLPMixerText
from lit_models.text.tasks import MaskedLanguageModelling

VOCABULARY, WIDTH, LONGEST = 40, 16, 24
CHAIN = {"layers": 2, "state": 8, "head_dim": 8, "delta_range": (0.05, 0.5)}
ENCODERS = {
    "chimera": lambda **o: ChimeraText(**_small(CHAIN | o)),
    "hydra": lambda **o: HydraText(**_small(CHAIN | o)),
    "bert": lambda **o: Bert(**_small(_attention() | o)),
    "bert, convolved": lambda **o: _moved(Bert(**_small(_attention() | {"kernel": 7} | o))),
    "bert, no positions": lambda **o: Bert(**_small(_attention() | {"max_length": None} | o)),
    "chimera, positions": lambda **o: ChimeraText(**_small(CHAIN | {"max_length": LONGEST} | o)),
    "bag of words": lambda **o: BagOfWords(**_small({"layers": 2, "hidden": 32} | o)),
    "fnet": lambda **o: FNet(**_small({"layers": 2, "hidden": 32, "max_length": LONGEST} | o)),
    "mlp_mixer": lambda **o: MLPMixerText(
        **_small({"layers": 2, "hidden": 32, "token_hidden": 12, "max_length": LONGEST} | o)
    ),
}


def _small(options: dict) -> dict:
    return {"vocabulary": VOCABULARY, "width": WIDTH, "dropout": 0.0} | options


def _attention() -> dict:
    return {"layers": 2, "heads": 2, "hidden": 32, "max_length": LONGEST}


def _moved(net: TextEncoder) -> TextEncoder:
    """Its convolutions are no longer the identity."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "convs" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return net


def sentences_of(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Random tokens and, in the second half of each sentence, type 1."""
    return [
        (torch.randint(VOCABULARY, (n,)), (torch.arange(n) >= n // 2 + 1).long()) for n in sizes
    ]


def padded(sentences: list[tuple[Tensor, Tensor]], most: int | None = None) -> dict[str, Tensor]:
    """Arguments of an encoder; what stands behind a sentence is no zero."""
    sizes = [len(tokens) for tokens, _ in sentences]
    tokens = torch.full((len(sizes), most or max(sizes)), VOCABULARY - 1)
    types = torch.ones_like(tokens)
    for b, (words, kinds) in enumerate(sentences):
        tokens[b, : sizes[b]], types[b, : sizes[b]] = words, kinds
    return {"tokens": tokens, "token_types": types, "lengths": torch.tensor(sizes)}


def packed(sentences: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Arguments of an encoder, without padding."""
    tokens, types = (torch.cat(parts).unsqueeze(0) for parts in zip(*sentences, strict=True))
    sizes = [len(words) for words, _ in sentences]
    return {"tokens": tokens, "token_types": types, "ptr": torch.tensor([0, *sizes]).cumsum(0)}


def language_model(make: Callable[[], TextEncoder]) -> LitModule:
    """That fills in hidden words."""
    return LitModule(MaskedLanguageModelling(VOCABULARY), MaskedLM(make()), Optimisation())
