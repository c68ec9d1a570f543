"""FNO-DEQ: the solution of a steady equation as the fixed point of a Fourier layer.

Marwah et al., "Deep Equilibrium Based Neural Operators for Steady-State PDEs", arXiv:2312.00234.
Shapes: B samples, C channels, then the points of every axis.
"""

from collections.abc import ItemsView, Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from lit_models.layers.fixed_point import FixedPoint, Solution, jacobian_penalty
from lit_models.module import Optimisation
from lit_models.operators.coordinates import Coordinates
from lit_models.operators.operator import FieldBatch, LitOperator
from lit_models.operators.padding import Padding
from lit_models.operators.pointwise import ChannelMLP, Pointwise
from lit_models.operators.spectral import SpectralConv
from lit_models.operators.tasks import FieldTask


class InjectedBlock(nn.Module):
    """Fourier layers z ← GELU(MLP(K z) + W z + x), each of which sees the input x again.

    Args:
        width: channels.
        modes: kept ones of every axis, see SpectralConv.
        layers: how many there are.
        gain: of all weights at the start, over their usual size; well below 1 the block contracts.
    """

    def __init__(self, width: int, modes: Sequence[int], layers: int, gain: float):
        super().__init__()
        self.convs = nn.ModuleList(
            SpectralConv(width, width, modes, bias=False) for _ in range(layers)
        )
        self.mlps = nn.ModuleList(ChannelMLP(width, width, width) for _ in range(layers))
        self.skips = nn.ModuleList(Pointwise(width, width) for _ in range(layers))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(gain)

    def forward(
        self, z: Float[Tensor, "B C *points"], x: Float[Tensor, "B C *points"]
    ) -> Float[Tensor, "B C *points"]:
        for conv, mlp, skip in zip(self.convs, self.mlps, self.skips, strict=True):
            z = F.gelu(mlp(conv(z)) + skip(z) + x)
        return z


class FNODEQ(nn.Module):
    """Lifting to x, z = block(z, x) solved or repeated, one more Fourier layer, projection.

    With `fixed_point` the one block is a map whose fixed point is taken: FNO-DEQ, or FNO-WT where
    its gradient is `unroll`. Without, blocks with weights of their own follow each other: FNO++.
    `solution` tells how the last fixed point was found; where `penalised`, `penalty` is the mean
    square of its Jacobian, for training.

    Args:
        in_channels, out_channels: of the fields.
        modes: m of every axis, see SpectralConv.
        fixed_point: how it is found; None for FNO++.
        width: channels.
        blocks: how many there are; one with a fixed point.
        layers: Fourier layers of a block.
        coordinates, padding: see `lit_models.operators.fno.FNO`.
        gain: see InjectedBlock.

    Raises:
        ValueError: several blocks with a fixed point, or sizes are not positive.

    Source: Marwah et al., arXiv:2312.00234, section 4; its first weights are not scaled down.
    """

    solution: Solution | None = None
    penalised: bool = False
    penalty: Tensor | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        *,
        fixed_point: FixedPoint | None = None,
        width: int = 32,
        blocks: int = 1,
        layers: int = 3,
        coordinates: str | None = "closed",
        padding: float = 0.0,
        gain: float = 1.0,
    ):
        super().__init__()
        if min(in_channels, out_channels, width, blocks, layers, *modes) < 1:
            raise ValueError(
                "Expected positive channels, modes, width, blocks and layers, got "
                f"{in_channels}, {out_channels}, {list(modes)}, {width}, {blocks} and {layers}."
            )
        if fixed_point is not None and blocks > 1:
            raise ValueError(f"A fixed point is of one block, got {blocks}: set blocks=1.")
        self.coordinates = Coordinates(coordinates)
        self.padding = Padding(padding, closed=coordinates == "closed")
        self.fixed_point = fixed_point
        self.lifting = Pointwise(in_channels + self.coordinates.channels(len(modes)), width)
        self.blocks = nn.ModuleList(
            InjectedBlock(width, modes, layers, gain) for _ in range(blocks)
        )
        self.last = SpectralConv(width, width, modes, skip=True)
        self.projection = ChannelMLP(width, 4 * width, out_channels)

    def forward(self, x: Float[Tensor, "B C *points"]) -> Float[Tensor, "B D *points"]:
        points = x.shape[2:]
        x = self.padding(self.lifting(self.coordinates(x)))
        z = torch.zeros_like(x)
        if self.fixed_point is None:
            for block in self.blocks:
                z = block(z, x)
        else:
            z, self.solution = self.fixed_point(lambda z: self.blocks[0](z, x), z)
            if self.penalised and self.training:
                self.penalty = jacobian_penalty(lambda z: self.blocks[0](z, x), z)
        return self.projection(self.padding.cut(self.last(z), points))


class LitFNODEQ(LitOperator):
    """Trains an FNO-DEQ and tells how well its fixed points are found, as LitOperator does others.

    Logged beside the rest: <stage>/residual, <stage>/iterations and <stage>/converged, the share of
    samples within the tolerance, wherever a fixed point is taken.

    Args:
        task, net, optimisation: see LitOperator; the network is an FNODEQ.
        warm_up: updates at first for which the block is repeated and differentiated through.
        warm_up_steps: how often it is repeated then.
        jacobian: weight of the mean square of the Jacobian in the loss of training.
        depths: of the test also the error after so many evaluations of the block, whatever the
            residual: test/nrmse_depth_<k>.
        options: of LitOperator.

    Raises:
        ValueError: see LitOperator; `depths` without a fixed point.
    """

    net: FNODEQ

    def __init__(
        self,
        task: FieldTask,
        net: FNODEQ,
        optimisation: Optimisation,
        *,
        warm_up: int = 0,
        warm_up_steps: int = 8,
        jacobian: float = 0.0,
        depths: Sequence[int] = (),
        **options,
    ):
        super().__init__(task, net, optimisation, **options)
        if depths and net.fixed_point is None:
            raise ValueError("Without a fixed point there are no depths: set model.depths=[].")
        self.warm_up, self.jacobian = warm_up, jacobian
        net.penalised = jacobian > 0
        self.health = nn.ModuleDict(
            {name: MeanMetric() for name in ("residual", "iterations", "converged")}
        )
        self.at_depth = nn.ModuleDict({str(depth): MeanMetric() for depth in depths})
        self.solved = net.fixed_point
        if self.solved is not None:
            self.repeated = replace(self.solved, gradient="unroll", most=warm_up_steps)

    def training_loss(self, batch: FieldBatch) -> Tensor:
        if self.solved is None:
            return super().training_loss(batch)
        warm = self.global_step < self.warm_up
        self.net.fixed_point = self.repeated if warm else self.solved
        loss = super().training_loss(batch)
        self.net.fixed_point = self.solved
        for name in self.health:
            self.log(f"train/{name}", self._of_samples(name).mean())
        return loss if self.net.penalty is None else loss + self.jacobian * self.net.penalty

    def _evaluate(self, batch: FieldBatch, metrics: MetricCollection) -> None:
        super()._evaluate(batch, metrics)
        if self.solved is not None:
            for name, mean in means_in(self.health):
                mean.update(self._of_samples(name))

    def test_step(self, batch: FieldBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().test_step(batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0 and self.solved is not None:
            for depth, mean in means_in(self.at_depth):
                self.net.fixed_point = replace(self.solved, most=int(depth), tolerance=0.0)
                mean.update(self.task.loss(self(batch), batch), self.task.samples(batch))
            self.net.fixed_point = self.solved

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        for depth, mean in means_in(self.at_depth):
            self.log(f"test/nrmse_depth_{depth}", mean.compute())
            mean.reset()

    def _log_metrics(self, metrics: MetricCollection, stage: str) -> None:
        super()._log_metrics(metrics, stage)
        if self.solved is not None:
            for name, mean in means_in(self.health):
                self.log(f"{stage}/{name}", mean.compute())
                mean.reset()

    def _of_samples(self, name: str) -> Tensor:
        return getattr(self.net.solution, name).float()


def means_in(metrics: nn.ModuleDict) -> ItemsView[str, MeanMetric]:
    """Metrics that are means, by their names."""
    return cast(ItemsView[str, MeanMetric], metrics.items())
