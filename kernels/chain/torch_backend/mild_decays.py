"""The resolvent product on chains whose weights are given by their logarithms, summed over chains.

Where no chunk's decay leaves float32's range, L[i, j] = r[i] / r[j] for j ≤ i, r[i] being the decay
from the chunk's middle to a node, above one before it: then a chunk's product is one for all heads,

    (L ⊙ C Bᵀ) V = r · tril(C Bᵀ) (V / r),

and no matrix of a head is ever formed.

Shapes: N nodes, H heads, S state, P head dimension; chains are cut into c chunks of Q nodes, and k
chains of n chunks each are walked along together, a chunk of each at a time.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from kernels.chain.torch_backend.layout import Layout, chunked, unchunked
from kernels.tiling import tiles

CHUNK = 64
SMALLEST_DECAY = 1e-25
"""Of half a chunk. r lies between it and its inverse, which leaves float32 room for products."""


def strong_heads(log_weight: Tensor, reverse: bool, layout: Layout) -> Bool[Tensor, " H"]:
    """Those of which some half chunk decays too far, or some weight is above one or no number."""
    log_w_cQH = chunked(log_weight.detach().float(), layout)
    if reverse:
        log_w_cQH = log_w_cQH.flip(1)
    halves = log_w_cQH.tensor_split([_middle(layout) + 1], dim=1)
    least = torch.stack([half.sum(1).amin(0) for half in halves]).amin(0)
    # So written that a NaN is strong.
    return ~((least >= math.log(SMALLEST_DECAY)) & (log_w_cQH.amax((0, 1)) <= 0))


class _Way(NamedTuple):
    """One way along the chains, or a step of it.

    A state is kept as of the middle of the chunk that it leaves: `exit_before` and `entry` decay it
    to the middle of the next chunk, one after the other, as both together may be no number of
    float32; `exit` and `entry_next` are those of the chunk after. `reaching` is C Bᵀ where a node
    reaches another one, `own` that of a node and itself.
    """

    scale: Float[Tensor, "c Q H"]
    B: Float[Tensor, "c Q S"]
    C: Float[Tensor, "c Q S"]
    r: Float[Tensor, "c Q H 1"]
    factor: Float[Tensor, "c Q H 1"]
    exit_before: Float[Tensor, "c 1 H 1"]
    entry: Float[Tensor, "c 1 H 1"]
    exit: Float[Tensor, "c 1 H 1"]
    entry_next: Float[Tensor, "c 1 H 1"]
    own: Float[Tensor, "c Q 1"]
    reaching: Float[Tensor, "c Q Q"]

    @classmethod
    def of(
        cls, log_w_cQH: Tensor, scale: Tensor, B: Tensor, C: Tensor, layout: Layout, reverse: bool
    ) -> "_Way":
        w_cQH = log_w_cQH.exp()
        if reverse:
            w_cQH = w_cQH.flip(1)
        middle, step = _middle(layout), -1 if reverse else 1
        r = torch.ones_like(w_cQH)
        r[:, middle + 1 :] = w_cQH[:, middle + 1 :].cumprod(1)
        r[:, :middle] = w_cQH[:, 1 : middle + 1].flip(1).cumprod(1).reciprocal_().flip(1)
        entry, exit = (x[:, None, :, None] for x in (w_cQH[:, 0] / r[:, 0], r[:, -1]))
        decays = (exit.roll(step, 0), entry, exit, entry.roll(-step, 0))
        r = (r.flip(1) if reverse else r).unsqueeze(-1)
        own, reaching = (C * B).sum(-1, keepdim=True), _reaching(C @ B.mT, reverse)
        return cls(scale, B, C, r, scale.unsqueeze(-1) / r, *decays, own, reaching)


class _Walk(NamedTuple):
    """Chains which are walked along together: `chains` of n chunks each, the first at `begin`."""

    begin: int
    chains: int
    n: int

    def room(self, steps: int, rows: int, like_cQHP: Tensor) -> Float[Tensor, "steps k rows H P"]:
        return like_cQHP.new_empty(steps, self.chains, rows, *like_cQHP.shape[2:])

    def steps(self, x: Tensor) -> Sequence[Tensor]:
        """Views [k, …] of x [c, …], one for each of the n steps."""
        end = self.begin + self.chains * self.n
        return x[self.begin : end].unflatten(0, (self.chains, self.n)).unbind(1)

    def steps_of(self, way: _Way) -> Iterator[_Way]:
        return itertools.starmap(_Way, zip(*map(self.steps, way), strict=True))


class MildDecays(torch.autograd.Function):
    """Y from each chain's log weight, scale, B and C, from skip and V, all heads at once.

    Also V of each chain's strong heads, whose gradient so need not fill an array as large as V.

    With X = scale · V / r, a chunk takes r · (tril(C Bᵀ) X + C E) from X and the entering state E,
    and hands on E + Bᵀ X, all as of the chunk's middle. What a node gives itself crosses no edge:
    it is apart from what it takes of others, or its rounding would drown the gradient of strong
    decays.
    """

    @staticmethod
    def forward(
        ctx, layout: Layout, reverse: Sequence[bool], strong: Sequence[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        taken = [inputs[-1].index_select(1, heads) for heads in strong]
        *operands, skip, V = (chunked(x, layout) for x in inputs)
        ways = [
            _Way.of(log_w_cQH, scale, B, C, layout, back)
            for (log_w_cQH, scale, B, C), back in zip(_in_groups(operands, 4), reverse, strict=True)
        ]
        own = sum((way.scale * way.own for way in ways), skip)
        Y = V.flatten(0, 1) * own.flatten(0, 1).unsqueeze(-1)
        kept = []
        for way, back in zip(ways, reverse, strict=True):
            for walk in _walks(V, layout):
                # Nothing enters the first chunk.
                E_nkSHP = walk.room(walk.n - 1, way.B.shape[-1], V)
                others_nkQHP = walk.room(walk.n, layout.Q, V)
                kept += E_nkSHP, others_nkQHP
                leaving = None
                seen = (walk.steps_of(way), *map(walk.steps, (V, Y.unflatten(0, V.shape[:2]))))
                for i, (at, v, y) in enumerate(_in_order(zip(*seen, strict=True), back)):
                    X = (v * at.factor).flatten(2)
                    others = others_nkQHP[i]
                    torch.bmm(at.reaching, X, out=others.flatten(2))
                    E = None
                    if leaving is not None:
                        E = torch.mul(leaving, at.exit_before, out=E_nkSHP[i - 1]).mul_(at.entry)
                        others.flatten(2).baddbmm_(at.C, E.flatten(2))
                    y.addcmul_(others, at.r)
                    if i < walk.n - 1:
                        added = (
                            at.B.mT @ X if E is None else torch.baddbmm(E.flatten(2), at.B.mT, X)
                        )
                        leaving = added.unflatten(-1, V.shape[2:])
        ctx.save_for_backward(V, own, *itertools.chain.from_iterable(ways), *kept)
        ctx.layout, ctx.reverse, ctx.strong = layout, reverse, strong
        return Y if layout.slot is None else Y.index_select(0, layout.slot), *taken

    @staticmethod
    def backward(ctx, dY: Tensor, *d_taken: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        layout, reverse = ctx.layout, ctx.reverse
        V, own, *saved = ctx.saved_tensors
        of_ways = len(reverse) * len(_Way._fields)
        ways = itertools.starmap(_Way, _in_groups(saved[:of_ways], len(_Way._fields)))
        kept = iter(_in_groups(saved[of_ways:], 2))
        dY = chunked(dY, layout)
        dV = dY * own.unsqueeze(-1)
        d_own = torch.linalg.vecdot(dY, V)
        gradients = []
        for way, back in zip(ways, reverse, strict=True):
            crossing = torch.zeros_like(way.entry)
            taken, given = torch.empty_like(way.scale), torch.empty_like(way.scale)
            dK, dB, dC = (torch.zeros_like(x) for x in (way.reaching, way.B, way.C))
            seen = (V, dY, dV, crossing, taken, given, dK, dB, dC)
            for walk in _walks(V, layout):
                E_nkSHP, others_nkQHP = next(kept)
                dE = None
                steps = zip(walk.steps_of(way), *map(walk.steps, seen), strict=True)
                for i, (at, v, dy, dv, cross, take, give, dk, db, dc) in reversed(
                    [*enumerate(_in_order(steps, back))]
                ):
                    X = (v * at.factor).flatten(2)
                    G = dy * at.r
                    take.copy_(torch.linalg.vecdot(G, others_nkQHP[i]))
                    G = G.flatten(2)
                    dX = torch.bmm(at.reaching.mT, G)
                    dk.copy_(torch.bmm(G, X.mT))
                    F = None
                    if dE is not None:
                        F = (dE * at.entry_next).mul_(at.exit).flatten(2)
                        dX.baddbmm_(at.B, F)
                        db.copy_(torch.bmm(X, F.mT))
                    if i > 0:
                        E = E_nkSHP[i - 1]
                        dc.copy_(torch.bmm(G, E.flatten(2).mT))
                        dE = at.C.mT @ G if F is None else F.baddbmm_(at.C.mT, G)
                        dE = dE.view(E.shape)
                        cross.copy_((E * dE).sum((1, 3), keepdim=True))
                    dX = dX.view(v.shape)
                    dv.addcmul_(dX, at.factor)
                    give.copy_(torch.linalg.vecdot(dX, v))
            d_log = _before_each_edge(
                crossing.flatten(1), taken - given * way.factor.squeeze(-1), back
            )
            d_scale = given / way.r.squeeze(-1) + way.own * d_own
            d_self = (d_own * way.scale).sum(-1, keepdim=True)
            dK = _reaching(dK, back)
            dC.baddbmm_(dK, way.B).addcmul_(d_self, way.B)
            dB.baddbmm_(dK.mT, way.C).addcmul_(d_self, way.C)
            gradients += d_log, d_scale, dB, dC
        *gradients, dV = (unchunked(x, layout) for x in (*gradients, d_own, dV))
        for heads, d_values in zip(ctx.strong, d_taken, strict=True):
            dV.index_add_(1, heads, d_values)
        return None, None, None, *gradients, dV


def _walks(V: Tensor, layout: Layout) -> list[_Walk]:
    walks = []
    for begin, chains, n in layout.runs:
        # Twice as much at a time as elsewhere was fastest; in equal parts.
        parts = len(tiles(chains, V[0].numel() // 2, V.device))
        ends = [chains * part // parts for part in range(parts + 1)]
        walks += [_Walk(begin + a * n, b - a, n) for a, b in itertools.pairwise(ends)]
    return walks


def _in_groups(items: Iterable, size: int) -> Iterator[tuple]:
    return zip(*[iter(items)] * size, strict=True)


def _in_order(steps: Iterable, reverse: bool) -> list:
    steps = list(steps)
    return steps[::-1] if reverse else steps


def _middle(layout: Layout) -> int:
    """The node at which r is one, counted from where the chain enters the chunk."""
    return layout.Q // 2


def _reaching(K_cQQ: Tensor, reverse: bool) -> Tensor:
    """Of all pairs those where j reaches another node i: before it, or behind if reversed."""
    return K_cQQ.triu_(1) if reverse else K_cQQ.tril_(-1)


def _before_each_edge(crossing: Tensor, taken_cQH: Tensor, reverse: bool) -> Tensor:
    """What crosses each edge: what enters the chunk, less what nodes before the edge took of it.

    What crosses the edge to the next chunk is known too, so the sums' rounding is: it is spread
    evenly over the chunk.
    """
    if reverse:
        taken_cQH = taken_cQH.flip(1)
    so_far = taken_cQH.cumsum(1)
    Q, next_crossing = taken_cQH.shape[1], crossing.roll(1 if reverse else -1, 0)
    missed = (crossing - so_far[:, -1] - next_crossing) / Q
    nodes = torch.arange(Q, device=missed.device).unsqueeze(-1)
    crosses = crossing.unsqueeze(1) - (so_far - taken_cQH) - missed.unsqueeze(1) * nodes
    return crosses.flip(1) if reverse else crosses
