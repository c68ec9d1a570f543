"""Where the nodes of chains stand once these are cut into chunks.

Shapes: N nodes; chains are cut into c chunks of Q nodes. Every chain begins on a new chunk, so
nothing passes from one chain to another, not even 0 · NaN.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Where nodes stand once chains are cut into chunks, chains of equally many chunks together.

    Attributes:
        Q: nodes per chunk.
        chunks: c.
        slot: [N] place of every node among the c · Q; None where nodes already stand so.
        runs: (first chunk, chains, chunks of each) of every run of equally long chains.
    """

    Q: int
    chunks: int
    slot: Tensor | None
    runs: list[tuple[int, int, int]]


@functools.lru_cache(maxsize=256)
def lay_out(sizes: tuple[int, ...], reverse: bool, chunk: int, device: torch.device) -> Layout:
    """Cut a batch's chains into chunks of at most `chunk` nodes, all of one size."""
    longest = max(sizes)
    Q = math.ceil(longest / math.ceil(longest / chunk))
    size = torch.tensor(sizes)
    count, order = (size / Q).ceil().long().sort(stable=True)
    first = torch.empty_like(size)
    first[order] = count.cumsum(0) - count
    start = size.cumsum(0) - size
    place = torch.arange(sum(sizes)) - start.repeat_interleave(size)
    if reverse:
        place = size.repeat_interleave(size) - 1 - place
    slot = (first * Q).repeat_interleave(size) + place
    runs, begin = [], 0
    counts, chains_each = count[count > 0].unique(return_counts=True)
    for n, chains in zip(counts.tolist(), chains_each.tolist(), strict=True):
        runs.append((begin, chains, n))
        begin += chains * n
    as_it_is = begin * Q == len(slot) and bool((slot.diff() == 1).all())
    return Layout(Q, begin, None if as_it_is else slot.to(device), runs)


def chunked(x: Tensor, layout: Layout) -> Tensor:
    """[N, …] → [c, Q, …], zeros where a chunk is not full."""
    if layout.slot is not None:
        x = x.new_zeros(layout.chunks * layout.Q, *x.shape[1:]).index_copy_(0, layout.slot, x)
    return x.unflatten(0, (layout.chunks, layout.Q))


def unchunked(x: Tensor, layout: Layout) -> Tensor:
    """[c, Q, …] → [N, …]."""
    x = x.flatten(0, 1)
    return x if layout.slot is None else x.index_select(0, layout.slot)


@functools.lru_cache(maxsize=256)
def entries(sizes: tuple[int, ...], reverse: bool, device: torch.device) -> Tensor:
    """The node at which every chain that has any begins."""
    size = torch.tensor(sizes)
    last = (size.cumsum(0) - 1)[size > 0]
    return (last if reverse else last + 1 - size[size > 0]).to(device)
