"""The resolvent product on the DAG of a two-dimensional grid, row by row, and four such DAGs.

Shapes: G images, R rows, K columns, n = R · K nodes, H heads, S state, P head dimension.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.resolvent.chain import in_float32

CORNERS = {"top left": (), "top right": (2,), "bottom left": (1,), "bottom right": (1, 2)}
"""Which dimensions of [G, R, K, …] to flip so that a corner becomes the top left one."""


def grid_resolvent(
    left: Float[Tensor, "G R K H"],
    top: Float[Tensor, "G R K H"],
    B: Float[Tensor, "G R K S"],
    C: Float[Tensor, "G R K S"],
    V: Float[Tensor, "G R K H P"],
) -> Float[Tensor, "G R K H P"]:
    """Mix values along all paths of a grid that run right and down, from the top left corner on.

    Equals `kernels.resolvent` on the grid's edges. With M_r the chain matrix of row r, the rows of
    L obey L_r = M_r (diag(top_r) L_{r−1} + E_r): either they are formed and masked by C Bᵀ, or the
    S × P states obey the same recurrence, whichever takes fewer FLOP. Weights may have any sign.

    Args:
        left: weight of the edge that enters a node from its left; not read in the first column.
        top: weight of the edge that enters a node from above; not read in the first row.
        B, C: input and output projection of every node, shared by the heads.
        V: values per head.

    Returns:
        [G, R, K, H, P] mixed values, in V's dtype; computed in float32 at least.

    Raises:
        ValueError: shapes do not fit.

    Source: Lahoti et al., arXiv:2510.12111, vision experiments.
    """
    if left.shape != V.shape[:4] or top.shape != V.shape[:4] or B.shape != C.shape:
        raise ValueError(
            f"With V of shape {list(V.shape)}, left and top must be {list(V.shape[:4])} and B and "
            f"C alike, got {list(left.shape)}, {list(top.shape)}, {list(B.shape)} and "
            f"{list(C.shape)}."
        )
    if not V.numel():
        return torch.zeros_like(V)
    _, R, K, H, P = V.shape
    S = B.shape[-1]
    by_rows = R * K * (S / H + P + K) <= 2 * K * S * P
    return in_float32(_by_rows if by_rows else _by_states, left, top, B, C, V)


def four_dags(
    left: Float[Tensor, "4 G R K H"],
    top: Float[Tensor, "4 G R K H"],
    B: Float[Tensor, "D G R K S"],
    C: Float[Tensor, "D G R K S"],
    V: Float[Tensor, "G R K H P"],
) -> Float[Tensor, "G R K H P"]:
    """Half the sum of the four DAGs of a grid, rooted at its corners in the order of `CORNERS`.

    Args:
        left, top: per DAG, the weights that enter a node along its row and along its column, from
            the side of the DAG's root.
        B, C: per DAG (D = 4), per diagonal pair (D = 2: the DAGs rooted top left and bottom right,
            then the other two), or the same for all (D = 1).
        V: values, the same for all.

    Raises:
        ValueError: as `grid_resolvent`.

    Source: Lahoti et al., arXiv:2510.12111, vision experiments: outputs divided by √4.
    """
    share = {1: (0, 0, 0, 0), 2: (0, 1, 1, 0), 4: (0, 1, 2, 3)}
    total = torch.zeros_like(V)
    for number, dims in enumerate(CORNERS.values()):
        projections = (x[share[len(x)][number]] for x in (B, C))
        inputs = (left[number], top[number], *projections, V)
        total = total + grid_resolvent(*(x.flip(dims) for x in inputs)).flip(dims)
    return total / 2


@dataclass(frozen=True)
class GridPlan:
    """Images whose nodes, row by row, are joined towards the two sides away from a root.

    Attributes:
        images: G.
        rows: R.
        columns: K.
        root: one of `CORNERS`.
    """

    images: int
    rows: int
    columns: int
    root: str = "top left"

    def resolvent(
        self,
        edge_index: Int[Tensor, "2 E"],
        edge_weight: Float[Tensor, "E H"],
        B: Float[Tensor, "N S"],
        C: Float[Tensor, "N S"],
        V: Float[Tensor, "N H P"],
    ) -> Float[Tensor, "N H P"]:
        """`kernels.resolvent` on these grids; edges in any order, repeated ones add up.

        Raises:
            ValueError: an edge does not join neighbours away from the root, or sizes do not fit.
        """
        nodes = self.images * self.rows * self.columns
        if len(V) != nodes:
            raise ValueError(
                f"{self.images} grids of {self.rows} × {self.columns} have {nodes} nodes, but V "
                f"has {len(V)}: make the plan from the images' own size."
            )
        dims = CORNERS[self.root]
        grids = torch.arange(nodes, device=V.device)
        grids = grids.view(self.images, self.rows, self.columns)
        # Where a node stands once the root is at the top left.
        place = torch.empty_like(grids.flatten())
        place[grids.flip(dims).flatten()] = grids.flatten()
        source, target = place[edge_index]
        along_row = (target - source == 1) & (target % self.columns != 0)
        along_column = target - source == self.columns
        along_column &= target // self.columns % self.rows != 0
        if self.columns == 1:
            along_row = torch.zeros_like(along_row)
        if not (along_row | along_column).all():
            wrong = int((~(along_row | along_column)).nonzero()[0])
            i, j = edge_index[:, wrong].tolist()
            raise ValueError(
                f"Edge {i} → {j} does not lead from a node to its neighbour away from the "
                f"{self.root} corner: give the DAG's own edges, or resolve without this plan."
            )
        none = edge_weight.new_zeros(nodes, edge_weight.shape[1])
        weights = (
            none.index_add(0, target[way], edge_weight[way]) for way in (along_row, along_column)
        )
        shape = (self.images, self.rows, self.columns)
        values = (x.unflatten(0, shape).flip(dims) for x in (B, C, V))
        y = grid_resolvent(*(w.unflatten(0, shape) for w in weights), *values)
        return y.flip(dims).flatten(0, 2)


def _row_matrices(left: Tensor, top: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Per row [G, H, K, K]: the chain's matrix M_r, and M_r diag(top_r)."""
    w_RGHK = left.permute(1, 0, 3, 2)
    K = w_RGHK.shape[-1]
    # Row i of a chain's matrix is its weight times row i − 1, and one on the diagonal.
    eye = torch.eye(K, dtype=left.dtype, device=left.device)
    rows = [eye[0].expand(*w_RGHK.shape[:-1], K)]
    for i in range(1, K):
        rows.append(w_RGHK[..., i : i + 1] * rows[-1] + eye[i])
    M_RGHKK = torch.stack(rows, dim=-2)
    return list(M_RGHKK), list(M_RGHKK * top.permute(1, 0, 3, 2).unsqueeze(-2))


def _by_rows(left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor) -> Tensor:
    """L row by row, masked by C Bᵀ and multiplied at once."""
    K = V.shape[2]
    B_GSn, V_GHnP = B.flatten(1, 2).mT, V.flatten(1, 2).transpose(1, 2)
    outputs, L = [], None
    for r, (M, T) in enumerate(zip(*_row_matrices(left, top), strict=True)):
        L = M if L is None else torch.cat([T @ L, M], dim=-1)
        seen = (r + 1) * K
        kernel_GKn = C[:, r] @ B_GSn[..., :seen]
        outputs.append((L * kernel_GKn.unsqueeze(1)) @ V_GHnP[:, :, :seen])
    return torch.stack(outputs, dim=2).permute(0, 2, 3, 1, 4)


def _by_states(left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor) -> Tensor:
    """The S × P states row by row, read out by C."""
    outputs, state = [], None
    for r, (M, T) in enumerate(zip(*_row_matrices(left, top), strict=True)):
        put_in = torch.einsum("gks,gkhp->ghksp", B[:, r], V[:, r]).flatten(3)
        state = M @ put_in if state is None else M @ put_in + T @ state
        read = state.unflatten(3, (B.shape[-1], -1))
        outputs.append(torch.einsum("gks,ghksp->gkhp", C[:, r], read))
    return torch.stack(outputs, dim=1)
