"""MemNO: a neural operator with a memory of the frames before, one sequence a point of the grid.

Buitrago Ruiz et al., "On the Benefits of Memory for Modeling Time-Dependent PDEs",
arXiv:2409.02313.
Shapes: B samples, T frames, C channels, then the points of every axis.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_models.module import Optimisation
from lit_models.operators.coordinates import Coordinates
from lit_models.operators.ffno import FFNOBlock
from lit_models.operators.memory import Memory
from lit_models.operators.operator import LitOperator
from lit_models.operators.pointwise import ChannelMLP, Pointwise
from lit_models.operators.spectral import FactorisedSpectralConv
from lit_models.operators.tasks import FieldTask


class MemoryBlock(nn.Module):
    """x + linear(GELU(memory(norm(x)))) along time, every point of the grid by itself.

    Args:
        memory: maps [R, T, width] and a state to outputs of the same shape and the next state.
        width: channels.
    """

    def __init__(self, memory: Memory, width: int):
        super().__init__()
        self.norm, self.memory, self.out = nn.LayerNorm(width), memory, nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B T C *points"], state: Any
    ) -> tuple[Float[Tensor, "B T C *points"], Any]:
        rows = x.flatten(3).permute(0, 3, 1, 2)  # [B, points, T, C]
        y, state = self.memory(self.norm(rows.flatten(0, 1)), state)
        y = self.out(F.gelu(y)).view(rows.shape).permute(0, 2, 3, 1)
        return x + y.reshape(x.shape), state


class MemNO(nn.Module):
    """Factorised Fourier layers frame by frame, a memory along time, and such layers again.

    Args:
        in_channels, out_channels: of the fields.
        modes: m of every axis, see FactorisedSpectralConv.
        memory: see MemoryBlock; None for an operator of the last frames alone.
        frames: how many of the last frames are given at once, stacked as channels, the oldest first
            and zeros before the first frame. More than one without a memory is the control of it:
            more of the past, and no state.
        width: channels of the layers.
        before, after: Fourier layers before and after the memory.
        expansion, coordinates, projection: see `lit_models.operators.ffno.FFNO`.

    Raises:
        ValueError: there is no layer, or sizes are not positive.

    Source: Buitrago Ruiz et al., arXiv:2409.02313, section 4; layers: Tran et al.,
    arXiv:2111.13802.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        *,
        memory: Memory | None = None,
        frames: int = 1,
        width: int = 64,
        before: int = 2,
        after: int = 2,
        expansion: float = 4.0,
        coordinates: str | None = "periodic",
        projection: float = 2.0,
    ):
        super().__init__()
        if min(in_channels, out_channels, frames, width, before + after, *modes) < 1:
            raise ValueError(
                "Expected positive channels, frames, modes and width and at least one layer, got "
                f"{in_channels}, {out_channels}, {frames}, {list(modes)}, {width} and "
                f"{before} + {after}."
            )

        def layers(count: int) -> nn.Sequential:
            convs = (FactorisedSpectralConv(width, modes) for _ in range(count))
            return nn.Sequential(*(FFNOBlock(conv, width, expansion) for conv in convs))

        self.frames = frames
        self.coordinates = Coordinates(coordinates)
        given = frames * in_channels + self.coordinates.channels(len(modes))
        self.lifting = Pointwise(given, width)
        self.before, self.after = layers(before), layers(after)
        self.memory = None if memory is None else MemoryBlock(memory, width)
        self.projection = ChannelMLP(width, int(projection * width), out_channels)

    def forward(
        self, frames: Float[Tensor, "B T C *points"], state: Any = None
    ) -> tuple[Float[Tensor, "B T D *points"], Any]:
        """The frame that follows each of these, and the state: the last frames, the memory's."""
        B, T = frames.shape[:2]
        if state is None:
            state = frames.new_zeros(B, self.frames - 1, *frames.shape[2:]), None
        past, state = state
        seen = torch.cat([past, frames], dim=1)
        stacked = seen.unfold(1, self.frames, 1).movedim(-1, 2)  # [B, T, frames, C, *points]
        x = self.before(self.lifting(self.coordinates(stacked.flatten(0, 1).flatten(1, 2))))
        if self.memory is not None:
            x, state = self.memory(x.unflatten(0, (B, T)), state)
            x = x.flatten(0, 1)
        return self.projection(self.after(x)).unflatten(0, (B, T)), (seen[:, T:], state)


class LitMemNO(LitOperator):
    """Trains a network that carries a state from frame to frame, as LitOperator does others.

    Teacher-forced training predicts every frame of a window from all true ones before it at once;
    a rollout reads the given frames once and goes on from the state that they leave.

    Args:
        task, net, optimisation, options: see LitOperator; the network maps frames [B, T, C,
            *points] and a state to the frames that follow each of them and the next state.

    Raises:
        ValueError: see LitOperator; a steady problem, or `resolution`, which need no memory.
    """

    def __init__(self, task: FieldTask, net: nn.Module, optimisation: Optimisation, **options):
        for name in ("inputs", "resolution"):
            if options.get(name) is not None:
                raise ValueError(f"A network with memory has no {name}: set model.{name}=null.")
        super().__init__(task, net, optimisation, **options)

    def _predict(self, frames: Tensor) -> Tensor:
        return self.net(self.in_precision(frames))[0][:, -1]

    def _read(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        predicted, state = self.net(self.in_precision(frames), state)
        return (frames + predicted if self.residual else predicted), state

    def _following(self, true: Tensor, steps: int) -> Tensor:
        return self._read(true)[0][:, -steps:]

    def _unroll(self, frames: Tensor, steps: int) -> Tensor:
        predicted, state = [], None
        for _ in range(steps):
            following, state = self._read(frames, state)
            frames = following[:, -1:]
            predicted.append(frames)
        return torch.cat(predicted, dim=1)

    def _pushed(self, frames: Tensor, free: int) -> Tensor:
        state = None
        with torch.no_grad():
            for _ in range(free):
                following, state = self._read(frames, state)
                frames = following[:, -1:]
        return self._read(frames, state)[0][:, -1:]
