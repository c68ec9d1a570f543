"""A diagonal state-space layer along time.

Shapes: R sequences, T steps, H channels, P pairs of conjugate poles a channel; complex numbers are
pairs of real ones, 2 = real, imaginary.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Discretisation = Literal["zoh", "bilinear"]
Poles = Literal["lin", "inv"]
LONGEST_PRODUCT = 128  # steps up to which a convolution is a product with a triangular matrix


class S4D(nn.Module):
    """x' = A x + u, y = Re(C x) + D u for every channel, A diagonal, sampled with a learnt step.

    Whole sequences are convolved with the layer's impulse response; with the state that they leave
    behind a sequence goes on, a step or many at a time, to the same outputs without its past.

    Args:
        channels: H, each with a system of its own.
        state: real size 2P of a channel's state.
        discretisation: `zoh` holds inputs over a step, `bilinear` is Tustin's rule.
        poles: where A begins: `lin`, −1/2 + iπn, or `inv`, −1/2 + i (N/π) (N/(2n+1) − 1), N = 2P.
        step_range: steps begin log-uniformly between these, in units of the sampling.

    Raises:
        ValueError: the state is not even, or an option is none of these.

    Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models",
    arXiv:2206.11893: discretisations in section 3.1, poles in section 4.2, B = 1 as in section 3.3.
    """

    def __init__(
        self,
        channels: int,
        state: int = 64,
        *,
        discretisation: str = "zoh",
        poles: str = "lin",
        step_range: Sequence[float] = (1e-3, 1e-1),
    ):
        super().__init__()
        if state < 2 or state % 2 or discretisation not in get_args(Discretisation):
            raise ValueError(
                f"Expected an even state and one of {', '.join(get_args(Discretisation))}, got "
                f"{state} and {discretisation!r}."
            )
        if poles not in get_args(Poles):
            raise ValueError(f"Expected poles {' or '.join(get_args(Poles))}, got {poles!r}.")
        self.discretisation = discretisation
        n = torch.arange(state // 2)
        imaginary = math.pi * n if poles == "lin" else state / math.pi * (state / (2 * n + 1) - 1)
        low, high = map(math.log, step_range)
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(channels))
        self.log_decay = nn.Parameter(torch.full((channels, state // 2), math.log(0.5)))
        self.frequency = nn.Parameter(imaginary.float().repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, state // 2, 2) / math.sqrt(2))
        self.D = nn.Parameter(torch.randn(channels))

    def forward(
        self, u: Float[Tensor, "R T H"], state: Float[Tensor, "R H P 2"] | None = None
    ) -> tuple[Float[Tensor, "R T H"], Float[Tensor, "R H P 2"]]:
        """The outputs, and the state after the last step, from a state before the first or zero."""
        steps = u.shape[1]
        log_modulus, angle, C_HP2 = self._sampled()
        powers = _powers(log_modulus, angle, torch.arange(steps + 1, device=u.device))
        response_HT = torch.einsum(
            "hpc,hptc->ht", C_HP2 * C_HP2.new_tensor([1, -1]), powers[:, :, :-1]
        )
        y = _convolve(u, response_HT) + self.D * u
        after = torch.einsum("rth,hptc->rhpc", u, powers[:, :, :-1].flip(2))
        if state is not None:
            after = after + _times(powers[:, :, -1], state)
            free = _times(C_HP2, state)  # C x, of which every step turns on
            re, im = free.unbind(-1)
            cos, sin = powers[:, :, 1:].unbind(-1)
            y = y + torch.einsum("rhp,hpt->rth", re, cos) - torch.einsum("rhp,hpt->rth", im, sin)
        return y, after

    def _sampled(self) -> tuple[Tensor, Tensor, Tensor]:
        """log |Ā|, arg Ā [H, P], and 2 C B̄ [H, P, 2], twice for the conjugate poles."""
        step = self.log_step.exp().unsqueeze(1)
        re, im = -self.log_decay.exp(), self.frequency
        if self.discretisation == "zoh":
            log_modulus, angle = step * re, step * im
            modulus = log_modulus.exp()
            top = torch.stack([modulus * angle.cos() - 1, modulus * angle.sin()], dim=-1)
            B = _over(top, torch.stack([re, im], dim=-1))
        else:
            a, b = step * re / 2, step * im / 2
            ahead, behind = torch.stack([1 + a, b], -1), torch.stack([1 - a, -b], -1)
            log_modulus = (ahead.square().sum(-1) / behind.square().sum(-1)).log() / 2
            angle = torch.atan2(b, 1 + a) + torch.atan2(b, 1 - a)
            B = _over(torch.stack([step.expand_as(a), torch.zeros_like(a)], -1), behind)
        return log_modulus, angle, 2 * _times(self.C, B)


def _powers(log_modulus: Tensor, angle: Tensor, n: Tensor) -> Float[Tensor, "H P n 2"]:
    """Ā to the whole numbers n."""
    modulus, turned = (log_modulus.unsqueeze(-1) * n).exp(), angle.unsqueeze(-1) * n
    return torch.stack([modulus * turned.cos(), modulus * turned.sin()], dim=-1)


def _times(z: Float[Tensor, "... 2"], w: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
    (a, b), (c, d) = z.unbind(-1), w.unbind(-1)
    return torch.stack([a * c - b * d, a * d + b * c], dim=-1)


def _over(z: Float[Tensor, "... 2"], w: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
    conjugate = w * w.new_tensor([1, -1])
    return _times(z, conjugate) / w.square().sum(-1, keepdim=True)


def _convolve(u: Float[Tensor, "R T H"], response: Float[Tensor, "H T"]) -> Float[Tensor, "R T H"]:
    """Σ_s response[t − s] u_s over s ≤ t."""
    steps = u.shape[1]
    if steps > LONGEST_PRODUCT:
        spectrum = torch.fft.rfft(u, n=2 * steps, dim=1)
        spectrum = spectrum * torch.fft.rfft(response.mT, n=2 * steps, dim=0)
        return torch.fft.irfft(spectrum, n=2 * steps, dim=1)[:, :steps]
    t = torch.arange(steps, device=u.device)
    delay = t[:, None] - t
    matrix_HTT = response[:, delay.clamp(min=0)] * (delay >= 0)
    return torch.einsum("hts,rsh->rth", matrix_HTT, u)
