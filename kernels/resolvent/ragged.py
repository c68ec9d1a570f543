"""A batch of graphs laid end to end, and the same in stacks of graphs padded to a common size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_PADDING = 2**17  # of a stack's matrices, in numbers; another stack costs launches


class Stack(NamedTuple):
    """Graphs that are padded to the same number of nodes."""

    graphs: int  # G, how many
    nodes: int  # n, each of them with its padding
    slots: slice  # their G · n rows among those of all stacks
    numbers: slice  # their G · n² numbers among those of all stacks' matrices

    def of(self, x: Float[Tensor, "slots ..."]) -> Float[Tensor, "G n ..."]:
        """This stack's part of the rows of all."""
        return x[self.slots].unflatten(0, (self.graphs, self.nodes))


@dataclass(frozen=True, eq=False)
class Ragged:
    """Where the nodes of a batch of graphs stand.

    Attributes:
        ptr: [graphs + 1] first node of each graph, and N.
        num_nodes: N.
        stacked: cut the graphs into stacks of like size; else there is a single one.
    """

    ptr: Int[Tensor, " graphs_and_1"]
    num_nodes: int
    stacked: bool = True

    @cached_property
    def graph(self) -> Int[Tensor, " N"]:
        """Graph of each node."""
        return torch.repeat_interleave(self.ptr.diff(), output_size=self.num_nodes)

    @cached_property
    def place(self) -> Int[Tensor, " N"]:
        """Number of each node within its graph."""
        return torch.arange(self.num_nodes, device=self.ptr.device) - self.ptr[self.graph]

    @cached_property
    def stacks(self) -> list[Stack]:
        """The graphs by size, largest first."""
        stacks: list[Stack] = []
        waiting: list[int] = []
        padding = 0
        for size in sorted(self.ptr.diff().tolist(), reverse=True):
            padding += waiting[0] ** 2 - size**2 if waiting else 0
            if self.stacked and padding > MOST_PADDING:
                stacks.append(_stack_after(stacks, len(waiting), waiting[0]))
                waiting, padding = [], 0
            waiting.append(size)
        return [*stacks, _stack_after(stacks, len(waiting), waiting[0])] if waiting else stacks

    @cached_property
    def stack(self) -> Int[Tensor, " N"]:
        """Stack of each node."""
        return self._of_nodes(lambda stack, _: self.stacks.index(stack))

    @cached_property
    def row_in_stack(self) -> Int[Tensor, " N"]:
        """Row of each node in its stack."""
        return self._of_nodes(lambda stack, nth: nth * stack.nodes) + self.place

    @cached_property
    def slot(self) -> Int[Tensor, " N"]:
        """Row of each node among those of all stacks."""
        return self._of_nodes(lambda stack, _: stack.slots.start) + self.row_in_stack

    @cached_property
    def first_number(self) -> Int[Tensor, " N"]:
        """First number of each node's row among those of all stacks' matrices."""
        first = self._of_nodes(lambda stack, _: stack.numbers.start)
        return first + self.row_in_stack * self._of_nodes(lambda stack, _: stack.nodes)

    def _of_nodes(self, value: Callable[[Stack, int], int]) -> Int[Tensor, " N"]:
        """For each node a value of its graph, which is the nth of a stack."""
        by_size = [value(stack, nth) for stack in self.stacks for nth in range(stack.graphs)]
        rank = self.ptr.diff().argsort(descending=True, stable=True).argsort()
        return self.ptr.new_tensor(by_size)[rank][self.graph]

    @property
    def slots(self) -> int:
        """Rows of all stacks."""
        return self.stacks[-1].slots.stop if self.stacks else 0

    @property
    def numbers(self) -> int:
        """Numbers of all stacks' matrices."""
        return self.stacks[-1].numbers.stop if self.stacks else 0

    def adjacency(
        self, edge_index: Int[Tensor, "2 E"], edge_weight: Float[Tensor, "E H"]
    ) -> Float[Tensor, "H numbers"]:
        """A of all stacks' matrices, A[target, source] = weight; repeated edges add up."""
        source, target = edge_index
        entry = self.first_number[target] + self.place[source]
        A = edge_weight.new_zeros(edge_weight.shape[1], self.numbers)
        return A.index_add(1, entry, edge_weight.T)

    def padded(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "slots ..."]:
        """The rows of all stacks, zero on padding."""
        return x.new_zeros(self.slots, *x.shape[1:]).index_copy_(0, self.slot, x)

    def unpadded(self, x: Float[Tensor, "slots ..."]) -> Float[Tensor, "N ..."]:
        """The rows of all graphs again, without padding."""
        return x.index_select(0, self.slot)


def _stack_after(before: list[Stack], graphs: int, nodes: int) -> Stack:
    slot, number = (before[-1].slots.stop, before[-1].numbers.stop) if before else (0, 0)
    slots = slice(slot, slot + graphs * nodes)
    return Stack(graphs, nodes, slots, slice(number, number + graphs * nodes**2))
