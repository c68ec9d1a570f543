"""The spectral convolution as an op of its own, forward and backward, from the kernels beside it.

The adjoint of the transform to modes is the way back with another table of waves, and the other way
round, so both passes launch the same kernels. Kept for the backward pass: the spectrum of x, a few
percent of it; x itself only where a skip needs its gradient; and what enters the GELU. To compute
that anew would read x once, as keeping it writes it once, and would do all products again.
"""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from kernels.spectral_conv.basis import from_half, to_half
from kernels.spectral_conv.triton_backend.products import complex_product
from kernels.spectral_conv.triton_backend.transforms import to_field, to_spectrum


def convolution(
    x: Float[Tensor, "B C *points"],
    weight: Float[Tensor, "..."],
    skip: Float[Tensor, "D C"] | None,
    bias: Float[Tensor, " D"] | None,
    gelu: bool,
) -> Float[Tensor, "B D *points"]:
    """`kernels.spectral_conv`, which checks, of a dense or depthwise weight.

    Args:
        x: [B, C, *points] in float32, bfloat16 or float16, from which y has its dtype.
        weight: dense [*K, C, 2, D] or depthwise [*K, 2, C].
        skip: [D, C] or None.
        bias: [D] or None.
        gelu: whether y goes through a GELU.

    Returns:
        [B, D, *points]; sums are in float32.

    Source: Li et al., arXiv:2010.08895, with the truncated transforms as matrix products.
    """
    given = [t for t in (x, weight, skip, bias) if t is not None]
    keep = gelu and torch.is_grad_enabled() and any(t.requires_grad for t in given)
    return _convolution(x, weight, skip, bias, gelu, keep)[0]


@torch.library.custom_op("resolvent::spectral_conv", mutates_args=())
def _convolution(
    x: Tensor, weight: Tensor, skip: Tensor | None, bias: Tensor | None, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the spectrum of x, and what enters the GELU, if it is to be kept."""
    x, weight = x.contiguous(), weight.contiguous()
    points, modes = x.shape[2:], _modes(x, weight)
    like = (torch.float32, str(x.device))
    X = to_spectrum(x, modes, to_half(points[-1], modes[-1], *like).T, 1 / prod(points[:-1]))
    Y = _mix(X, weight)
    y, before = _outputs(x, weight, keep)
    to_field(
        Y,
        from_half(points[-1], modes[-1], *like),
        1.0,
        y,
        x=None if skip is None else x,
        skip=skip,
        bias=None if bias is None else bias.contiguous(),
        before=before if keep else None,
        gelu=gelu,
    )
    return y, X, before


@_convolution.register_fake
def _(x, weight, skip, bias, gelu, keep):
    y, before = _outputs(x, weight, keep)
    return y, x.new_empty(2, len(x), *_modes(x, weight), x.shape[1], dtype=torch.float32), before


@torch.library.custom_op("resolvent::spectral_conv_backward", mutates_args=())
def _convolution_backward(
    dY: Tensor,
    x: Tensor | None,
    weight: Tensor,
    skip: Tensor | None,
    bias: Tensor | None,
    X: Tensor,
    before: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, skip and bias; empty for a skip or bias that is not there."""
    dY, weight = dY.contiguous(), weight.contiguous()
    points, modes = dY.shape[2:], _modes(dY, weight)
    like = (torch.float32, str(dY.device))
    dx, dw, d_skip, d_bias = _gradients(dY, weight, skip, bias)
    dZ = torch.empty_like(dY) if gelu and skip is not None else dY
    table = from_half(points[-1], modes[-1], *like)
    kept = {"before": before, "kept": None if dZ is dY else dZ} if gelu else {}
    G = to_spectrum(dY, modes, table, 1.0, **kept)
    _mixed_weights(X, G, dw)
    to_field(
        _mix(G, weight, adjoint=True),
        to_half(points[-1], modes[-1], *like).T,
        1 / prod(points[:-1]),
        dx,
        x=None if skip is None else dZ,
        skip=None if skip is None else skip.T,
    )
    if skip is not None:
        assert x is not None  # kept for this, see _save
        of_samples = torch.bmm(dZ.flatten(2), x.contiguous().flatten(2).mT)
        d_skip = of_samples.sum(0, dtype=torch.float32).to(skip.dtype)
    if bias is not None:
        centre = tuple(K // 2 for K in modes[:-1])  # the mode k = 0, a sum over all points
        d_bias = G[0][(slice(None), *centre, 0)].sum(0).to(bias.dtype)
    return dx, dw, d_skip, d_bias


@_convolution_backward.register_fake
def _(dY, x, weight, skip, bias, X, before, gelu):
    return _gradients(dY, weight, skip, bias)


def _save(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weight, skip, bias, gelu, _ = inputs
    ctx.save_for_backward(None if skip is None else x, weight, skip, bias, *output[1:])
    ctx.gelu = gelu
    ctx.set_materialize_grads(False)  # nobody asks for gradients of what is kept


def _differentiate(ctx, dY: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    refuse_second_derivatives()
    dx, dw, d_skip, d_bias = _convolution_backward(dY, *ctx.saved_tensors, ctx.gelu)
    skip, bias = ctx.saved_tensors[2:4]
    without = (None if skip is None else d_skip, None if bias is None else d_bias)
    return dx, dw, *without, None, None


_convolution.register_autograd(_differentiate, setup_context=_save)


def _modes(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Kept on every axis."""
    return tuple(weight.shape[: x.ndim - 2])


def _outputs(x: Tensor, weight: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    y = x.new_empty(len(x), weight.shape[-1], *x.shape[2:])
    return y, torch.empty_like(y) if keep else x.new_empty(0)


def _gradients(
    dY: Tensor, weight: Tensor, skip: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    channels = weight.shape[-1] if weight.ndim == dY.ndim else weight.shape[-3]
    dx = dY.new_empty(len(dY), channels, *dY.shape[2:])
    others = (dY.new_empty(0) if t is None else t.new_empty(t.shape) for t in (skip, bias))
    return dx, weight.new_empty(weight.shape), *others


def _mix(spectrum: Tensor, weight: Tensor, *, adjoint: bool = False) -> Tensor:
    """W of every mode times a spectrum [2, B, *K, C], or its adjoint."""
    modes = spectrum.shape[2:-1]
    if weight.ndim == len(modes) + 2:
        w = _complex(weight.movedim(-2, 0))
        mixed = _complex(spectrum) * (w.conj() if adjoint else w)
        return torch.stack([mixed.real, mixed.imag])
    w = weight.reshape(prod(modes), *weight.shape[-3:]).permute(2, 0, 1, 3)  # [2, M, C, D]
    w = w.mT if adjoint else w
    mixed = spectrum.new_empty(*spectrum.shape[:-1], w.shape[-1])
    complex_product(_by_mode(spectrum), w, _by_mode(mixed), conj_B=adjoint)
    return mixed


def _mixed_weights(X: Tensor, G: Tensor, dw: Tensor) -> None:
    """Write the gradient of the weight from the spectrum that it mixes and that of the gradient."""
    if dw.ndim == X.ndim - 1:
        of_modes = (_complex(X).conj() * _complex(G)).sum(0)
        dw.copy_(torch.stack([of_modes.real, of_modes.imag], dim=-2))
        return
    out = dw.view(-1, *dw.shape[-3:]).permute(2, 0, 1, 3)
    complex_product(_by_mode(X).mT, _by_mode(G), out, conj_A=True)


def _by_mode(spectrum: Tensor) -> Tensor:
    """[2, B, *K, C] as [2, M, B, C]."""
    return spectrum.flatten(2, -2).transpose(1, 2)


def _complex(pairs: Tensor) -> Tensor:
    """Real, then imaginary parts along the first axis."""
    return torch.complex(pairs[0].float(), pairs[1].float())
