"""Spectral convolutions: products with learnt weights at the lowest Fourier modes of a field."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from kernels.backends import Backend, choose_backend, log_choice
from kernels.spectral_conv import torch_backend
from kernels.spectral_conv.cost import faster_form
from kernels.spectral_conv.reference import spectral_conv_reference

__all__ = ["spectral_conv", "spectral_conv_reference"]

Form = Literal["auto", "dft", "fft"]
Activation = Literal["gelu"]


def spectral_conv(
    x: Float[Tensor, "B C *points"],
    weight: Float[Tensor, "..."] | Sequence[Float[Tensor, "_ C 2 D"]],
    *,
    skip: Float[Tensor, "D C"] | None = None,
    bias: Float[Tensor, " D"] | None = None,
    activation: Activation | None = None,
    form: Form = "auto",
    backend: Backend = "auto",
) -> Float[Tensor, "B D *points"]:
    """Layer of a Fourier neural operator: y = activation(F⁻¹(W · F x) + skip x + bias).

    F takes a real field on d periodic axes to the Fourier coefficients of its lowest modes: on a
    leading axis with 2m kept modes the wavenumbers k = −m … m−1, on the last axis with m kept modes
    k = 0 … m−1, whose conjugates follow since the field is real; all others become zero. At k = 0
    along the last axis only the real part of the inverse transform along the others counts, as in
    `torch.fft.irfftn`. F is normed by 1 / points, so that the same weights are the same operator at
    every resolution. Numbers below float32 are computed in float32 and the result has x's dtype.
    The torch backend may be differentiated any number of times, the Triton kernels once.

    Args:
        x: [B, C, *points], one to three periodic axes of any sizes.
        weight: real and imaginary parts of W at every kept mode: dense [*K, C, 2, D], depthwise
            [*K, 2, C] (D = C), K = (2m₁, …, m_d); or, factorised by axis, a sequence of d
            tensors [m, C, 2, D], the sum of a one-dimensional convolution along each axis.
        skip: [D, C] of a 1 × 1 convolution of x that is added.
        bias: [D].
        activation: `gelu` (exact, by erf) or None.
        form: `dft` (matrix products with the kept waves) or `fft`, which the Triton kernels do not
            have; `auto` takes theirs, and in torch the one that `cost.py` expects to be faster.
        backend: `triton` (kernels for a GPU; dense or depthwise, no float64), `torch` (vectorised,
            any device), `reference` (float64 textbook), or `auto`, which is `triton` on a GPU
            wherever it can be, else `torch`; the choice is logged once.

    Returns:
        [B, D, *points].

    Raises:
        ValueError: shapes, form, activation or backend do not fit, or an axis has fewer than 2m
            points.

    Source: Li et al., "Fourier Neural Operator for Parametric PDEs", arXiv:2010.08895; factorised:
    Tran et al., "Factorized Fourier Neural Operators", arXiv:2111.13802.
    """
    joint = isinstance(weight, Tensor)
    weights = (weight,) if joint else tuple(weight)
    outputs = _check(x, weights, joint, skip, bias)
    if activation not in (None, "gelu"):
        raise ValueError(f"activation must be 'gelu' or None, got {activation!r}.")
    if form not in ("auto", "dft", "fft"):
        raise ValueError(f"form must be 'auto', 'dft' or 'fft', got {form!r}.")
    able = joint and form != "fft"
    backend = choose_backend(
        backend, (*weights, x), able, "dense and depthwise weights, in form='dft'"
    )
    if not x.numel():
        return x.new_zeros(x.shape[0], outputs, *x.shape[2:])
    if backend == "reference":
        return spectral_conv_reference(x, weight, skip, bias, activation).to(x.dtype)
    if backend == "triton":
        from kernels.spectral_conv import triton_backend  # where there is Triton

        log_choice("spectral_conv", backend, "dft form", x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            return triton_backend.convolution(x, weights[0], skip, bias, activation is not None)
    if form == "auto":
        kept = weight.shape[: x.ndim - 2] if joint else [len(w) for w in weights]
        form = faster_form(x.shape, kept, joint, x.device.type)
    log_choice("spectral_conv", backend, f"{form} form", x.device.type)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        given = x.to(dtype)
        weights = tuple(w.to(dtype) for w in weights)
        bias = None if bias is None else bias.to(dtype)
        if not joint:
            y = torch_backend.factorised(given, weights, bias, form)
        elif weight.ndim == x.ndim + 1:
            y = torch_backend.dense(given, weights[0], bias, form)
        else:
            y = torch_backend.depthwise(given, weights[0], bias, form)
        if skip is not None:
            skip = skip.to(dtype).expand(len(x), -1, -1)
            y = torch.baddbmm(y.flatten(2), skip, given.flatten(2)).view_as(y)
        return (y if activation is None else F.gelu(y)).to(x.dtype)


def _check(
    x: Tensor,
    weights: tuple[Tensor, ...],
    joint: bool,
    skip: Tensor | None,
    bias: Tensor | None,
) -> int:
    """The number of output channels, once all shapes fit."""
    axes, points, channels = x.ndim - 2, x.shape[2:], x.shape[1]
    if not 1 <= axes <= 3:
        raise ValueError(f"x must be [B, C, *points] with one to three axes, got {list(x.shape)}.")
    shapes = [list(w.shape) for w in weights]
    dense = all(w.ndim == (axes + 3 if joint else 4) for w in weights)
    depthwise = joint and weights[0].ndim == axes + 2
    pairs = all(s[-2] == 2 for s in shapes if len(s) > 1)
    fits = all(s[-3] == channels for s in shapes) if dense else shapes[0][-1:] == [channels]
    if not (dense or depthwise) or not (joint or len(weights) == axes) or not pairs or not fits:
        raise ValueError(
            f"With x of shape {list(x.shape)} a weight is [{axes} mode axes, {channels}, 2, D], "
            f"depthwise [{axes} mode axes, 2, {channels}], or a sequence of {axes} tensors "
            f"[modes, {channels}, 2, D], got {shapes[0] if joint else shapes}."
        )
    modes = shapes[0][:axes] if joint else [s[0] for s in shapes]
    halves = [K if axis == axes - 1 or not joint else K / 2 for axis, K in enumerate(modes)]
    for axis, (half, N) in enumerate(zip(halves, points)):
        if half != int(half) or not 1 <= half <= N // 2:
            raise ValueError(
                f"Axis {axis} of {N} points can keep m = 1 … {N // 2} modes, 2m of a leading axis "
                f"and m of the last or of a factorised one, got {modes[axis]}: keep fewer modes or "
                "take more points."
            )
    outputs = shapes[0][-1]
    if any(s[-1] != outputs for s in shapes):
        raise ValueError(f"The weights of all axes must have as many outputs, got {shapes}.")
    if skip is not None and skip.shape != (outputs, channels):
        raise ValueError(f"skip must be [{outputs}, {channels}], got {list(skip.shape)}.")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias must be [{outputs}], got {list(bias.shape)}.")
    return outputs
