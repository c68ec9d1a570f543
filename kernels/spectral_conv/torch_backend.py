"""The spectral convolution in vectorised torch: transforms of the kept modes alone, then products.

Two forms of the transform: `dft` by products with matrices of waves, `fft` by fast transforms that
drop what is not kept after every axis. Differentiable any number of times.

Shapes: B samples, C channels in, D out, N points and K kept modes of an axis, M of all axes, m of
the last one; P and Q what comes before and after an axis. A pair 2 is real, imaginary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.spectral_conv.basis import from_half, to_half, waves


def dense(x_BCN: Tensor, weight: Tensor, bias_D: Tensor | None, form: str) -> Tensor:
    """[B, D, *points] of a weight [*K, C, 2, D]."""
    modes = weight.shape[:-3]
    X_BC2M = forward_transform(x_BCN, modes, form)
    Y_BD2M = mix(X_BC2M, weight.flatten(0, -4))
    return inverse_transform(with_bias(Y_BD2M, bias_D, modes), modes, x_BCN.shape[2:], form)


def depthwise(x_BCN: Tensor, weight: Tensor, bias_C: Tensor | None, form: str) -> Tensor:
    """[B, C, *points] of a weight [*K, 2, C]."""
    modes = weight.shape[:-2]
    re, im = forward_transform(x_BCN, modes, form).unbind(2)
    w_re, w_im = weight.flatten(0, -3).permute(1, 2, 0)
    Y_BC2M = torch.stack([re * w_re - im * w_im, re * w_im + im * w_re], dim=2)
    return inverse_transform(with_bias(Y_BC2M, bias_C, modes), modes, x_BCN.shape[2:], form)


def factorised(
    x_BCN: Tensor, weights: Sequence[Tensor], bias_D: Tensor | None, form: str
) -> Tensor:
    """[B, D, *points]: the sum of a one-dimensional convolution along each axis."""
    total: Tensor | None = None
    for axis, weight in enumerate(weights, start=2):
        lines = x_BCN.movedim(1, -1).movedim(axis - 1, -1)  # [B, other points, C, N]
        y = dense(lines.flatten(0, -3), weight, bias_D if total is None else None, form)
        y = y.unflatten(0, lines.shape[:-2]).movedim(-1, axis - 1).movedim(-1, 1)
        total = y if total is None else total + y
    assert total is not None
    return total


def mix(X_BC2M: Tensor, weight_MC2D: Tensor) -> Tensor:
    """Complex products Σ_c x_c w_cd of every mode: [B, D, 2, M]."""
    B, C, _, M = X_BC2M.shape
    D = weight_MC2D.shape[-1]
    rows = X_BC2M.permute(3, 2, 0, 1).reshape(M, 2 * B, C)
    products = torch.bmm(rows, weight_MC2D.reshape(M, C, 2 * D)).view(M, 2, B, 2, D)
    re = products[:, 0, :, 0] - products[:, 1, :, 1]
    im = products[:, 0, :, 1] + products[:, 1, :, 0]
    return torch.stack([re, im], dim=1).permute(2, 3, 1, 0)


def with_bias(Y_BD2M: Tensor, bias_D: Tensor | None, modes: Sequence[int]) -> Tensor:
    """A constant added to a field stands at the mode k = 0 alone."""
    if bias_D is None:
        return Y_BD2M
    at = 0
    for K in modes[:-1]:
        at = at * K + K // 2
    at = at * modes[-1]
    one = torch.zeros(2, Y_BD2M.shape[-1], dtype=Y_BD2M.dtype, device=Y_BD2M.device)
    one[0, at] = 1
    return torch.addcmul(Y_BD2M, bias_D[:, None, None], one)


def forward_transform(x_BCN: Tensor, modes: Sequence[int], form: str) -> Tensor:
    """Fourier coefficients [B, C, 2, M] of the kept modes of a real field."""
    if form == "fft":
        spectrum = torch.fft.rfft(x_BCN, norm="forward")[..., : modes[-1]]
        for axis in range(len(modes) - 2, -1, -1):
            spectrum = torch.fft.fft(spectrum, dim=2 + axis, norm="forward")
            half = modes[axis] // 2
            top = spectrum.shape[2 + axis] - half
            ends = spectrum.narrow(2 + axis, top, half), spectrum.narrow(2 + axis, 0, half)
            spectrum = torch.cat(ends, dim=2 + axis)
        return torch.view_as_real(spectrum.flatten(2)).transpose(2, 3)
    B, C, *points = x_BCN.shape
    like = (x_BCN.dtype, str(x_BCN.device))
    pairs = x_BCN.reshape(-1, points[-1]) @ to_half(points[-1], modes[-1], *like)
    done = modes[-1]
    for N, K in zip(reversed(points[:-1]), reversed(modes[:-1])):
        cos_re, cos_im, sin_re, sin_im = turn(
            pairs.view(-1, N, 2 * done), waves(N, K, False, *like) / N
        )
        pairs = torch.stack([cos_re + sin_im, cos_im - sin_re], dim=1)
        done *= K
    return pairs.view(B, C, 2, done)


def inverse_transform(
    Y_BD2M: Tensor, modes: Sequence[int], points: Sequence[int], form: str
) -> Tensor:
    """The real field [B, D, *points] whose coefficients at the kept modes are these."""
    B, D, _, M = Y_BD2M.shape
    if form == "fft":
        spectrum = torch.view_as_complex(Y_BD2M.transpose(2, 3).contiguous())
        spectrum = spectrum.view(B, D, *modes)
        for axis, N in enumerate(points[:-1]):
            half = modes[axis] // 2
            gap = list(spectrum.shape)
            gap[2 + axis] = N - 2 * half
            below, above = spectrum.split(half, dim=2 + axis)
            spectrum = torch.cat([above, spectrum.new_zeros(gap), below], dim=2 + axis)
            spectrum = torch.fft.ifft(spectrum, dim=2 + axis, norm="forward")
        return torch.fft.irfft(spectrum, n=points[-1], norm="forward")
    like = (Y_BD2M.dtype, str(Y_BD2M.device))
    pairs, left = Y_BD2M, M
    for N, K in zip(points[:-1], modes[:-1]):
        left //= K
        pairs = pairs.reshape(-1, 2, K, left).transpose(1, 2).reshape(-1, K, 2 * left)
        cos_re, cos_im, sin_re, sin_im = turn(pairs, waves(N, K, False, *like).mT)
        pairs = torch.stack([cos_re - sin_im, cos_im + sin_re], dim=2)
    field = pairs.reshape(-1, 2 * left) @ from_half(points[-1], left, *like)
    return field.view(B, D, *points)


def turn(pairs_PNQ: Tensor, waves_2KN: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines, then sines, times the real, then the imaginary parts of [P, N, 2 · Q]: [P, K, Q]."""
    P, N, columns = pairs_PNQ.shape
    products = torch.matmul(waves_2KN.reshape(-1, N), pairs_PNQ)
    products = products.view(P, 2, -1, 2, columns // 2)
    return tuple(products[:, i, :, j] for i in (0, 1) for j in (0, 1))
