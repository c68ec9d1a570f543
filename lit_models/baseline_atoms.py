"""Bag of atoms: what a graph's node features say without its edges."""

from collections.abc import Callable

from torch import Tensor, nn
from torch_geometric.data import Batch

from lit_models.layers.heads import make_head
from lit_models.module import LitModule, Optimisation
from lit_models.tasks import Task


class BagOfAtomsNet(nn.Module):
    """Encode every node on its own, then the same head as the graph models."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder.nodes
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.encoder(batch.x), batch)


class LitBagOfAtoms(LitModule):
    """The baseline that any graph model must beat: it never sees an edge.

    Args:
        task: what is predicted, its loss and its metric.
        encoder: callable of `width` that makes the feature encoder; its edge half is dropped.
        optimisation: optimiser and schedule.
        width: hidden size.
        dropout: probability, in the head.
        compile: torch.compile the network.
    """

    def __init__(
        self,
        task: Task,
        encoder: Callable[[int], nn.Module],
        optimisation: Optimisation,
        *,
        width: int = 64,
        dropout: float = 0.0,
        compile: bool = False,
    ):
        super().__init__(task, optimisation, compile=compile)
        self.net = BagOfAtomsNet(
            encoder(width), make_head(task.level, width, task.num_outputs, dropout)
        )
