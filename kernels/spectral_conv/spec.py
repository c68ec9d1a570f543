"""The spectral convolution as an op: its reference, forms, test inputs and peers."""

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor

from kernels.spec import Inputs, OpSpec
from kernels.spectral_conv import peers, spectral_conv, spectral_conv_reference


def make(
    shape: tuple[int, int, int],
    points: tuple[int, ...],
    modes: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    kind: str = "dense",
    parts: tuple[str, ...] = ("skip", "bias", "gelu"),
) -> Inputs:
    """A random field and weights under which it keeps its size.

    Args:
        shape: samples, channels in, channels out.
        points: of every axis.
        modes: m of every axis.
        kind: `dense`, `depthwise` or `factorised`, whose weights go by weight_1, weight_2, ….
        parts: what follows the convolution.
    """
    generator = torch.Generator().manual_seed(seed)
    B, C, D = shape

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    tensors = {"x": normal(B, C, *points)}
    if kind == "factorised":
        for axis, (N, m) in enumerate(zip(points, modes, strict=True), start=1):
            tensors[f"weight_{axis}"] = normal(m, C, 2, D, scale=(N / m / C) ** 0.5)
    else:
        kept = (*(2 * m for m in modes[:-1]), modes[-1])
        mixed = C if kind == "dense" else 1
        channels = (C, 2, D) if kind == "dense" else (2, C)
        scale = (prod(points) / prod(kept) / mixed) ** 0.5
        tensors["weight"] = normal(*kept, *channels, scale=scale)
    if "skip" in parts:
        tensors["skip"] = normal(D, C, scale=C**-0.5)
    if "bias" in parts:
        tensors["bias"] = normal(D)
    return tensors | ({"activation": "gelu"} if "gelu" in parts else {})


def by_axis(
    function: Callable,
    x: Tensor,
    weight_1: Tensor,
    weight_2: Tensor | None = None,
    weight_3: Tensor | None = None,
    **options,
) -> Tensor:
    """The op or its reference, with every axis's weight by a name of its own."""
    weights = [w for w in (weight_1, weight_2, weight_3) if w is not None]
    return function(x, weights, **options)


def flop(x: Tensor, weight: Tensor, skip: Tensor | None = None, **_) -> tuple[int, int]:
    """Of the transforms as matrix products, the products of the modes and the 1 × 1 convolution."""
    (B, C), points = x.shape[:2], x.shape[2:]
    modes, D = weight.shape[: len(points)], weight.shape[-1]
    transform = 4 * prod(points) * modes[-1]  # of a channel
    for axis in range(len(points) - 1):
        transform += 8 * prod(points[: axis + 1]) * prod(modes[axis:])
    mixed = 8 * B * prod(modes) * (C * D if weight.ndim == x.ndim + 1 else C)
    skipped = 0 if skip is None else 2 * B * C * D * prod(points)
    transforms = B * (C + D) * transform
    return transforms + mixed + skipped, transforms + 2 * (mixed + skipped)


ALONE = {"parts": ()}
CASES = {
    "line": partial(make, (2, 3, 5), (17,), (4,)),
    "line, every mode": partial(make, (2, 3, 3), (16,), (8,)),
    "line of several tiles": partial(make, (1, 3, 2), (70,), (33,)),
    "many lines": partial(make, (6, 3, 2), (6,), (2,)),
    "plane": partial(make, (2, 3, 5), (9, 11), (2, 3)),
    "plane, even": partial(make, (2, 3, 4), (8, 12), (2, 3), **ALONE),
    "plane, Nyquist": partial(make, (2, 3, 2), (4, 6), (2, 3)),
    "plane, least modes": partial(make, (3, 2, 3), (2, 2), (1, 1)),
    "plane, one sample and channel": partial(make, (1, 1, 1), (7, 10), (2, 2)),
    "plane of several tiles": partial(make, (1, 2, 3), (70, 34), (1, 2)),
    "plane, many modes": partial(make, (1, 1, 1), (68, 5), (33, 1)),
    "plane, many channels": partial(make, (2, 36, 66), (4, 5), (1, 2)),
    "plane, skip": partial(make, (2, 3, 5), (9, 10), (2, 2), parts=("skip",)),
    "plane, bias": partial(make, (2, 3, 5), (9, 10), (2, 2), parts=("bias",)),
    "plane, GELU": partial(make, (2, 3, 5), (9, 10), (2, 2), parts=("gelu",)),
    "box": partial(make, (2, 2, 3), (4, 5, 6), (1, 2, 2)),
    "box, alone": partial(make, (1, 1, 2), (5, 4, 3), (2, 2, 1), **ALONE),
}

SHAPES = [(4, 64, 64, 16), (4, 64, 128, 16), (2, 64, 256, 16), (4, 32, 64, 12)]
SHAPES += [(4, 64, 64, 12), (4, 64, 128, 32)]
if torch.cuda.is_available():
    SHAPES += [(16, 64, 128, 16)]


def square(B: int, C: int, N: int, m: int, **options):
    """A benchmark on N² points with 2m × m modes."""
    return partial(make, (B, C, C), (N, N), (m, m), **options)


SPECTRAL_CONV = OpSpec(
    name="spectral_conv",
    function=spectral_conv,
    reference=spectral_conv_reference,
    differentiable=("x", "weight", "skip", "bias"),
    variants={"dft": {"form": "dft"}, "fft": {"form": "fft"}},
    gpu_variants={"triton": {"backend": "triton"}},
    cases=CASES,
    benchmarks={
        **{f"{B} x {C} x {N}², {m} modes": square(B, C, N, m, **ALONE) for B, C, N, m in SHAPES},
        **{f"layer, {B} x {C} x {N}², {m} modes": square(B, C, N, m) for B, C, N, m in SHAPES},
    },
    peers={"neuraloperator": peers.neuraloperator, "torch.fft": peers.fft},
    gpu_peers={},
    flop=flop,
)

DEPTHWISE = OpSpec(
    name="spectral_conv",
    function=spectral_conv,
    reference=spectral_conv_reference,
    differentiable=SPECTRAL_CONV.differentiable,
    variants=SPECTRAL_CONV.variants,
    gpu_variants=SPECTRAL_CONV.gpu_variants,
    cases={
        "line": partial(make, (2, 3, 3), (17,), (4,), kind="depthwise"),
        "plane": partial(make, (2, 5, 5), (9, 11), (2, 3), kind="depthwise"),
        "plane, alone": partial(make, (2, 3, 3), (4, 6), (2, 3), kind="depthwise", **ALONE),
        "box": partial(make, (2, 2, 2), (4, 5, 6), (1, 2, 2), kind="depthwise"),
    },
    benchmarks={
        f"depthwise, {B} x {C} x {N}², {m} modes": square(B, C, N, m, kind="depthwise")
        for B, C, N, m in SHAPES[:2]
    },
    peers={},
    gpu_peers={},
    flop=flop,
)

FACTORISED = OpSpec(
    name="spectral_conv",
    function=partial(by_axis, spectral_conv),
    reference=partial(by_axis, spectral_conv_reference),
    differentiable=("x", "weight_1", "weight_2", "weight_3", "skip", "bias"),
    variants=SPECTRAL_CONV.variants,
    gpu_variants={},
    cases={
        "line": partial(make, (2, 3, 5), (17,), (4,), kind="factorised"),
        "plane": partial(make, (2, 3, 5), (9, 11), (2, 3), kind="factorised"),
        "plane, alone": partial(make, (2, 3, 3), (8, 12), (4, 6), kind="factorised", **ALONE),
        "box": partial(make, (2, 2, 3), (4, 5, 6), (2, 1, 3), kind="factorised"),
    },
    benchmarks={},
    peers={},
    gpu_peers={},
    flop=flop,
)
