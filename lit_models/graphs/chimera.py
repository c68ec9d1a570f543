"""Chimera on graphs: a state-space model whose state flows along every walk of the graph.

Lahoti, Marwah, Puduppully, Gu, "Chimera: State Space Models Beyond Sequences", arXiv:2510.12111.
Shapes: N nodes, E edges, H heads, P head dimension, S state size, width = H · P.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.resolvent import Mode, Plan, check_terms, plan_of, resolvent
from lit_models.graphs.batch import Batch
from lit_models.graphs.gated_gcn import GatedGCN
from lit_models.layers.delta import delta_bias_init
from lit_models.layers.edge_weights import Deltas, edge_weights

REFINE = 2  # steps, where nothing makes I − A diagonally dominant


class ChimeraLayer(nn.Module):
    """One resolvent mixing layer, [N, width] → [N, width].

    x is projected to a gate z, values v, B, C and Δ_source, Δ_target, Δ_self, Δ_input, edge vectors
    to Δ_edge; the edge weights A[j, i] = Â_ij come from Δ by `edge_weights`; then
    out = W · RMSNorm(SiLU(z) ⊙ ((I − A)⁻¹ ⊙ C Bᵀ)(Δ_input v) + D v) + x).

    Args:
        width: channels of nodes and edges, divided among the heads.
        heads: H.
        state: S.
        delta_range: Δ starts log-uniform in this interval, for inputs of zero.
        mode: `exact` or `neumann`, see `kernels.resolvent`.
        terms: number of summed powers in `neumann` mode.
        edge_delta: Δ_edge is there.
        normalise: Δ_self and the row normalisation are there.

    Raises:
        ValueError: `width` is not a multiple of `heads`, or `mode` and `terms` do not fit; called
            without normalisation, I − A is too near to a singular matrix to be solved with.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        state: int,
        delta_range: Sequence[float],
        *,
        mode: Mode = "exact",
        terms: int | None = None,
        edge_delta: bool = True,
        normalise: bool = True,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}.")
        check_terms(mode, terms)
        self.heads, self.mode, self.terms = heads, mode, terms
        self.may_be_singular = mode == "exact" and not normalise
        self.channels = ["source", "target", *["self"] * normalise, *["edge"] * edge_delta]
        self.sizes = [width, width, state, state, (3 + normalise) * heads]
        self.in_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.edge_delta = nn.Linear(width, heads, bias=False) if edge_delta else None
        self.delta_bias = nn.Parameter(delta_bias_init(len(self.channels), heads, delta_range))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "N width"],
        edge_attr: Float[Tensor, "E width"],
        edge_index: Int[Tensor, "2 E"],
        ptr: Int[Tensor, " G1"],
        plan: Plan | None = None,
    ) -> Float[Tensor, "N width"]:
        z, v, operands = self._projected(x, edge_attr, edge_index)
        solve = checked_resolvent if self.may_be_singular else resolvent
        solve = cast(Callable[..., Tensor], solve)  # `disable` forgets what it was given
        y = solve(edge_index, *operands, ptr=ptr, plan=plan, mode=self.mode, terms=self.terms)
        y = (y + v * self.D.unsqueeze(-1)).flatten(1)
        return self.out_proj(self.norm(F.silu(z) * y + x))

    def operands(
        self,
        x: Float[Tensor, "N width"],
        edge_attr: Float[Tensor, "E width"],
        edge_index: Int[Tensor, "2 E"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edge weights, B, C and V that the resolvent would get, for looking at."""
        return self._projected(x, edge_attr, edge_index)[-1]

    def _projected(
        self, x: Tensor, edge_attr: Tensor, edge_index: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Gate z, values v, and the resolvent's operands."""
        z, v, B, C, delta = self.in_proj(x).split(self.sizes, dim=-1)
        deltas, delta_input = self._deltas(delta, edge_attr)
        v = F.silu(v).unflatten(-1, (self.heads, -1))
        V = v * delta_input.unsqueeze(-1)
        return z, v, (edge_weights(deltas, edge_index), F.silu(B), F.silu(C), V)

    def deltas(self, x: Float[Tensor, "N width"], edge_attr: Float[Tensor, "E width"]) -> Deltas:
        """The Δ this layer would use on these inputs, for looking at."""
        delta = self.in_proj(x).split(self.sizes, dim=-1)[-1]
        return self._deltas(delta, edge_attr)[0]

    def _deltas(self, projected: Tensor, edge_attr: Tensor) -> tuple[Deltas, Tensor]:
        *logits, input_ = projected.split(self.heads, dim=-1)
        if self.edge_delta is not None:
            logits.append(self.edge_delta(edge_attr))
        # float32: under autocast the exponentials of A would lose the slow modes first.
        steps = [
            F.softplus(x.float() + bias) for x, bias in zip(logits, self.delta_bias, strict=True)
        ]
        return Deltas(**dict(zip(self.channels, steps, strict=True))), input_


@torch.compiler.disable
def checked_resolvent(*inputs: Tensor, **options) -> Float[Tensor, "N H P"]:
    """`kernels.resolvent` of any I − A, refined; where it fails, an error that says what to try."""
    try:
        return resolvent(*inputs, refine=REFINE, **options)
    except ValueError as error:
        raise ValueError(
            f"{error} Edge weights are not normalised here: raise model.net.delta_range, for "
            "peptides to [2.0, 4.0], lower model.optimisation.lr, or set model.net.normalise=true."
        ) from error


class ChimeraBlock(nn.Module):
    """Pre-norm residual block: local message passing, Chimera, feed-forward.

    Args:
        local: keep the GatedGCN; without it edges carry their encoded features unchanged.
    """

    def __init__(self, width: int, dropout: float, local: bool, mixer: ChimeraLayer):
        super().__init__()
        self.local_norm = nn.LayerNorm(width) if local else None
        self.local = GatedGCN(width) if local else None
        self.mixer_norm = nn.LayerNorm(width)
        self.mixer = mixer
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        edge_attr: Tensor,
        edge_index: Tensor,
        ptr: Tensor,
        plan: Plan | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.local is not None and self.local_norm is not None:
            update, edge_attr = self.local(self.local_norm(x), edge_attr, edge_index)
            x = x + self.dropout(update)
        mixed = self.mixer(self.mixer_norm(x), edge_attr, edge_index, ptr, plan)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ffn(x)), edge_attr


class ChimeraGraph(nn.Module):
    """Encoder, blocks, head: a batch of graphs to the task's outputs.

    There are no positional or structural encodings.

    Args:
        encoder: makes the feature encoder of a width.
        head: makes the readout of a width, see `lit_models.graphs.heads`.
        width: hidden size, a multiple of `heads`.
        layers: number of blocks.
        heads: heads of the resolvent.
        state: state size S.
        dropout: probability, in blocks.
        delta_range: interval of the initial Δ.
        local: keep the GatedGCN in every block.
        edge_delta: edges have a Δ of their own.
        normalise: normalise the edge weights by rows; without, choose a `delta_range` with which
            the sum over all walks converges, such as (2.0, 4.0).
        mode: `exact` or `neumann`.
        terms: summed powers in `neumann` mode, a power of two.
    """

    def __init__(
        self,
        encoder: Callable[[int], nn.Module],
        head: Callable[[int], nn.Module],
        *,
        width: int = 64,
        layers: int = 8,
        heads: int = 2,
        state: int = 64,
        dropout: float = 0.1,
        delta_range: Sequence[float] = (5e-3, 0.1),
        local: bool = True,
        edge_delta: bool = True,
        normalise: bool = True,
        mode: Mode = "exact",
        terms: int | None = None,
    ):
        super().__init__()
        features, readout = encoder(width), head(width)
        self.encoder, self.exact = features, mode == "exact"
        mixers = (
            ChimeraLayer(
                width,
                heads,
                state,
                delta_range,
                mode=mode,
                terms=terms,
                edge_delta=edge_delta,
                normalise=normalise,
            )
            for _ in range(layers)
        )
        blocks = [ChimeraBlock(width, dropout, local, mixer) for mixer in mixers]
        self.blocks = nn.ModuleList(blocks)
        if not edge_delta:
            # Nobody reads the last edge vectors: data parallel training would wait for gradients.
            last = blocks[-1].local
            (features.edges if last is None else last.norm_edges).requires_grad_(False)
        self.norm = nn.LayerNorm(width)
        self.head = readout

    def forward(self, batch: Batch) -> Tensor:
        x, edge_attr = self.encoder(batch)
        plan = plan_of(batch) if self.exact else None
        for block in self.blocks:
            x, edge_attr = block(x, edge_attr, batch.edge_index, batch.ptr, plan)
        return self.head(self.norm(x), batch)
