"""The spectral convolution in vectorised torch: transforms of the kept modes alone, then products.

Two forms of the transform: `dft` by products with matrices of waves, `fft` by fast transforms that
drop what is not kept after every axis. Differentiable any number of times.

Shapes: B samples, C channels in, D out, N points and K kept modes of an axis, M of all axes, m of
the last one; P and Q what comes before and after an axis. A pair 2 is real, imaginary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.spectral_conv.basis import from_half, to_half, waves


def dense(x_BCN: Tensor, weight: Tensor, bias_D: Tensor | None, form: str) -> Tensor:
    """[B, D, *points] of a weight [*K, C, 2, D]."""
    modes = weight.shape[:-3]
    X_BC2M = forward_transform(x_BCN, modes, form)
    Y_M2BD = mix(X_BC2M.permute(3, 2, 0, 1), weight.flatten(0, -4))
    if bias_D is not None:
        Y_M2BD[constant_mode(modes), 0] += bias_D
    return inverse_transform(Y_M2BD.permute(2, 3, 1, 0), modes, x_BCN.shape[2:], form)


def depthwise(x_BCN: Tensor, weight: Tensor, bias_C: Tensor | None, form: str) -> Tensor:
    """[B, C, *points] of a weight [*K, 2, C]."""
    modes = weight.shape[:-2]
    re, im = forward_transform(x_BCN, modes, form).unbind(2)
    w_re, w_im = weight.flatten(0, -3).permute(1, 2, 0)
    Y_BC2M = torch.stack([re * w_re - im * w_im, re * w_im + im * w_re], dim=2)
    if bias_C is not None:
        Y_BC2M[:, :, 0, constant_mode(modes)] += bias_C
    return inverse_transform(Y_BC2M, modes, x_BCN.shape[2:], form)


def factorised(
    x_BCN: Tensor, weights: Sequence[Tensor], bias_D: Tensor | None, form: str
) -> Tensor:
    """[B, D, *points]: the sum of a one-dimensional convolution along each axis."""
    total = along(x_BCN, weights[0], bias_D, 0, form)
    for axis, weight in enumerate(weights[1:], start=1):
        total = total + along(x_BCN, weight, None, axis, form)
    return total


def along(x_BCN: Tensor, weight: Tensor, bias_D: Tensor | None, axis: int, form: str) -> Tensor:
    """[B, D, *points]: every line of points along an axis by itself, weight [m, C, 2, D].

    Nothing as large as the field is transposed: lines are transformed where they stand.
    """
    B, C, *points = x_BCN.shape
    m, D = weight.shape[0], weight.shape[-1]
    before, N, after = math.prod(points[:axis]), points[axis], math.prod(points[axis + 1 :])
    lines = x_BCN.reshape(B, C, before, N, after)
    like = (N, m, x_BCN.dtype, str(x_BCN.device))
    if form == "fft":
        spectrum = torch.fft.rfft(lines, dim=3, norm="forward").narrow(3, 0, m)
        X_m2R = torch.view_as_real(spectrum).permute(3, 5, 0, 2, 4, 1)
    else:
        pairs = _columns(to_half(*like).mT, lines.flatten(0, 2))
        X_m2R = pairs.view(B, C, before, 2, m, after).permute(4, 3, 0, 2, 5, 1)
    Y_m2R = mix(X_m2R.flatten(2, 4), weight).view(m, 2, B, before, after, D)
    if bias_D is not None:
        Y_m2R[0, 0] += bias_D
    if form == "fft":
        spectrum = torch.view_as_complex(Y_m2R.permute(2, 5, 3, 0, 4, 1).contiguous())
        y = torch.fft.irfft(spectrum, n=N, dim=3, norm="forward")
    else:
        pairs = Y_m2R.permute(2, 5, 3, 1, 0, 4).reshape(-1, 2 * m, after)
        y = _columns(from_half(*like).mT, pairs)
    return y.reshape(B, D, *points)


def _columns(matrix: Tensor, columns_PNA: Tensor) -> Tensor:
    """A matrix [K, N] times [P, N, A]: one product where A is 1."""
    if columns_PNA.shape[-1] == 1:
        return columns_PNA[..., 0] @ matrix.mT
    return torch.matmul(matrix, columns_PNA)


def mix(X_M2RC: Tensor, weight_MC2D: Tensor) -> Tensor:
    """Complex products Σ_c x_c w_cd of every mode and row: [M, 2, R, D]."""
    M, _, R, C = X_M2RC.shape
    D = weight_MC2D.shape[-1]
    rows = X_M2RC.reshape(M, 2 * R, C)
    products = torch.bmm(rows, weight_MC2D.reshape(M, C, 2 * D)).view(M, 2, R, 2, D)
    re = products[:, 0, :, 0] - products[:, 1, :, 1]
    im = products[:, 0, :, 1] + products[:, 1, :, 0]
    return torch.stack([re, im], dim=1)


def constant_mode(modes: Sequence[int]) -> int:
    """The number of the mode k = 0 among all, where a bias of the field stands."""
    at = 0
    for K in modes[:-1]:
        at = at * K + K // 2
    return at * modes[-1]


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
    cos_re, cos_im, sin_re, sin_im = (products[:, i, :, j] for i in (0, 1) for j in (0, 1))
    return cos_re, cos_im, sin_re, sin_im
