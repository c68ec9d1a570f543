"""Exponential time differencing, Runge–Kutta of fourth order, for v' = L v + N(v), L diagonal."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CONTOUR_POINTS = 32


class ETDRK4:
    """Steps of one length.

    The coefficients are φ functions of h L, which cancel badly near zero; they are means over a
    unit circle around every h L instead.

    Args:
        linear: L, real or complex, float64 or complex128, of a shape that broadcasts to v's.
        nonlinear: N, from and to tensors like v, complex128.
        step: h.

    Source: Cox and Matthews, J. Comput. Phys. 176 (2002) 430, eqs. 26–29; contour: Kassam and
    Trefethen, SIAM J. Sci. Comput. 26 (2005) 1214.
    """

    def __init__(self, linear: Tensor, nonlinear: Callable[[Tensor], Tensor], step: float):
        self.nonlinear = nonlinear
        self.real = not linear.is_complex()
        turn = (torch.arange(CONTOUR_POINTS, dtype=torch.float64) + 0.5) / CONTOUR_POINTS
        circle = torch.polar(torch.ones_like(turn), 2 * math.pi * turn).to(linear.device)

        def mean(function: Callable[[Tensor], Tensor], scale: float = 1.0) -> Tensor:
            total: Tensor | float = 0.0
            for point in circle:
                total = total + function(scale * step * linear + point)
            assert isinstance(total, Tensor)  # once there is a point
            return self._coefficient(total * (step / CONTOUR_POINTS))

        self.whole = self._coefficient(torch.exp(step * linear))
        self.half = self._coefficient(torch.exp(step / 2 * linear))
        self.stage = mean(lambda z: (z.exp() - 1) / z / 2, scale=0.5)
        self.first = mean(lambda z: (-4 - z + z.exp() * (4 - 3 * z + z**2)) / z**3)
        self.middle = mean(lambda z: 2 * (2 + z + z.exp() * (z - 2)) / z**3)
        self.last = mean(lambda z: (-4 - 3 * z - z**2 + z.exp() * (4 - z)) / z**3)

    def __call__(self, v: Tensor) -> Tensor:
        """v at t + h from v at t, complex128."""
        v0 = self._plain(v)
        n0 = self._evaluate(v0)
        decayed = self.half * v0
        a = torch.addcmul(decayed, self.stage, n0)
        na = self._evaluate(a)
        nb = self._evaluate(torch.addcmul(decayed, self.stage, na))
        c = (self.half * a).addcmul_(self.stage, nb.mul(2).sub_(n0))
        nc = self._evaluate(c)
        out = (self.whole * v0).addcmul_(self.first, n0)
        out.addcmul_(self.middle, na.add_(nb)).addcmul_(self.last, nc)
        return torch.view_as_complex(out) if self.real else out

    # With a real L everything but N is real arithmetic on pairs (re, im), twice as fast.

    def _coefficient(self, value: Tensor) -> Tensor:
        if not self.real:
            return value
        return torch.stack([value.real] * 2, dim=-1)

    def _plain(self, v: Tensor) -> Tensor:
        return torch.view_as_real(v.contiguous()) if self.real else v

    def _evaluate(self, v: Tensor) -> Tensor:
        return self._plain(self.nonlinear(torch.view_as_complex(v) if self.real else v))
