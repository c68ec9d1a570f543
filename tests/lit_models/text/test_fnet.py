"""FNet's mixing against the two matrices of its definition."""

import math

import torch

from lit_models.layers.sentences import Sentences
from lit_models.text.fnet import FourierMixing


def transform(n: int) -> torch.Tensor:
    """The matrix of the discrete Fourier transform."""
    k = torch.arange(n, dtype=torch.float64)
    return torch.polar(torch.ones(n, n).double(), -2 * math.pi / n * k[:, None] * k)


def test_it_is_the_real_part_of_two_transforms():
    sizes = (5, 3, 5, 1)
    x = torch.randn(sum(sizes), 6)
    expected = [
        (transform(len(part)) @ part.to(torch.complex128) @ transform(6)).real.float()
        for part in x.split(sizes)
    ]
    torch.testing.assert_close(
        FourierMixing()(x, Sentences(sizes)), torch.cat(expected), rtol=1e-5, atol=1e-5
    )
