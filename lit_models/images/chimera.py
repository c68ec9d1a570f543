"""Chimera on images: a state-space model on the grid of patches, which is four DAGs.

Lahoti, Marwah, Puduppully, Gu, "Chimera: State Space Models Beyond Sequences", arXiv:2510.12111.
Shapes: B images, R × K patches, D width, H heads, P head dimension, S state size.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.grid import CORNERS, GridDag, grid_dags
from lit_models.images.encoder import MixerEncoder
from lit_models.layers.delta import delta_bias_init
from lit_models.layers.gated_norm import gated_norm

POWERS = {"sqrt_indegree": -0.5, "indegree": -1.0, "none": 0.0}
"""Of the indegree, by which weights are normalised."""
SETS = {"top left": 0, "bottom right": 0, "top right": 1, "bottom left": 1}
"""Which B and C a DAG has where those of a diagonal share them."""


class GridMixer(nn.Module, ABC):
    """What mixers of a grid share, [B, R, K, D] → [B, R, K, D]; a subclass says how it mixes.

    An input is projected to a gate z, values x, so many sets of B and C, and so many Δ a head; x, B
    and C pass through a depthwise convolution and SiLU. Then out = W · (RMSNorm(mix + D x) ⊙
    SiLU(z)).

    Args:
        width: D.
        state: S.
        head_dim: P, which divides the inner width.
        expand: inner width over D.
        kernel: side of the square of patches that the convolution sees, an odd number.
        delta_range: Δ starts log-uniform in this interval, for inputs of zero.
        sets: of B and C.
        deltas: Δ of a head.

    Raises:
        ValueError: `head_dim` does not divide the inner width, or `kernel` is even.
    """

    def __init__(
        self,
        width: int,
        state: int = 64,
        *,
        head_dim: int = 128,
        expand: int = 2,
        kernel: int = 3,
        delta_range: Sequence[float] = (7e-3, 0.7),
        sets: int,
        deltas: int,
    ):
        super().__init__()
        inner = expand * width
        if inner % head_dim:
            raise ValueError(f"Expected a head_dim that divides {inner}, got {head_dim}.")
        if kernel % 2 == 0:
            raise ValueError(f"A filter that looks all ways sees an odd number, got {kernel}.")
        self.heads = inner // head_dim
        self.mixed_sizes = [inner, *[state] * 2 * sets]
        mixed = sum(self.mixed_sizes)
        self.sizes = [inner, mixed, deltas * self.heads]
        self.in_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.conv = nn.Conv2d(mixed, mixed, kernel, padding=kernel // 2, groups=mixed)
        self.delta_bias = nn.Parameter(delta_bias_init(deltas, self.heads, delta_range))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "B R K D"]) -> Float[Tensor, "B R K D"]:
        z, v, B, C, delta = self._projected(x)
        y = self.mix(v, B, C, delta).flatten(0, 2).flatten(1)
        weight = self.out_proj.weight * self.norm_weight
        return F.linear(gated_norm(y, z.flatten(0, 2)), weight).view_as(x)

    @abstractmethod
    def mix(
        self,
        v: Float[Tensor, "B R K H P"],
        B: Sequence[Float[Tensor, "B R K S"]],
        C: Sequence[Float[Tensor, "B R K S"]],
        delta: Float[Tensor, "B R K deltas H"],
    ) -> Float[Tensor, "B R K H P"]:
        """The mixed values, and D v."""

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Sequence, Sequence, Tensor]:
        """z, and what `mix` gets."""
        # Product by product: the gradient of a part need not be copied into that of a whole.
        z, given, raw = (F.linear(x, part) for part in self.in_proj.weight.split(self.sizes))
        given = F.silu(self.conv(given.movedim(-1, 1)).movedim(1, -1))
        v, *projections = given.split(self.mixed_sizes, dim=-1)
        v = v.unflatten(-1, (self.heads, -1))
        # float32: the slow modes would be lost first.
        delta = F.softplus(raw.float().unflatten(-1, (-1, self.heads)) + self.delta_bias)
        return z, v, projections[::2], projections[1::2], delta


class ChimeraGridMixer(GridMixer):
    """One mixing layer along the DAGs of a grid that are rooted at its corners.

    In a DAG edges lead away from its root, along rows and along columns, each with its own Δ. The
    edge that enters a patch along its row weighs exp(−Δ_row) / √indegree of that patch, and so does
    the other; the patch gives (Σ Δ of the edges that enter it) / √indegree times its values. All
    DAGs are summed and divided by the root of their number.

    Nothing enters the root. With `root_emits` it gives what a patch inside gives, (Δ_row +
    Δ_column) / √2. Without, as in the released code, it gives nothing; then a corner reaches no
    patch but those of its own row and column, as every other DAG has it on its border or last.

    Args:
        width, state, options: see `GridMixer`.
        roots: corners at which DAGs begin, one to four of `CORNERS`.
        projections: one B and C for the DAGs of each diagonal (as published), for `all` DAGs, or
            for `each`.
        deltas: one Δ a direction for `each` DAG (as published), or for `all`.
        normalise: by which an edge's weight and a patch's gift are divided: the root of the
            indegree (as published), under which two paths add up to more than one and patches far
            away weigh the more the longer they are; `indegree`, under which what enters a patch
            weighs at most one; or `none`.
        root_emits: see above.

    Raises:
        ValueError: an option is none of these, or as `GridMixer`.
    """

    def __init__(
        self,
        width: int,
        state: int = 64,
        *,
        roots: Sequence[str] = tuple(CORNERS),
        projections: str = "diagonal",
        deltas: str = "each",
        normalise: str = "sqrt_indegree",
        root_emits: bool = True,
        **options: Any,
    ):
        if not roots or len({*roots} & {*CORNERS}) != len(roots):
            raise ValueError(f"roots are different ones of {', '.join(CORNERS)}, got {[*roots]}.")
        for option, known in (
            (projections, ("diagonal", "all", "each")),
            (deltas, ("each", "all")),
            (normalise, POWERS),
        ):
            if option not in known:
                raise ValueError(f"Expected one of {', '.join(known)}, got {option!r}.")
        diagonals = [SETS[root] for root in roots]
        of_set = {"diagonal": diagonals, "all": [0] * len(roots), "each": [*range(len(roots))]}
        used = sorted({*of_set[projections]})
        directions = 2 * (len(roots) if deltas == "each" else 1)
        super().__init__(width, state, sets=len(used), deltas=directions, **options)
        self.roots, self.normalise, self.root_emits = tuple(roots), normalise, root_emits
        self.set_of = [used.index(number) for number in of_set[projections]]

    def mix(
        self, v: Tensor, B: Sequence[Tensor], C: Sequence[Tensor], delta: Tensor
    ) -> Float[Tensor, "B R K H P"]:
        return grid_dags(self._dags(B, C, delta), v, self.D.expand(v.shape[:4]))

    def operands(self, x: Float[Tensor, "B R K D"]) -> list[GridDag]:
        """What the resolvent would get, for looking at."""
        return self._dags(*self._projected(x)[2:])

    def _dags(self, B: Sequence[Tensor], C: Sequence[Tensor], delta: Tensor) -> list[GridDag]:
        share = 1 / math.sqrt(len(self.roots))
        pairs = delta.unflatten(3, (-1, 2)).unbind(3)
        dags = []
        for number, root in enumerate(self.roots):
            row, column = pairs[number % len(pairs)].unbind(3)
            enters = entering(*row.shape[1:3], root, self.root_emits, row.device)
            norm = self._norm(enters.sum(0))
            scale = (row * enters[0] + column * enters[1]) * (norm * share)
            projections = B[self.set_of[number]], C[self.set_of[number]]
            weights = (torch.exp(-row) * norm, torch.exp(-column) * norm)
            dags.append(GridDag(*weights, scale, *projections, root))
        return dags

    def _norm(self, indegree: Tensor) -> Tensor:
        return indegree.clamp(min=1) ** POWERS[self.normalise]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what a validation makes is used in training too
def entering(
    rows: int, columns: int, root: str, root_emits: bool, device: torch.device
) -> Float[Tensor, "2 rows columns 1"]:
    """1 where an edge of the DAG enters a patch along its row, and along its column, else 0.

    With `root_emits` two edges of weight nothing enter the root.
    """
    along_row, along_column = torch.ones(2, rows, columns)
    along_row[:, 0] = 0
    along_column[0] = 0
    if root_emits:
        along_row[0, 0] = along_column[0, 0] = 1
    both = torch.stack([along_row, along_column])
    return both.flip(CORNERS[root]).unsqueeze(-1).to(device)


class ChimeraImage(MixerEncoder):
    """No positional embedding is needed, and a grid may have any size."""

    mixer: ClassVar[type[nn.Module]] = ChimeraGridMixer
