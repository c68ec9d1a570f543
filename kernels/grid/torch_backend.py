"""The resolvent product on the DAG of a two-dimensional grid, band by band.

Shapes: G images, R rows, K columns, n = R · K nodes, H heads, S state, P head dimension. b rows are
a band of m = b · K nodes; t images, or t lanes (one head of one image), are worked on at a time.
Images never meet in a product, not even as 0 · NaN.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.autograd import refuse_second_derivatives
from kernels.chain.matrix import (
    chain_matrix,
    chain_matrix_adjoint,
    largest_divisor_up_to_the_root,
)
from kernels.tiling import tiles


def row_form(left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor) -> Tensor:
    """Form the rows of L, mask them by C Bᵀ, multiply."""
    return _RowForm.apply(left, top, B, C, V)


def state_form(left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor) -> Tensor:
    """The recurrence on lanes, one for each head of each image: all heads at once do not fit."""
    G, _, _, H, _ = V.shape
    weights_and_values = (x.movedim(3, 1).flatten(0, 1) for x in (left, top, V))
    projections = (x.repeat_interleave(H, dim=0) for x in (B, C))
    left, top, V = weights_and_values
    return _StateForm.apply(left, top, *projections, V).unflatten(0, (G, H)).movedim(1, 3)


class _Bands(NamedTuple):
    """What the rows of L are built from.

    Attributes:
        top: [t · H · bands, b, 1, K] weights of the edges from above.
        row: [t · H · bands, b, K, K] chain matrices R_r.
        own: [t · H, bands, m, m] L within each band.
        entering: [t · H, bands, m, K] what the last row above a band sends to its nodes.
    """

    top: Tensor
    row: Tensor
    own: Tensor
    entering: Tensor

    @classmethod
    def of(cls, left: Tensor, top: Tensor) -> "_Bands":
        t, R, K, H = left.shape
        b = largest_divisor_up_to_the_root(R)
        left, top = (x.permute(0, 3, 1, 2).reshape(-1, b, K) for x in (left, top))
        row, top = chain_matrix(left), top.unsqueeze(-2)
        own = row.new_zeros(len(row), b * K, b * K)
        own[:, :K, :K] = row[:, 0]
        for r in range(1, b):
            above, here, seen = _row_slices(r, K)
            own[:, here, here] = row[:, r]
            own[:, here, seen] = torch.bmm(row[:, r] * top[:, r], own[:, above, seen])
        entering = own[..., :K] * top[:, 0]
        return cls(top, row, *(x.unflatten(0, (t * H, R // b)) for x in (own, entering)))

    def from_above(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For every band but the first: (L, last) on the nodes of all earlier bands.

        L [t · H, m, k · m] is what they send to band k, last [t · H, K, k · m] what they sent to
        the row just above it.
        """
        K = self.row.shape[-1]
        last = self.own[:, 0, -K:]
        for k in range(1, self.own.shape[1]):
            L, above = torch.bmm(self.entering[:, k], last), last
            # Before L is handed out, whose receiver may overwrite it.
            last = torch.cat([L[:, -K:], self.own[:, k, -K:]], dim=-1)
            yield L, above


def _row_slices(r: int, K: int) -> tuple[slice, slice, slice]:
    """Nodes of row r − 1, of row r, and of all rows above r."""
    return slice((r - 1) * K, r * K), slice(r * K, r * K + K), slice(r * K)


class _RowForm(torch.autograd.Function):
    """Y = (L ⊙ C Bᵀ) V, tile by tile of images; the backward pass builds L again."""

    @staticmethod
    def forward(ctx, left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor) -> Tensor:
        ctx.save_for_backward(left, top, B, C, V)
        Y = V.new_empty(V.shape)
        for t in _image_tiles(V):
            bands, nodes = _Bands.of(left[t], top[t]), (B[t].flatten(1, 2), C[t].flatten(1, 2))
            Y[t] = _by_node(_mix(bands, *nodes, _by_head(V[t])), V[t])
        return Y

    @staticmethod
    def backward(ctx, dY: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        left, top, B, C, V = ctx.saved_tensors
        d_left, d_top, dB, dC, dV = (x.new_empty(x.shape) for x in ctx.saved_tensors)
        for t in _image_tiles(V):
            bands, nodes = _Bands.of(left[t], top[t]), (B[t].flatten(1, 2), C[t].flatten(1, 2))
            *d_bands, dB_t, dC_t, dV_t = _mix_adjoint(
                bands, *nodes, _by_head(V[t]), _by_head(dY[t])
            )
            dB[t], dC[t] = dB_t.view_as(dB[t]), dC_t.view_as(dC[t])
            dV[t] = _by_node(dV_t, V[t])
            weights = (_by_node(x, V[t]).squeeze(-1) for x in _bands_adjoint(bands, *d_bands))
            d_left[t], d_top[t] = weights
        return d_left, d_top, dB, dC, dV


def _image_tiles(V: Tensor) -> list[slice]:
    G, R, K, H, _ = V.shape
    # The largest array at work is one band of L, on average half full.
    return tiles(G, H * largest_divisor_up_to_the_root(R) * K * R * K // 2, V.device)


def _by_head(x_tRKHP: Tensor) -> Tensor:
    """[t, R, K, H, P] → [t · H, n, P], contiguous."""
    return x_tRKHP.flatten(1, 2).transpose(1, 2).contiguous().flatten(0, 1)


def _by_node(x: Tensor, V: Tensor) -> Tensor:
    """[t · H …] with p numbers for every node → [t, R, K, H, p]."""
    t, R, K, H, _ = V.shape
    return x.reshape(t, H, R, K, -1).movedim(1, 3)


def _mix(bands: _Bands, B_tnS: Tensor, C_tnS: Tensor, V_head: Tensor) -> Tensor:
    """Y [t · H, n, P]."""
    t, n, S = B_tnS.shape
    lanes, count, m, _ = bands.own.shape
    kernel = torch.bmm(C_tnS.reshape(-1, m, S), B_tnS.reshape(-1, m, S).mT)
    M = bands.own.view(t, -1, count, m, m) * kernel.view(t, 1, count, m, m)
    Y = torch.bmm(M.view(-1, m, m), V_head.view(lanes * count, m, -1)).view(lanes, n, -1)
    for k, (L, _) in enumerate(bands.from_above(), start=1):
        here, seen = slice(k * m, k * m + m), slice(k * m)
        kernel = torch.bmm(C_tnS[:, here], B_tnS[:, seen].mT).unsqueeze(1)
        L.view(t, -1, *L.shape[1:]).mul_(kernel)
        Y[:, here] += torch.bmm(L, V_head[:, seen])
    return Y


def _mix_adjoint(
    bands: _Bands, B_tnS: Tensor, C_tnS: Tensor, V_head: Tensor, dY_head: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of own and entering (of `bands`), B, C [t, n, S] and V [t · H, n, P]."""
    t, n, S = B_tnS.shape
    lanes, count, m, _ = bands.own.shape
    K = bands.row.shape[-1]
    V_mT = V_head.mT.contiguous()  # products with it are faster so

    # Within the bands, all at once.
    own = bands.own.view(t, -1, count, m, m)
    B_band, C_band, dY_band = (x.reshape(-1, m, x.shape[-1]) for x in (B_tnS, C_tnS, dY_head))
    kernel = torch.bmm(C_band, B_band.mT).view(t, 1, count, m, m)
    dV = torch.bmm((own * kernel).view(-1, m, m).mT, dY_band).view(lanes, n, -1)
    V_band = V_head.view(lanes * count, m, -1)
    d_own = torch.bmm(dY_band, V_band.mT).view_as(own)
    d_kernel = _over_heads(d_own, own).view(-1, m, m)
    dC = torch.bmm(d_kernel, B_band).view(t, n, S)
    dB = torch.bmm(d_kernel.mT, C_band).view(t, n, S)
    d_own = d_own.mul_(kernel).view(lanes, count, m, m)

    # From the earlier bands, the last band first.
    d_entering = torch.zeros_like(bands.entering)
    d_last = None  # gradient of the last row of band k, on the nodes seen by band k + 1
    for k, (L, last) in reversed(list(enumerate(bands.from_above(), start=1))):
        here, seen = slice(k * m, k * m + m), slice(k * m)
        B_seen, C_here, dY_here = B_tnS[:, seen], C_tnS[:, here], dY_head[:, here]
        L_tHms = L.view(t, -1, *L.shape[1:])
        kernel = torch.bmm(C_here, B_seen.mT).unsqueeze(1)
        dL = torch.bmm(dY_here, V_mT[..., seen])
        dL_tHms = dL.view_as(L_tHms)
        d_kernel = _over_heads(dL_tHms, L_tHms)
        dC[:, here] += torch.bmm(d_kernel, B_seen)
        dB[:, seen] += torch.bmm(d_kernel.mT, C_here)
        L_tHms.mul_(kernel)
        dV[:, seen] += torch.bmm(L.mT, dY_here)
        dL_tHms.mul_(kernel)
        if d_last is not None:
            dL[:, -K:] += d_last[..., seen]
            d_own[:, k, -K:] += d_last[..., here]
        d_entering[:, k] = torch.bmm(dL, last.mT)
        d_last = torch.bmm(bands.entering[:, k].mT, dL)
    if d_last is not None:
        d_own[:, 0, -K:] += d_last
    return d_own, d_entering, dB, dC, dV


def _over_heads(x_tH: Tensor, y_tH: Tensor) -> Tensor:
    """Σ_h x_h y_h without the products in memory."""
    total = x_tH[:, 0] * y_tH[:, 0]
    for h in range(1, x_tH.shape[1]):
        total.addcmul_(x_tH[:, h], y_tH[:, h])
    return total


def _bands_adjoint(bands: _Bands, d_own: Tensor, d_entering: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of left and top, [t · H · bands, b, K] each."""
    K = bands.row.shape[-1]
    own, d_own, d_entering = bands.own.flatten(0, 1), d_own.flatten(0, 1), d_entering.flatten(0, 1)
    d_top = torch.empty_like(bands.top)
    d_row = torch.empty_like(bands.row)
    d_top[:, 0] = (d_entering * own[..., :K]).sum(-2, keepdim=True)
    d_own[..., :K].addcmul_(d_entering, bands.top[:, 0])
    for r in reversed(range(1, bands.row.shape[1])):
        above, here, seen = _row_slices(r, K)
        row, top, d_seen = bands.row[:, r], bands.top[:, r], d_own[:, here, seen]
        d_sent = torch.bmm(d_seen, own[:, above, seen].mT)
        d_own[:, above, seen] += torch.bmm((row * top).mT, d_seen)
        d_row[:, r] = torch.addcmul(d_own[:, here, here], d_sent, top)
        d_top[:, r] = (d_sent * row).sum(-2, keepdim=True)
    d_row[:, 0] = d_own[:, :K, :K]
    d_left = chain_matrix_adjoint(bands.row.flatten(0, 1), d_row.flatten(0, 1))
    return d_left, d_top


class _StateForm(torch.autograd.Function):
    """h_r = R_r (top_r h_{r−1} + B_r ⊗ V_r), y = ⟨C, h⟩ on lanes; backward computes h again.

    With g the gradient of what enters a node, the same recurrence from below: d left and d top are
    inner products of g with the neighbour's h, dB = g V, dV = g B, dC = h dY.
    """

    @staticmethod
    def forward(ctx, left: Tensor, top: Tensor, B: Tensor, C: Tensor, V: Tensor) -> Tensor:
        ctx.save_for_backward(left, top, B, C, V)
        Y = V.new_empty(V.shape)
        for t in _lane_tiles(B, V, rows=1):
            states = _states(chain_matrix(left[t]), top[t], B[t], V[t])
            for r, h in enumerate(states):
                Y[t, r] = _read(C[t, r], h)
        return Y

    @staticmethod
    def backward(ctx, dY: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        left, top, B, C, V = ctx.saved_tensors
        # Nothing enters the first column and the first row.
        d_left, d_top, dB, dC, dV = (x.new_zeros(x.shape) for x in ctx.saved_tensors)
        for t in _lane_tiles(B, V, rows=V.shape[1]):
            row = chain_matrix(left[t])
            states = list(_states(row, top[t], B[t], V[t]))
            g = None
            for r in reversed(range(V.shape[1])):
                dh = _outer(C[t, r], dY[t, r])
                if g is not None:
                    dh.addcmul_(top[t, r + 1, :, None, None], g)
                g = torch.bmm(row[:, r].mT, dh.flatten(2)).view_as(dh)
                h = states.pop()
                dC[t, r] = torch.matmul(h, dY[t, r].unsqueeze(-1)).squeeze(-1)
                dB[t, r] = torch.matmul(g, V[t, r].unsqueeze(-1)).squeeze(-1)
                dV[t, r] = _read(B[t, r], g)
                d_left[t, r, 1:] = (g[:, 1:] * h[:, :-1]).sum((-2, -1))
                if r:
                    d_top[t, r] = (g * states[-1]).sum((-2, -1))
        return d_left, d_top, dB, dC, dV


def _states(row: Tensor, top: Tensor, B: Tensor, V: Tensor) -> Iterator[Tensor]:
    """h [t, K, S, P] of every row."""
    h = None
    for r in range(V.shape[1]):
        entering = _outer(B[:, r], V[:, r])
        if h is not None:
            entering.addcmul_(top[:, r, :, None, None], h)
        h = torch.bmm(row[:, r], entering.flatten(2)).view_as(entering)
        yield h


def _outer(x_tKS: Tensor, y_tKP: Tensor) -> Tensor:
    """x ⊗ y [t, K, S, P]."""
    return x_tKS.unsqueeze(-1) * y_tKP.unsqueeze(-2)


def _read(x_tKS: Tensor, h_tKSP: Tensor) -> Tensor:
    """⟨x, h⟩ [t, K, P]."""
    return torch.matmul(x_tKS.unsqueeze(-2), h_tKSP).squeeze(-2)


def _lane_tiles(B: Tensor, V: Tensor, rows: int) -> list[slice]:
    lanes, _, K, P = V.shape
    return tiles(lanes, rows * K * B.shape[-1] * P, V.device)
