"""The textbook: the DAGs of grids as graphs, whose resolvent is taken in float64."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.grid import CORNERS, GridDag
from kernels.resolvent import resolvent_reference


def grid_reference(
    left: Float[Tensor, "G R K H"],
    top: Float[Tensor, "G R K H"],
    B: Float[Tensor, "G R K S"],
    C: Float[Tensor, "G R K S"],
    V: Float[Tensor, "G R K H P"],
    root: str = "top left",
) -> Float[Tensor, "G R K H P"]:
    """Same result as `kernels.grid.grid_resolvent`, from any corner, computed in float64."""
    edges, weight = grid_edges(left, top, root)
    G, R, K = V.shape[:3]
    nodes = (x.flatten(0, 2) for x in (B, C, V))
    ptr = torch.arange(G + 1) * R * K
    return resolvent_reference(edges, weight, *nodes, ptr=ptr, terms=None).view_as(V)


def grid_dags_reference(
    dags: Sequence[GridDag],
    V: Float[Tensor, "G R K H P"],
    skip: Float[Tensor, "G R K H"],
) -> Float[Tensor, "G R K H P"]:
    """Same arguments and result as `kernels.grid.grid_dags`, computed in float64."""
    values = V.double()
    total = values * skip.double().unsqueeze(-1)
    for left, top, scale, B, C, root in dags:
        scaled = values * scale.double().unsqueeze(-1)
        total = total + grid_reference(left, top, B, C, scaled, root)
    return total.to(V.dtype)


def grid_edges(
    left: Float[Tensor, "G R K H"], top: Float[Tensor, "G R K H"], root: str = "top left"
) -> tuple[Int[Tensor, "2 E"], Float[Tensor, "E H"]]:
    """Edges away from a corner, image after image, and the weight of each."""
    shape = left.shape[:3]
    places = torch.arange(shape.numel(), device=left.device).view(shape).flip(CORNERS[root])
    along_rows = torch.stack([places[:, :, :-1], places[:, :, 1:]]).flatten(2)
    along_columns = torch.stack([places[:, :-1], places[:, 1:]]).flatten(2)
    edges = torch.cat([along_rows, along_columns], dim=2)  # [2, G, edges of an image]
    into = edges[1].flatten()
    is_along_row = torch.arange(edges.shape[2], device=left.device) < along_rows.shape[2]
    is_along_row = is_along_row.repeat(shape[0])[:, None]
    weights = (x.flatten(0, 2)[into] for x in (left, top))
    return edges.flatten(1), torch.where(is_along_row, *weights)
