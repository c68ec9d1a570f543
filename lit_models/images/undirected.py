"""Chimera on the undirected grid of an image's patches, by the resolvent of any graph.

The ablation of `lit_models.images.chimera` that has cycles: one system where that sums four DAGs,
with the weights and the normalisation of `lit_models.graphs.chimera`. Shapes as there.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.utils import grid

from kernels.resolvent import Plan, make_plan, resolvent
from lit_models.images.chimera import GridMixer
from lit_models.images.encoder import MixerEncoder
from lit_models.layers.edge_weights import Deltas, edge_weights


class UndirectedGridMixer(GridMixer):
    """One mixing layer along all walks of the grid.

    A head has four Δ: of a patch as an edge's source, as its target, of its self-loop, which only
    counts in the normalisation, and of its values.

    Args: as `GridMixer`.
    """

    def __init__(self, width: int, state: int = 64, **options: Any):
        super().__init__(width, state, sets=1, deltas=4, **options)

    def mix(
        self, v: Tensor, B: Sequence[Tensor], C: Sequence[Tensor], delta: Tensor
    ) -> Float[Tensor, "B R K H P"]:
        edges, plan = grids(*v.shape[:3], v.device)
        source, target, self_loop, given = delta.flatten(0, 2).unbind(1)
        weight = edge_weights(Deltas(source, target, self_loop), edges)
        V = v.flatten(0, 2)
        operands = (B[0].flatten(0, 2), C[0].flatten(0, 2), V * given.unsqueeze(-1))
        y = resolvent(edges, weight, *operands, ptr=plan.ptr, plan=plan)
        return (y + V * self.D.unsqueeze(-1)).view_as(v)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what a validation makes is used in training too
def grids(
    images: int, rows: int, columns: int, device: torch.device
) -> tuple[Int[Tensor, "2 E"], Plan]:
    """Edges between neighbours along rows and columns, both ways, of all images, and their plan."""
    near, place = grid(rows, columns)
    near = near[:, (place[near[0]] - place[near[1]]).abs().sum(1) == 1]
    first = rows * columns * torch.arange(images)
    edges = (near[:, None, :] + first[:, None]).flatten(1)
    ptr = torch.arange(images + 1) * rows * columns
    return edges.to(device), make_plan(edges, int(ptr[-1]), ptr).on(device)


class UndirectedImage(MixerEncoder):
    """Takes a grid of any size, as `ChimeraImage` does."""

    mixer: ClassVar[type[nn.Module]] = UndirectedGridMixer
