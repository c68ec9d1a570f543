"""How large the weights of a transformer-like network begin."""

import math


def weight_scale(width: int) -> float:
    """Standard deviation with which weight matrices begin: BERT's .02 at its width of 768.

    At others it is such that features and attention's logits begin as large as there. With .02 at a
    width of 128, attention is all but even, and a short training ends before it is anything else.
    """
    return 0.02 * math.sqrt(768 / width)
