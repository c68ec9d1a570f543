"""Pictures of fields in TensorBoard: true, predicted and their difference, rollouts, spectra.

Shapes: B samples, T steps, C channels, then the points of every axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.utils.data import default_collate

from lit_models.callbacks.cadence import is_due
from lit_models.operators.metrics import RelativeL2
from lit_models.trainer import board_of, data_of

COLOURS, ERROR_COLOURS = "viridis", "RdBu_r"


class FieldPictures(Callback):
    """Draws rollouts of a few fixed validation samples, by the weights that are validated.

    All in the equation's units. In one dimension space–time diagrams, or curves of a single step;
    in two the last state and a strip of several; in three the same of the plane amid the last axis.
    Of trajectories also energy spectra, and the error against the step; of steady problems what is
    given beside its solution.

    The module maps a batch of a PDEDataModule to what it predicts of the batch's target, as a
    LitOperator does.

    Args:
        every_n_epochs: validation epochs between two drawings; the first and the last are drawn.
        samples: number of samples that are drawn, evenly spaced among those for validation.
        rollouts: number of samples, likewise, over which spectra and errors are averaged.
        times: number of steps in a strip, and of spectra, evenly spaced from first to last.

    Raises:
        ValueError: if one of them is not positive.
    """

    def __init__(
        self, every_n_epochs: int = 5, samples: int = 2, rollouts: int = 16, times: int = 5
    ):
        if min(every_n_epochs, samples, rollouts, times) < 1:
            raise ValueError(
                f"Expected positive numbers, got every_n_epochs={every_n_epochs}, "
                f"samples={samples}, rollouts={rollouts}, times={times}."
            )
        self.every_n_epochs = every_n_epochs
        self.samples, self.rollouts, self.times = samples, rollouts, times

    @rank_zero_only
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Averaged weights are in place now; when the epoch ends, they are taken away before this
        # callback's turn.
        if not is_due(trainer, self.every_n_epochs):
            return
        data = data_of(trainer)
        chosen = spread(len(data.val_dataset), self.rollouts)
        batch = default_collate([data.val_dataset[i] for i in chosen])
        moved = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
        scene = Scene.of(data, chosen, batch)
        figures = self.draw(scene, batch["target"], pl_module(moved).float().cpu())
        for tag, figure in figures.items():
            board_of(trainer).add_figure(tag, figure, trainer.global_step)

    def draw(self, scene: "Scene", true: Tensor, predicted: Tensor) -> dict[str, Figure]:
        """Figures by their tags, of fields [B, T, C, *points]."""
        figures = {}
        steps = spread(true.shape[1], self.times)
        for i in spread(len(true), self.samples):
            pair = Pair(true[i], predicted[i], scene.channels)
            about = scene.given[i], scene.times[i], scene.space
            for kind, figure in draw_sample(pair, *about, steps).items():
                figures[f"{kind}/sample_{scene.samples[i]}"] = figure
        if not scene.is_steady:
            figures["spectrum"] = draw_spectra(true, predicted, scene.channels, steps)
            figures["error_by_step"] = draw_errors(true, predicted)
        return figures


def spread(count: int, wanted: int) -> list[int]:
    """At most so many of `count` numbers, evenly spaced from the first to the last."""
    number = min(count, wanted)
    return [i * (count - 1) // max(number - 1, 1) for i in range(number)]


@dataclass(frozen=True)
class Axis:
    """Where values stand: equally spaced, and what that is called."""

    label: str
    values: Tensor

    @property
    def edges(self) -> tuple[float, float]:
        """The outer ends of the first and the last value's cell."""
        first, last = float(self.values[0]), float(self.values[-1])
        half = (last - first) / (len(self.values) - 1) / 2 if len(self.values) > 1 else 0.5
        return first - half, last + half


@dataclass(frozen=True)
class Scene:
    """What is known of some samples beside what is predicted.

    Attributes:
        samples: their numbers among those for validation.
        channels: names of what is predicted.
        is_steady: there is no time.
        given: for every sample a field [*points] by its name; of a steady problem what it depends
            on, else the last state before the first step.
        space: one per axis.
        times: one per sample, of the T steps.
    """

    samples: list[int]
    channels: Sequence[str]
    is_steady: bool
    given: list[dict[str, Tensor]]
    space: list[Axis]
    times: list[Axis]

    @classmethod
    def of(cls, data: Any, samples: list[int], batch: dict[str, Tensor]) -> "Scene":
        """Of the batch of these samples of a PDEDataModule."""
        given, steps = batch["input"], batch["target"].shape[1]
        names = [f"{name}, given" for name in (data.inputs or data.channels)]
        first = (batch["first"] + given.shape[1]).tolist()
        return cls(
            samples=samples,
            channels=data.channels,
            is_steady=bool(data.inputs),
            given=[dict(zip(names, fields, strict=True)) for fields in given[:, -1]],
            space=space_axes(data, given.shape[3:]),
            times=[time_axis(data, start, steps) for start in first],
        )


def space_axes(data: Any, points: Sequence[int]) -> list[Axis]:
    """By the equation's coordinates; by numbers of points where the data are from elsewhere."""
    if data.source_used == "generated":
        return [Axis(name, x) for name, x in zip("xyz", data.coordinates, strict=False)]
    names = (f"{name} (points)" for name in "xyz")
    return [Axis(name, torch.arange(n)) for name, n in zip(names, points, strict=False)]


def time_axis(data: Any, first: int, steps: int) -> Axis:
    """By the times that the files hold, or by numbers of frames."""
    dataset = data.val_dataset
    times = torch.as_tensor(dataset.files.times)[:: dataset.sampling.time_stride]
    if first + steps > len(times):
        return Axis("frame", torch.arange(first, first + steps))
    return Axis("t", times[first : first + steps])


@dataclass(frozen=True)
class Pair:
    """True and predicted fields of one sample, [T, C, *points], and the names of its channels."""

    true: Tensor
    predicted: Tensor
    channels: Sequence[str]

    def rows(self, channel: int) -> dict[str, "Layer"]:
        """[T, *points] of a channel by their titles: both on the truth's scale, and the error."""
        name = self.channels[channel]
        true, predicted = self.true[:, channel], self.predicted[:, channel]
        error = predicted - true
        return {
            f"{name}, true": Layer(true, limits_of(true)),
            f"{name}, predicted": Layer(predicted, limits_of(true)),
            f"{name}, error": Layer(error, around_zero(error), ERROR_COLOURS),
        }


@dataclass(frozen=True)
class Layer:
    """Fields, the values at the ends of their colour scale, and its name."""

    fields: Tensor
    limits: tuple[float, float]
    colours: str = COLOURS

    def plane(self, step: int) -> Tensor:
        """[x, y] of a step; of three axes, amid the last."""
        field = self.fields[step]
        return field if field.ndim == 2 else field[..., field.shape[-1] // 2]


def limits_of(fields: Tensor) -> tuple[float, float]:
    """Lowest and highest."""
    return float(fields.min()), float(fields.max())


def around_zero(errors: Tensor) -> tuple[float, float]:
    """Plus and minus the largest that is finite; ±1 where all are zero."""
    largest = float(errors.nan_to_num(0, 0, 0).abs().max()) or 1.0
    return -largest, largest


def draw_sample(
    pair: Pair,
    given: dict[str, Tensor],
    time: Axis,
    space: list[Axis],
    steps: Sequence[int],
) -> dict[str, Figure]:
    """What there is to draw of a sample with so many axes and steps, by its kind."""
    if len(space) == 1:
        if len(time.values) == 1:
            return {"fields": draw_curves(pair, given, space)}
        return {"space_time": draw_space_time(pair, time, space)}
    figures = {"fields": draw_state(pair, given, space)}
    if len(time.values) > 1:
        figures["rollout"] = draw_strip(pair, time, space, steps)
    return figures


def draw_state(pair: Pair, given: dict[str, Tensor], space: list[Axis]) -> Figure:
    """The last step; a row a channel: what was given, true, predicted and error."""
    columns = [
        [(name, Layer(field[None], limits_of(field))) for name, field in given.items()],
        *zip(*(pair.rows(i).items() for i in range(len(pair.channels))), strict=True),
    ]
    figure, grid = panels(max(map(len, columns)), len(columns))
    for column, layers in enumerate(columns):
        for line, (title, layer) in zip(grid, layers, strict=False):
            shown = show(line[column], layer.plane(-1), layer, space)
            figure.colorbar(shown, ax=line[column], shrink=0.8)
            line[column].set_title(title)
        for line in grid[len(layers) :]:
            line[column].set_axis_off()
    return figure


def draw_strip(pair: Pair, time: Axis, space: list[Axis], steps: Sequence[int]) -> Figure:
    """Some steps from left to right; three rows a channel: true, predicted and error."""
    rows = {
        title: layer
        for channel in range(len(pair.channels))
        for title, layer in pair.rows(channel).items()
    }
    figure, grid = panels(len(rows), len(steps))
    for line, (title, layer) in zip(grid, rows.items(), strict=True):
        shown = []
        for axes, step in zip(line, steps, strict=True):
            shown.append(show(axes, layer.plane(step), layer, space))
            axes.set(xlabel="", ylabel="", xticks=[], yticks=[])
        figure.colorbar(shown[-1], ax=line, shrink=0.8)
        line[0].set_ylabel(title)
    for axes, step in zip(grid[0], steps, strict=True):
        axes.set_title(f"{time.label} = {float(time.values[step]):.4g}")
    return figure


def draw_space_time(pair: Pair, time: Axis, space: list[Axis]) -> Figure:
    """Time upwards, space to the right; a row a channel: true, predicted and error."""
    figure, grid = panels(len(pair.channels), 3)
    for channel, line in enumerate(grid):
        for axes, (title, layer) in zip(line, pair.rows(channel).items(), strict=True):
            shown = show(axes, layer.fields.T, layer, [*space, time])
            figure.colorbar(shown, ax=axes)
            axes.set(title=title, aspect="auto")
    return figure


def draw_curves(pair: Pair, given: dict[str, Tensor], space: list[Axis]) -> Figure:
    """One step in one dimension; a row a channel: given, true and predicted, then the error."""
    figure, grid = panels(len(pair.channels), 2)
    x = space[0].values
    for name, field in given.items():
        grid[0][0].plot(x, field, color="0.7", label=name)
    for channel, line in enumerate(grid):
        true, predicted, error = pair.rows(channel).items()
        line[0].plot(x, true[1].fields[-1], label=true[0])
        line[0].plot(x, predicted[1].fields[-1], "--", label=predicted[0])
        line[0].legend(fontsize="small")
        line[1].plot(x, error[1].fields[-1], color="C3")
        line[1].set_title(error[0])
        for axes in line:
            axes.set_xlabel(space[0].label)
    return figure


def draw_spectra(
    true: Tensor, predicted: Tensor, channels: Sequence[str], steps: Sequence[int]
) -> Figure:
    """Energy spectra after some steps, means over the samples; true solid, predicted dashed."""
    figure, grid = panels(1, len(steps), sharey=True)
    highest = min(true.shape[3:]) // 2
    for axes, step in zip(grid[0], steps, strict=True):
        for fields, style, kind in ((true, "-", "true"), (predicted, "--", "predicted")):
            spectra = energy_spectrum(fields[:, step]).mean(dim=0)[:, 1 : highest + 1]
            for channel, spectrum in enumerate(spectra):
                label = f"{channels[channel]}, {kind}"
                wavenumbers = range(1, len(spectrum) + 1)
                axes.plot(wavenumbers, spectrum, style, color=f"C{channel}", label=label)
        axes.set(xscale="log", yscale="log", xlabel="wavenumber k", title=f"step {step + 1}")
    grid[0][0].set_ylabel("energy E(k)")
    grid[0][0].legend(fontsize="small")
    return figure


def draw_errors(true: Tensor, predicted: Tensor) -> Figure:
    """Relative L2 error against the step: the mean over the samples, and their quartiles."""
    errors = RelativeL2().of_steps(predicted.double(), true.double())
    errors = errors.nan_to_num(nan=math.inf, posinf=math.inf)
    quartiles = torch.tensor([0.25, 0.75], dtype=errors.dtype)
    # Between an infinite error and a finite one there is nothing to interpolate.
    low, high = errors.quantile(quartiles, dim=0, interpolation="nearest")
    figure, grid = panels(1, 1)
    axes, steps = grid[0][0], range(1, errors.shape[1] + 1)
    mean = errors.mean(dim=0)
    axes.plot(steps, mean, marker=".", label=f"mean of {len(errors)} samples")
    axes.fill_between(steps, low, high, alpha=0.3, label="quartiles")
    # Of a perfect prediction, and of one that blew up at once, logarithms show nothing.
    drawn = torch.stack([mean, low, high])
    scale = "log" if bool(((drawn > 0) & drawn.isfinite()).any()) else "linear"
    axes.set(xlabel="step", ylabel="relative L2 error", yscale=scale)
    axes.legend()
    return figure


def energy_spectrum(fields: Float[Tensor, "B C *points"]) -> Float[Tensor, "B C K"]:
    """E(k): half the sum of the squared amplitudes in the shell of wavenumbers about k = 0, 1, …

    The entries of a wavenumber are whole numbers of waves along the axes, and its shell is the one
    nearest to its length. All shells together have half the mean square of the field.
    """
    axes = tuple(range(2, fields.ndim))
    power = torch.fft.fftn(fields.double(), dim=axes, norm="forward").abs().square() / 2
    waves = [(torch.arange(n) + n // 2) % n - n // 2 for n in fields.shape[2:]]
    lengths = torch.stack(torch.meshgrid(*waves, indexing="ij")).double().norm(dim=0)
    shell = lengths.round().long().flatten()
    spectrum = power.new_zeros(*fields.shape[:2], int(shell.max()) + 1)
    return spectrum.index_add(2, shell, power.flatten(2))


def panels(rows: int, columns: int, sharey: bool = False) -> tuple[Figure, list[list[Axes]]]:
    """A figure with so many panels, by rows."""
    figure = Figure(figsize=(3.4 * columns, 2.9 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey).tolist()


def show(axes: Axes, image: Tensor, layer: Layer, space: list[Axis]) -> AxesImage:
    """[horizontal, vertical] values with the layer's colours, the first axis to the right."""
    low, high = layer.limits
    axes.set(xlabel=space[0].label, ylabel=space[1].label)
    return axes.imshow(
        image.T,
        origin="lower",
        extent=(*space[0].edges, *space[1].edges),
        cmap=layer.colours,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
