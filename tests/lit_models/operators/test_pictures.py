"""Pictures of fields: what is handed to be drawn, where it stands, and when."""

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from datamodules.pde.darcy import Darcy
from datamodules.pde.generation import Generation
from datamodules.pde.kuramoto_sivashinsky import KuramotoSivashinsky
from datamodules.pde.module import PDEDataModule
from datamodules.pde.views import Sampling, Window
from lit_models.callbacks.averaging import ExponentialMovingAverage
from lit_models.callbacks.cadence import is_due
from lit_models.operators.pictures import (
    Axis,
    FieldPictures,
    Pair,
    Scene,
    draw_errors,
    draw_spectra,
    draw_state,
    draw_strip,
    energy_spectrum,
    spread,
)
from tests.lit_models.callbacks.fitting import fit
from tests.running import ROOT

WAVES = KuramotoSivashinsky(sizes=(32,), length=16.0, viscosity=0.3, step=0.02)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def waves(cache, **options) -> PDEDataModule:
    how = Generation(last_time=1.0, frames=6, processes=1)
    options |= {"cache_dir": cache, "generate": how, "normalise": False}
    return PDEDataModule(WAVES, samples=(4, 5, 1), **options)


def scene(points: tuple[int, ...], steps: int, channels: tuple[str, ...] = ("u",), **options):
    """Two samples on boxes of length 1, at the times 1, 2, …"""
    space = [Axis(name, torch.arange(n) / n) for name, n in zip("xyz", points, strict=False)]
    facts = {
        "samples": [3, 8],
        "channels": channels,
        "is_steady": False,
        "given": [{f"{name}, given": torch.randn(points) for name in channels}] * 2,
        "space": space,
        "times": [Axis("t", torch.arange(1, steps + 1))] * 2,
    }
    return Scene(**facts | options)


def images(figure: Figure) -> dict[str, np.ndarray]:
    """Every panel's image, [vertical, horizontal], by its title."""
    return {axes.get_title(): np.asarray(axes.images[0].get_array()) for axes in figure.axes
            if axes.images}  # fmt: skip


class Offset(L.LightningModule):
    """Predicts the target plus a weight, which is the number of steps it has been trained."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return batch["target"] + self.weight

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("seen", self.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Recorded(FieldPictures):
    """Keeps what it draws."""

    def __init__(self, **options):
        super().__init__(**options)
        self.drawn: list[tuple[Scene, Tensor, Tensor]] = []

    def draw(self, scene, true, predicted):
        self.drawn.append((scene, true, predicted))
        return super().draw(scene, true, predicted)


def test_a_training_leaves_pictures_of_the_first_and_the_last_validation(cache, tmp_path):
    data = waves(cache, window=Window(history=2), batch_size=4)
    fit(tmp_path, Offset(), data, FieldPictures(rollouts=3), epochs=3)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    tags = {"space_time/sample_0", "space_time/sample_4", "spectrum", "error_by_step"}
    assert set(events.Tags()["images"]) == tags
    steps = len(data.train_dataloader())
    for tag in tags:
        assert [image.step for image in events.Images(tag)] == [steps, 3 * steps]


def test_pictures_show_the_weights_that_are_validated(cache, tmp_path):
    """The average of 0, 1, 2, 3, 4 by halves, not the last one."""
    drawn = Recorded()
    trainer = fit(
        tmp_path,
        Offset(),
        waves(cache),
        ExponentialMovingAverage(decay=0.5),
        drawn,
        limit_train_batches=4,
    )
    _, true, predicted = drawn.drawn[0]
    seen = trainer.callback_metrics["seen"]
    assert 0 < seen < 4
    torch.testing.assert_close(predicted - true, seen.expand(true.shape))


def test_a_scene_knows_times_and_places(cache, tmp_path):
    data = waves(cache, window=Window(history=2), sampling=Sampling(4, 2))
    drawn = Recorded(samples=1)
    fit(tmp_path, Offset(), data, drawn)
    seen, true, _ = drawn.drawn[0]
    assert true.shape == (5, 1, 1, 8)
    assert seen.times[0].label == "t"
    assert seen.times[0].values.tolist() == pytest.approx([0.8])
    assert seen.space[0].values.tolist() == [2.0 * i for i in range(8)]
    assert torch.equal(seen.given[2]["u, given"], data.val_dataset[2]["input"][-1, 0])
    assert seen.channels == ["u"]


def test_a_steady_problem_shows_its_input(cache, tmp_path):
    equation = Darcy(size=9, solver_size=33)
    data = PDEDataModule(equation, (2, 2, 1), cache_dir=cache, normalise=False)
    fit(tmp_path, Offset(), data, drawn := Recorded(samples=1))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["fields/sample_0"]
    figure = drawn.draw(*drawn.drawn[0])["fields/sample_0"]
    shown = images(figure)
    assert [*shown] == ["a, given", "u, true", "u, predicted", "u, error"]
    item = data.val_dataset[0]
    np.testing.assert_array_equal(shown["a, given"], item["input"][0, 0].T)
    np.testing.assert_array_equal(shown["u, true"], item["target"][0, 0].T)
    assert figure.axes[0].images[0].get_extent() == pytest.approx([-1 / 16, 17 / 16] * 2)


def test_without_coordinates_points_and_frames_are_counted(cache):
    data = waves(cache)
    data.setup()
    data.source_used, data.val_dataset.files.times = "official", np.zeros(0)
    batch = torch.utils.data.default_collate([data.val_dataset[1]])
    seen = Scene.of(data, [1], batch)
    assert (seen.space[0].label, seen.times[0].label) == ("x (points)", "frame")
    assert seen.space[0].values.tolist() == [*range(32)]
    assert seen.times[0].values.tolist() == [1, 2, 3, 4, 5]


def test_state_and_strip_show_true_predicted_and_error():
    true, predicted = torch.randn(2, 4, 2, 6, 5), torch.randn(2, 4, 2, 6, 5)
    where, pair = scene((6, 5), 4, ("p", "q")), Pair(true[0], predicted[0], ("p", "q"))
    figure = draw_state(pair, where.given[0], where.space)
    shown = images(figure)
    for channel, name in enumerate("pq"):
        last = true[0, -1, channel], predicted[0, -1, channel]
        np.testing.assert_array_equal(shown[f"{name}, given"], where.given[0][f"{name}, given"].T)
        np.testing.assert_array_equal(shown[f"{name}, true"], last[0].T)
        np.testing.assert_array_equal(shown[f"{name}, predicted"], last[1].T)
        np.testing.assert_array_equal(shown[f"{name}, error"], (last[1] - last[0]).T)
    strip = draw_strip(pair, where.times[0], where.space, [0, 3])
    panels = [axes for axes in strip.axes if axes.images]
    assert [axes.get_title() for axes in panels[:2]] == ["t = 1", "t = 4"]
    rows = ["p, true", "p, predicted", "p, error", "q, true", "q, predicted", "q, error"]
    assert [axes.get_ylabel() for axes in panels[::2]] == rows
    np.testing.assert_array_equal(panels[7].images[0].get_array(), true[0, 3, 1].T)
    error = (predicted - true)[0, :, 1]
    np.testing.assert_array_equal(panels[10].images[0].get_array(), error[0].T)
    scales = [axes.images[0].get_clim() for axes in panels]
    truth = true[0, :, 1]
    assert scales[6:10] == [(float(truth.min()), float(truth.max()))] * 4
    assert scales[10:] == [(-float(error.abs().max()), float(error.abs().max()))] * 2


@pytest.mark.parametrize("points", [(8,), (8, 6), (4, 6, 4)])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_perfect_model_has_no_error(points, steps):
    true = torch.randn(2, steps, 1, *points)
    figures = FieldPictures(times=3).draw(scene(points, steps), true, true.clone())
    kinds = (
        {"fields"} if steps == 1 else {"space_time"} if len(points) == 1 else {"fields", "rollout"}
    )
    names = {f"{kind}/sample_{i}" for kind in kinds for i in (3, 8)}
    assert set(figures) == names | {"spectrum", "error_by_step"}
    for tag in names:
        panels = [
            axes for axes in figures[tag].axes if "error" in axes.get_title() + axes.get_ylabel()
        ]
        for axes in panels:
            shown = axes.images[0].get_array() if axes.images else axes.lines[0].get_ydata()
            assert not np.asarray(shown).any()
        assert panels
        if axes.images:
            assert axes.images[0].get_clim() == (-1, 1)
    if steps > 1 and len(points) == 1:
        image = images(figures["space_time/sample_3"])["u, true"]
        np.testing.assert_array_equal(image, true[0, :, 0])
    if len(points) == 3:
        image = images(figures["fields/sample_3"])["u, true"]
        np.testing.assert_array_equal(image, true[0, -1, 0, :, :, 2].T)
    for figure in figures.values():
        figure.canvas.draw()


def test_a_prediction_that_blew_up_is_drawn_too():
    true = torch.randn(2, 4, 1, 8, 8)
    predicted = true.clone()
    predicted[1, 2:] = torch.inf
    predicted[1, 3:] = torch.nan
    for figure in FieldPictures().draw(scene((8, 8), 4), true, predicted).values():
        figure.canvas.draw()


@pytest.mark.parametrize("points", [(9,), (8, 8), (6, 8, 4)])
def test_all_shells_have_half_the_mean_square(points):
    fields = torch.randn(2, 3, *points)
    energy = energy_spectrum(fields).sum(dim=2)
    torch.testing.assert_close(energy, fields.double().square().flatten(2).mean(dim=2) / 2)


def test_a_wave_is_in_its_shell():
    x, y = torch.meshgrid(torch.arange(16) / 16, torch.arange(12) / 12, indexing="ij")
    wave = 2 * torch.cos(2 * torch.pi * (3 * x + 4 * y))
    expected = torch.zeros(energy_spectrum(wave[None, None]).shape[2], dtype=torch.float64)
    expected[5] = 1
    torch.testing.assert_close(energy_spectrum(wave[None, None])[0, 0], expected, atol=1e-6, rtol=0)


def test_spectra_are_means_over_samples_with_true_solid():
    true, predicted = torch.randn(3, 2, 2, 8, 8), torch.randn(3, 2, 2, 8, 8)
    figure = draw_spectra(true, predicted, ["p", "q"], [1])
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xscale(), axes.get_yscale()) == ("step 2", "log", "log")
    lines = {line.get_label(): line for line in axes.lines}
    assert {label: line.get_linestyle() for label, line in lines.items()} == {
        "p, true": "-",
        "q, true": "-",
        "p, predicted": "--",
        "q, predicted": "--",
    }
    expected = energy_spectrum(predicted[:, 1])[:, 1].mean(dim=0)[1:5]
    np.testing.assert_allclose(lines["q, predicted"].get_ydata(), expected)
    assert lines["q, predicted"].get_xdata().tolist() == [1, 2, 3, 4]


def test_errors_have_their_mean_and_quartiles():
    true = torch.ones(5, 3, 1, 4)
    predicted = true + torch.tensor([0.1, 0.2, 0.3, 0.4, 1.0]).reshape(5, 1, 1, 1)
    (axes,) = draw_errors(true, predicted).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.4] * 3, rtol=1e-6)
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.2, 0.4))


def test_numbers_are_spread_from_first_to_last():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(7, 1) == [0]
    with pytest.raises(ValueError, match="times=0"):
        FieldPictures(times=0)


def test_an_experiment_names_it_in_the_place_of_graphs_pictures():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["experiment=unet_ns"])
    assert config.callbacks.pictures == {"_target_": f"{FieldPictures.__module__}.FieldPictures"}


class Seen(L.Callback):
    def __init__(self, every: int):
        self.every, self.epochs = every, []

    def on_validation_epoch_start(self, trainer, module):
        if is_due(trainer, self.every):
            self.epochs.append(trainer.current_epoch)


@pytest.mark.parametrize(
    ("epochs", "between", "every", "drawn"),
    [(6, 1, 2, [0, 2, 4, 5]), (7, 2, 2, [1, 5]), (8, 2, 2, [1, 5, 7]), (1, 1, 5, [0])],
)
def test_first_last_and_every_nth_validation(cache, tmp_path, epochs, between, every, drawn):
    seen = Seen(every)
    data = waves(cache)
    fit(
        tmp_path,
        Offset(),
        data,
        seen,
        epochs=epochs,
        check_val_every_n_epoch=between,
        limit_train_batches=1,
    )
    assert seen.epochs == drawn
