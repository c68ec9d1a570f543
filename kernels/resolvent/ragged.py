"""A batch of graphs laid end to end, and the same padded to its largest graph."""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK_NUMBERS = 2**17  # of n × n matrices that are worked on at once; they stay in a CPU's cache


class Block(NamedTuple):
    """Graphs of like size that stand together: which of the padded ones, and their largest."""

    graphs: slice
    nodes: int


class Ragged:
    """Where the nodes of a batch of G graphs stand.

    Args:
        ptr: [G + 1] first node of each graph, and N.
        num_nodes: N.
    """

    def __init__(self, ptr: Int[Tensor, " G1"], num_nodes: int):
        self.ptr, self.num_nodes = ptr, num_nodes

    @cached_property
    def longest(self) -> int:
        """n, the nodes of the largest graph."""
        return int(self.ptr.diff().max()) if len(self.ptr) > 1 else 0

    @cached_property
    def graph(self) -> Int[Tensor, " N"]:
        """Graph of each node."""
        return torch.repeat_interleave(self.ptr.diff(), output_size=self.num_nodes)

    @cached_property
    def place(self) -> Int[Tensor, " N"]:
        """Number of each node within its graph."""
        return torch.arange(self.num_nodes, device=self.ptr.device) - self.ptr[self.graph]

    @cached_property
    def slot(self) -> Int[Tensor, " N"]:
        """Row of each node where every graph has n rows, graphs in the order of their size."""
        by_size = self.ptr.diff().argsort(stable=True)
        return by_size.argsort()[self.graph] * self.longest + self.place

    @property
    def slots(self) -> int:
        """G · n."""
        return (len(self.ptr) - 1) * self.longest

    @cached_property
    def blocks(self) -> list[Block]:
        """The padded graphs, cut where a block would become large, smallest graphs first."""
        blocks: list[Block] = []
        first = 0
        sizes = sorted(self.ptr.diff().tolist())
        for graph, nodes in enumerate(sizes, start=1):
            following = sizes[graph] if graph < len(sizes) else None
            if following is None or (graph + 1 - first) * following**2 > BLOCK_NUMBERS:
                blocks.append(Block(slice(first, graph), nodes))
                first = graph
        return blocks

    def padded(self, x: Float[Tensor, "N K"]) -> Float[Tensor, "G n K"]:
        """Every graph's rows by themselves, zero on padding."""
        rows = x.new_zeros(self.slots, x.shape[1]).index_copy_(0, self.slot, x)
        return rows.view(len(self.ptr) - 1, self.longest, x.shape[1])

    def unpadded(self, x: Float[Tensor, "G n K"]) -> Float[Tensor, "N K"]:
        """The rows of all graphs again, without padding."""
        return x.flatten(0, 1).index_select(0, self.slot)
