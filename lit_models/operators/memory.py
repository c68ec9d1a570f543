"""Memories of the past: causal layers along time that can go on from the state they left.

Each maps [R, T, C], R sequences of T steps, and a state or None, to the outputs [R, T, C] and the
state after the last step; S4D, in a file of its own, is another.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.chain import ChainPlan, chain_resolvent
from lit_models.layers.delta import delta_bias_init


@runtime_checkable
class Memory(Protocol):
    """A causal layer along time."""

    def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...


class LSTM(nn.Module):
    """torch's LSTM, and a linear map back where its hidden size is another.

    Args:
        channels: in and out.
        hidden: size of the state; None for `channels`.

    Source: Hochreiter and Schmidhuber, Neural Computation 9 (1997) 1735.
    """

    def __init__(self, channels: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or channels
        self.lstm = nn.LSTM(channels, hidden, batch_first=True)
        self.out = nn.Identity() if hidden == channels else nn.Linear(hidden, channels)

    def forward(
        self, x: Float[Tensor, "R T C"], state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "R T C"], tuple[Tensor, Tensor]]:
        y, after = self.lstm(x, state)
        return self.out(y), after


class SelectiveChain(nn.Module):
    """Mamba-2: a state space whose step, input and output depend on the input.

    h_t = e^{−Δ_t a} h_{t−1} + Δ_t B_t ⊗ x_t, y_t = ⟨C_t, h_t⟩ + D x_t per head; x, B and C pass
    through a short causal convolution and SiLU, y through a gate and RMS norm.

    Args:
        channels: in and out.
        state: size S of a state for each of a head's numbers.
        head_dim: numbers P of a head.
        expand: inner channels over `channels`, a multiple of `head_dim`.
        kernel: steps that the convolution sees.
        step_range: Δ begins log-uniformly between these, see `delta_bias_init`.

    Raises:
        ValueError: inner channels are no multiple of `head_dim`.

    Source: Dao and Gu, "Transformers are SSMs", arXiv:2405.21060, section 7; the sum over the past
    is `kernels.resolvent` on a chain.
    """

    def __init__(
        self,
        channels: int,
        state: int = 64,
        *,
        head_dim: int = 16,
        expand: int = 2,
        kernel: int = 4,
        step_range: Sequence[float] = (1e-3, 1e-1),
    ):
        super().__init__()
        inner = expand * channels
        if inner % head_dim:
            raise ValueError(f"Expected a head_dim that divides {inner}, got {head_dim}.")
        self.inner, self.state, self.head_dim, self.kernel = inner, state, head_dim, kernel
        heads = inner // head_dim
        self.enter = nn.Linear(channels, 2 * inner + 2 * state + heads, bias=False)
        self.conv = nn.Conv1d(
            inner + 2 * state, inner + 2 * state, kernel, groups=inner + 2 * state
        )
        self.step_bias = nn.Parameter(delta_bias_init(1, heads, step_range)[0])
        self.log_decay = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner)
        self.out = nn.Linear(inner, channels, bias=False)

    def forward(
        self, x: Float[Tensor, "R T C"], state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "R T C"], tuple[Tensor, Tensor]]:
        R, T, _ = x.shape
        S, P = self.state, self.head_dim
        gate, given, raw_step = self.enter(x).split(
            [self.inner, self.inner + 2 * S, self.inner // P], -1
        )
        if state is None:
            past = given.new_zeros(R, self.kernel - 1, given.shape[-1])
            h_RHSP = given.new_zeros(R, self.inner // P, S, P)
        else:
            past, h_RHSP = state
        given = torch.cat([past, given], dim=1)
        mixed = F.silu(self.conv(given.mT).mT)
        V_RTC, B_RTS, C_RTS = mixed.split([self.inner, S, S], dim=-1)
        V_RTHP = V_RTC.unflatten(-1, (-1, P))
        step_RTH = F.softplus(raw_step + self.step_bias)
        decay_RTH = -step_RTH * self.log_decay.exp()  # log of what is left after a step
        held = V_RTHP * step_RTH.unsqueeze(-1)
        y = chain_resolvent(
            decay_RTH.exp().flatten(0, 1),
            B_RTS.flatten(0, 1),
            C_RTS.flatten(0, 1),
            held.flatten(0, 1),
            plan=ChainPlan((T,) * R),
        ).unflatten(0, (R, T))
        since = decay_RTH.cumsum(1)
        if state is not None:
            y = y + torch.einsum("rts,rth,rhsp->rthp", C_RTS, since.exp(), h_RHSP)
        until_end = (since[:, -1:] - since).exp()
        after = since[:, -1].exp()[..., None, None] * h_RHSP
        after = after + torch.einsum("rth,rts,rthp->rhsp", until_end, B_RTS, held)
        y = (y + self.D[:, None] * V_RTHP).flatten(-2) * F.silu(gate)
        return self.out(self.norm(y)), (given[:, 1 - self.kernel :], after)
