"""A batch of graphs laid end to end, and the same padded to its largest graph."""

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
        """Row of each node where every graph has n rows."""
        return self.graph * self.longest + self.place

    @property
    def slots(self) -> int:
        """G · n."""
        return (len(self.ptr) - 1) * self.longest

    def padded(self, x: Float[Tensor, "N K"]) -> Float[Tensor, "G n K"]:
        """Every graph's rows by themselves, zero on padding."""
        rows = x.new_zeros(self.slots, x.shape[1]).index_copy(0, self.slot, x)
        return rows.view(len(self.ptr) - 1, self.longest, x.shape[1])

    def unpadded(self, x: Float[Tensor, "G n K"]) -> Float[Tensor, "N K"]:
        """The rows of all graphs again, without padding."""
        return x.flatten(0, 1).index_select(0, self.slot)
