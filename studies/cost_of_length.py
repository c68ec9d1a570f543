"""Time and memory of a training step of an encoder of text, against the length of a sentence.

Dao & Gu, "Transformers are SSMs", arXiv:2405.21060: a state-space layer is linear in the length
where attention is quadratic. Scaled-dot-product attention in tiles keeps its memory linear too.
"""

import timeit
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from studies.training_memory import MIB, peak_bytes


def measure(
    encoder: Callable[[], nn.Module], lengths: Sequence[int], *, seed: int
) -> dict[str, dict]:
    """Seconds and peak memory of forward and backward pass on one sentence of every length.

    A length's first step tells its memory and warms up, the faster of two more its time.

    Args:
        encoder: makes a `lit_models.text.encoder.TextEncoder`.
        lengths: in tokens, rising, at least two.
        seed: of weights and tokens.

    Returns:
        {"test": …}: seconds_<length>, mib_<length>, and the slopes of the logarithm of both against
        that of the length from the third-longest on.
    """
    torch.manual_seed(seed)
    net = encoder()

    def step_at(length: int) -> Callable[[], None]:
        tokens = torch.randint(0, cast(int, net.vocabulary), (1, length))
        types, tokens_of_each = torch.zeros_like(tokens), torch.tensor([length])

        def step() -> None:
            net.zero_grad()
            net(tokens, types, tokens_of_each).sum().backward()

        return step

    return costs(step_at, lengths, lengths)


def costs(
    step_at: Callable[[int], Callable[[], None]], names: Sequence[int], amounts: Sequence[int]
) -> dict[str, dict]:
    """What `measure` returns, of any steps.

    Args:
        step_at: makes the step of a name.
        names: of the steps, such as lengths or sides.
        amounts: what slopes are taken against, rising, as many.
    """
    seconds, mib = [], []
    for name in names:
        step = step_at(name)
        mib.append(peak_bytes(step) / MIB)
        seconds.append(min(timeit.repeat(step, number=1, repeat=2)))
    test = {}
    for what, values in (("seconds", seconds), ("mib", mib)):
        test |= {f"{what}_{name}": value for name, value in zip(names, values, strict=True)}
        slope = np.polyfit(np.log(amounts[-3:]), np.log(values[-3:]), 1)[0]
        test[f"slope_{what}"] = float(slope)
    return {"test": test}
