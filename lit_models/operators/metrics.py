"""Metrics of predicted trajectories of fields, each one number a sample, or several, then averaged.

Shapes: `update(preds, target)` takes real [B, T, C, *points], with one to three spatial axes, in
any precision; all is computed and summed in float64. A sample weighs the same in whatever batch or
process it was. `compute()` is NaN before the first update.

A prediction that is NaN or infinite has an infinite error, and so has the mean over the samples. An
error relative to a target of zero is infinite too, unless the prediction is exact: then it is zero.

A MetricCollection of them needs `compute_groups=False`: torchmetrics takes two metrics for one if
their numbers agree on the first batch, which infinities and whole numbers of steps easily do.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torchmetrics
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat


class TrajectoryMetric(torchmetrics.Metric):
    """The mean over all samples of what `of_samples` says of each.

    Args:
        shape: of what is said of one sample; -1 for an axis as long as the trajectory.

    Raises:
        ValueError: in `update`, if shapes differ or are not [B, T, C, *points], a field is complex,
            or a target is not finite; in `compute`, if samples differ in their number of steps
            where every step has its own number.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    rows: list[Tensor]
    columns: Tensor
    samples: Tensor

    def __init__(self, shape: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # torchmetrics gathers an empty tensor of this type from a rank without data.
        self.set_dtype(torch.float64)
        self.shape = shape
        # Flat, for the same reason: that tensor has one dimension.
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("columns", torch.tensor(0), dist_reduce_fx="max")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def of_samples(self, preds: Tensor, target: Tensor) -> Tensor:
        """[B, *shape], not negative, NaN counting as infinite; of float64 [B, T, C, *points]."""

    def pool(self, values: Tensor, dim: int) -> Tensor:
        """One number for many along `dim`."""
        return values.mean(dim)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions and targets, both [B, T, C, *points]."""
        if preds.shape != target.shape or not 4 <= target.ndim <= 6 or not target.numel():
            raise ValueError(
                f"Expected predictions and targets of one shape [B, T, C, *points], with one to "
                f"three spatial axes and nothing empty, got {list(preds.shape)} and "
                f"{list(target.shape)}."
            )
        if preds.is_complex() or target.is_complex():
            raise ValueError("Expected real fields, got complex ones: pass both parts as channels.")
        if not target.isfinite().all():
            raise ValueError("Expected finite targets, got NaN or infinity: check the data.")
        values = self.of_samples(preds.detach().double(), target.double())
        values = values.reshape(len(values), -1)
        self.rows.append(values.nan_to_num(nan=torch.inf, posinf=torch.inf).flatten())
        self.columns.clamp_(min=values.shape[1])
        self.samples += len(values)

    def compute(self) -> Float[Tensor, "..."]:
        """Of the metric's shape."""
        if not self.samples:
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        rows = dim_zero_cat(self.rows)
        if rows.numel() != self.samples * self.columns:
            raise ValueError(
                f"Expected trajectories of one number of steps, got several, up to "
                f"{int(self.columns)} numbers a sample: evaluate them apart, or set per_step=False."
            )
        return self.pool(rows.reshape(int(self.samples), -1), 0).reshape(self.shape)


class StepwiseMetric(TrajectoryMetric):
    """The mean over all samples and steps of what `of_steps` says of each.

    Args:
        per_step: keep the steps apart: `compute()` has a first axis [T].
        shape: of what is said of one step.
    """

    def __init__(self, per_step: bool = False, shape: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__((-1, *shape) if per_step else shape, **kwargs)
        self.per_step = per_step

    @abstractmethod
    def of_steps(self, preds: Tensor, target: Tensor) -> Tensor:
        """[B, T, *shape], of float64 [B, T, C, *points]."""

    def of_samples(self, preds: Tensor, target: Tensor) -> Tensor:
        values = self.of_steps(preds, target)
        return values if self.per_step else self.pool(values, 1)


class RelativeL2(StepwiseMetric):
    """nRMSE: ‖u − v‖ / ‖v‖ over channels and points, of prediction u and target v.

    Args:
        per_step: see StepwiseMetric.

    Source: the metric of Buitrago Ruiz et al., MemNO, arXiv:2409.02313.
    """

    def of_steps(self, preds: Tensor, target: Tensor) -> Tensor:
        return _relative_l2(preds, target)


class VRMSE(StepwiseMetric):
    """√(⟨|u − v|²⟩ / (⟨|v − ⟨v⟩|²⟩ + ε)) of each channel, ⟨⟩ over points, averaged over channels.

    The target's mean as a prediction has 1. A constant target leaves ε, in the squared unit of the
    fields, as the scale: the error is finite and large.

    Args:
        per_step: see StepwiseMetric.
        eps: ε.

    Source: Ohana et al., The Well, arXiv:2412.00568; their code divides the variance by the number
    of points less one, and ours, as their formula, by the number of points.
    """

    def __init__(self, per_step: bool = False, eps: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(per_step, **kwargs)
        self.eps = eps

    def of_steps(self, preds: Tensor, target: Tensor) -> Tensor:
        variance = target.flatten(3).var(dim=3, correction=0)
        return (_mean_square(preds - target) / (variance + self.eps)).sqrt().mean(dim=2)


class RMSE(StepwiseMetric):
    """√⟨|u − v|²⟩ of each channel, ⟨⟩ over points, averaged over channels; in the fields' unit.

    Args:
        per_step: see StepwiseMetric.

    Source: Takamoto et al., PDEBench, arXiv:2210.07182.
    """

    def of_steps(self, preds: Tensor, target: Tensor) -> Tensor:
        return _mean_square(preds - target).sqrt().mean(dim=2)


class MaxError(StepwiseMetric):
    """Largest |u − v| of all samples, steps, channels and points; in the fields' unit.

    Args:
        per_step: the largest of every step.
    """

    def of_steps(self, preds: Tensor, target: Tensor) -> Tensor:
        return (preds - target).abs().flatten(2).amax(dim=2)

    def pool(self, values: Tensor, dim: int) -> Tensor:
        return values.amax(dim)


class SpectralError(StepwiseMetric):
    """‖u − v‖ / ‖v‖ with u − v cut down to a band of wavenumbers |k|, for each of several bands.

    The scale is the whole target, not its part in the band, which may be no more than rounding: so
    at every step the squares of the bands add up to the square of RelativeL2. The entries of k are
    whole numbers of waves along the axes, |k| is its Euclidean length, and the last band has the
    corners of the spectrum too. Fields that are not periodic count their jump from end to end.

    `compute()` is [bands], or [T, bands].

    Args:
        per_step: see StepwiseMetric.
        edges: |k| where the second and each further band begins; the defaults are PDEBench's.

    Raises:
        ValueError: if edges do not increase from above 0.

    Source: bands of the fRMSE of Takamoto et al., PDEBench, arXiv:2210.07182, which has no scale;
    their code begins the bands at 4 and 12.
    """

    def __init__(
        self, per_step: bool = False, edges: Sequence[int] = (5, 13), **kwargs: Any
    ) -> None:
        if list(edges) != sorted(set(edges)) or min(edges, default=1) <= 0:
            raise ValueError(f"Expected edges that increase from above 0, got {list(edges)}.")
        super().__init__(per_step, (len(edges) + 1,), **kwargs)
        self.edges = tuple(edges)

    def of_steps(self, preds: Tensor, target: Tensor) -> Tensor:
        sizes = target.shape[3:]
        like = {"dtype": target.dtype, "device": target.device}
        # Not fftfreq, which may miss whole numbers by rounding, and a band begins at one.
        numbers = [(torch.arange(n, **like) + n // 2) % n - n // 2 for n in sizes[:-1]]
        last = torch.arange(sizes[-1] // 2 + 1, **like)
        k = torch.stack(torch.meshgrid(*numbers, last, indexing="ij")).norm(dim=0)
        band = torch.bucketize(k, torch.tensor(self.edges, **like), right=True)
        # Half of the last axis was not computed; each mode between its ends stands for two.
        twice = torch.where((last > 0) & (2 * last < sizes[-1]), 2, 1)
        weight = F.one_hot(band, len(self.edges) + 1) * twice.unsqueeze(1)

        axes = tuple(range(3, target.ndim))
        # Normed "ortho", the coefficients of a field have its sum of squares.
        power = torch.fft.rfftn(preds - target, dim=axes, norm="ortho").abs().square().sum(dim=2)
        error = (power.flatten(2) @ weight.flatten(end_dim=-2).to(power)).sqrt()
        return _relative(error, target.flatten(2).norm(dim=2).unsqueeze(2))


class ConservationDrift(TrajectoryMetric):
    """Largest |Q(t) − Q(0)| / scale of all steps, for a quantity Q that the equation conserves.

    Q(t) is of the prediction; Q(0) and the scale are of the target's first step, so a prediction
    that is wrong from the first step on has drifted.

    Args:
        quantity: "mean": Q has the mean of each channel, |·| is the Euclidean length, the scale is
            the root of the energy; "energy": Q, also the scale, is the mean square over points,
            summed over channels.
        channels: numbers of those in which to look, all if None.

    Raises:
        ValueError: if the quantity is neither, or no channel is looked at; in `update`, if there is
            no such channel.
    """

    def __init__(
        self,
        quantity: str,
        channels: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if quantity not in ("mean", "energy"):
            raise ValueError(f"Expected quantity 'mean' or 'energy', got {quantity!r}.")
        if channels is not None and not len(channels):
            raise ValueError("Expected at least one channel, got none: leave None for all.")
        super().__init__(**kwargs)
        self.quantity = quantity
        self.channels = slice(None) if channels is None else list(channels)

    def of_samples(self, preds: Tensor, target: Tensor) -> Tensor:
        if isinstance(self.channels, list) and not max(self.channels) < target.shape[2]:
            raise ValueError(
                f"Expected channels below {target.shape[2]}, as fields have, got {self.channels}."
            )
        preds, first = preds[:, :, self.channels], target[:, :1, self.channels]
        energy = _mean_square(first).sum(dim=2)
        if self.quantity == "energy":
            drift, scale = (_mean_square(preds).sum(dim=2) - energy).abs(), energy
        else:
            means = preds.flatten(3).mean(dim=3) - first.flatten(3).mean(dim=3)
            drift, scale = means.norm(dim=2), energy.sqrt()
        return _relative(drift, scale).amax(dim=1)


class StabilityTime(TrajectoryMetric):
    """Number of steps before the first whose relative L2 error is above a threshold or not finite.

    That is the index, from 0, of that step; T if there is none.

    Args:
        threshold: highest error that is still right.
    """

    higher_is_better = True

    def __init__(self, threshold: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def of_samples(self, preds: Tensor, target: Tensor) -> Tensor:
        return _steps_before_failure(_relative_l2(preds, target) <= self.threshold)


class CorrelationTime(TrajectoryMetric):
    """Number of steps before the first at which Pearson's correlation is below a threshold.

    That is the index, from 0, of that step; T if there is none. The correlation is of each channel
    over points, then averaged over the channels whose target is not constant at that step; a
    constant prediction of them has 0, one that is not finite fails. A step at which all channels
    of the target are constant does not fail.

    Args:
        threshold: lowest correlation that is still right.

    Source: high-correlation time of Lippe et al., PDE-Refiner, arXiv:2308.05732.
    """

    higher_is_better = True

    def __init__(self, threshold: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def of_samples(self, preds: Tensor, target: Tensor) -> Tensor:
        u, v = _normed_fluctuation(preds), _normed_fluctuation(target)
        varies = v.any(dim=3)
        # A channel that does not vary has v = 0, and so no part in the sum.
        mean = (u * v).sum(dim=(2, 3)) / varies.sum(dim=2)
        right = (mean >= self.threshold) | ~varies.any(dim=2)
        return _steps_before_failure(right & preds.isfinite().flatten(2).all(dim=2))


def _relative(error: Tensor, scale: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / scale)


def _relative_l2(preds: Tensor, target: Tensor) -> Float[Tensor, "samples steps"]:
    return _relative((preds - target).flatten(2).norm(dim=2), target.flatten(2).norm(dim=2))


def _mean_square(u: Tensor) -> Float[Tensor, "samples steps channels"]:
    return u.flatten(3).square().mean(dim=3)


def _normed_fluctuation(u: Tensor) -> Float[Tensor, "samples steps channels points"]:
    u = u.flatten(3)
    # Without the first value, rounding of the mean would leave something of a constant field.
    u = u - u[..., :1]
    return F.normalize(u - u.mean(dim=3, keepdim=True), dim=3, eps=torch.finfo(u.dtype).tiny)


def _steps_before_failure(right: Tensor) -> Float[Tensor, " samples"]:
    return right.long().cumprod(dim=1).sum(dim=1).double()
