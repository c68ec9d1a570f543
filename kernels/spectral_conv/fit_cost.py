"""Fits the cost model of the spectral convolution's forms on this machine and rewrites cost.json.

python -m kernels.spectral_conv.fit_cost      (or: make fit-costs)
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.cost import Amounts
from kernels.fitting import fit, median_seconds
from kernels.spectral_conv import Form, spectral_conv
from kernels.spectral_conv.cost import FORMS, PATH, amounts

SHAPES = (  # samples, channels, points, modes
    (16, 32, (256,), (16,)),
    (16, 32, (1024,), (16,)),
    (16, 32, (8192,), (16,)),
    (16, 32, (1024,), (64,)),
    (16, 32, (1023,), (128,)),
    (8, 32, (32, 32), (8, 8)),
    (4, 32, (64, 64), (12, 12)),
    (4, 64, (64, 64), (16, 16)),
    (4, 64, (64, 64), (24, 24)),
    (8, 32, (85, 85), (12, 12)),
    (8, 16, (127, 127), (12, 12)),
    (4, 64, (128, 128), (16, 16)),
    (4, 32, (128, 128), (32, 32)),
    (4, 32, (128, 128), (60, 60)),
    (2, 64, (256, 256), (16, 16)),
    (2, 16, (256, 256), (64, 64)),
    (2, 16, (32, 32, 32), (8, 8, 8)),
    (1, 16, (64, 64, 64), (8, 8, 8)),
    (1, 16, (64, 64, 48), (16, 16, 16)),
)


def measure(device: str, seconds_a_form: float = 0.5) -> Iterator[tuple[Amounts, float, str]]:
    """Amounts, measured median seconds, and what was measured, on a range of shapes.

    Depthwise, so that the products of the modes, which the forms share, hardly count.
    """
    for samples, channels, points, modes in SHAPES:
        x = torch.randn(samples, channels, *points, device=device, requires_grad=True)
        modes = tuple(2 * m for m in modes[:-1]) + modes[-1:]
        weight = torch.randn(*modes, 2, channels, device=device, requires_grad=True)
        for form in FORMS:

            def call(x: Tensor = x, weight: Tensor = weight, form: Form = form) -> object:
                y = spectral_conv(x, weight, form=form, backend="torch")
                return torch.autograd.grad(y, [x, weight], torch.ones_like(y))

            took = median_seconds(call, seconds_a_form)
            label = f"{samples} x {channels} x {points}, {modes}, {form}"
            yield amounts(samples * channels, points, modes, form), took, label


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fit(measure(device), device, PATH)
