"""LitOperator: what is learnt from what, in which units, and what a run of it promises."""

import math
import signal
from types import SimpleNamespace

import h5py
import pytest
import torch
from torch import nn

import runs
from lit_models.module import Optimisation, UnfitDataError
from lit_models.operators.operator import LitOperator
from lit_models.operators.tasks import Forecast, SteadySolution, relative_l2
from tests import loopback
from tests.running import call_runs, report_of, scalars, train_here, train_outside

H, T, C, N = 3, 4, 2, 16
MEAN, STD = torch.tensor([1.0, -30.0]), torch.tensor([2.0, 50.0])


def make(history=H, **options):
    """Of a convolution with random weights, in units in which its channels are alike."""
    net = nn.Conv1d(history * C, C, 3, padding=1, padding_mode="circular")
    model = LitOperator(Forecast(), net, Optimisation(), channels=C, **options)
    model.states.adopt(SimpleNamespace(mean=MEAN, std=STD))
    return model


def make_batch(samples=5, history=H, steps=T):
    frames = torch.randn(samples, history + steps, C, N) * STD[:, None] + MEAN[:, None]
    return {"input": frames[:, :history], "target": frames[:, history:]}


def next_frame(model, frames):
    """The frame that follows [B, H, C, N], by hand."""
    scaled = (frames - MEAN[:, None]) / STD[:, None]
    return model.net(scaled.flatten(1, 2)) * STD[:, None] + MEAN[:, None]


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_a_rollout_is_a_loop_over_steps():
    model, batch = make(), make_batch()
    frames = batch["input"]
    for _ in range(T):
        frames = torch.cat([frames, next_frame(model, frames[:, -H:])[:, None]], dim=1)
    torch.testing.assert_close(model(batch), frames[:, H:])
    torch.testing.assert_close(model.rollout(batch["input"], 2), frames[:, H : H + 2])


def test_relative_l2_by_hand():
    u, v = torch.randn(2, 3, C, N), torch.randn(2, 3, C, N)
    ratios = [
        (a - b).square().sum().sqrt() / b.square().sum().sqrt()
        for a, b in zip(u.flatten(0, 1), v.flatten(0, 1), strict=True)
    ]
    torch.testing.assert_close(relative_l2(u, v), torch.stack(ratios).mean())


def test_training_by_rollout_differentiates_through_every_step():
    model, batch = make(training="rollout"), make_batch()
    loss = model.training_loss(batch)
    expected = relative_l2(model(batch), batch["target"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(model, loss), gradient(model, expected))


@pytest.mark.parametrize("history", [1, H])
def test_teacher_forcing_is_one_step_on_shifted_windows(history):
    model, batch = make(history), make_batch(history=history)
    frames = torch.cat([batch["input"], batch["target"]], dim=1)
    windows = [
        {"input": frames[:, t : t + history], "target": frames[:, t + history, None]}
        for t in range(T)
    ]
    for mode in ("teacher_forced", "rollout", "pushforward"):  # one and the same on one step
        one_step = make(history, training=mode)
        one_step.load_state_dict(model.state_dict())
        losses = torch.stack([one_step.training_loss(window) for window in windows])
        torch.testing.assert_close(losses.mean(), model.training_loss(batch))


def test_pushforward_learns_one_step_after_frames_without_gradient():
    model, batch = make(training="pushforward"), make_batch()
    drawn = set()
    for seed in range(12):
        torch.manual_seed(seed)
        free = int(torch.randint(T, ()))
        frames = batch["input"]
        with torch.no_grad():
            frames = torch.cat([frames, model.rollout(frames, free)], dim=1) if free else frames
        predicted = next_frame(model, frames[:, -H:])[:, None]
        expected = relative_l2(predicted, batch["target"][:, free, None])
        torch.manual_seed(seed)
        loss = model.training_loss(batch)
        torch.testing.assert_close(loss, expected)
        pushed = gradient(model, loss)
        torch.testing.assert_close(pushed, gradient(model, expected), rtol=1e-4, atol=1e-5)
        whole = relative_l2(
            model.rollout(batch["input"], free + 1)[:, -1:], batch["target"][:, free, None]
        )
        same = torch.allclose(pushed, gradient(model, whole), rtol=1e-3)
        assert same == (free == 0)
        drawn.add(free)
    assert drawn == set(range(T))


@pytest.mark.parametrize("mode", ["teacher_forced", "rollout", "pushforward"])
def test_noise_is_drawn_anew_from_the_random_stream_of_the_step(mode):
    model, batch = make(training=mode, noise=0.1), make_batch()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model.training_loss(batch).item())
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(model(batch), model(batch))


def test_noise_is_in_units_of_the_data_and_on_what_is_given_alone():
    model, batch = make(noise=0.1), make_batch(samples=200)
    seen = []
    model.net.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    loss = model.training_loss(batch)
    noisy, output = seen[0]
    predicted = model.states.inverse(output.unflatten(0, (-1, T)))
    torch.testing.assert_close(loss, relative_l2(predicted, batch["target"]))
    model.noise = 0.0
    model.training_loss(batch)
    added = (noisy - seen[1][0]).unflatten(1, (H, C)).unflatten(0, (-1, T))
    assert added.std(dim=(0, 1, 2, 4)).tolist() == pytest.approx([0.1, 0.1], rel=0.05)
    assert added.mean().abs() < 1e-3
    # A frame bears the same in two windows.
    torch.testing.assert_close(added[:, 0, 1], added[:, 1, 0], atol=1e-5, rtol=0)


def test_a_residual_network_of_zeros_repeats_the_last_frame():
    model, batch = make(residual=True), make_batch()
    for parameter in model.parameters():
        parameter.data.zero_()
    expected = batch["input"][:, -1:].expand(-1, T, -1, -1)
    torch.testing.assert_close(model(batch), expected)
    metrics = model.task.metrics()
    model.task.update(metrics, model(batch), batch)
    ours = {name: float(value) for name, value in model.task.scores(metrics).items()}
    assert ours == pytest.approx(Forecast().score_trivial([], [batch]), rel=1e-5)


def test_scores_by_hand():
    task, batch = Forecast(), make_batch()
    prediction = batch["target"] + torch.randn_like(batch["target"])
    metrics = task.metrics()
    for part in (slice(0, 2), slice(2, 5)):
        task.update(metrics, prediction[part], {"target": batch["target"][part]})
    scores = task.scores(metrics)
    error = (prediction - batch["target"]).double()
    per_step = (
        error.flatten(2).norm(dim=2) / batch["target"].double().flatten(2).norm(dim=2)
    ).mean(0)
    assert float(scores["nrmse"]) == pytest.approx(float(per_step.mean()))
    assert float(scores["nrmse_first"]) == pytest.approx(float(per_step[0]))
    assert float(scores["nrmse_last"]) == pytest.approx(float(per_step[-1]))
    assert float(scores["max_error"]) == pytest.approx(float(error.abs().max()))
    bands = [float(scores[f"spectral_error_{band}"]) for band in ("low", "mid", "high")]
    assert all(band > 0 for band in bands[:2])
    assert bands[2] == 0  # 16 points have waves up to 8


def test_a_rollout_that_blows_up_has_an_infinite_error():
    model, batch = make(), make_batch()
    model.net.weight.data.fill_(1e20)
    metrics = model.task.metrics()
    model.task.update(metrics, model(batch), batch)
    assert float(model.task.scores(metrics)["nrmse"]) == math.inf


def test_a_steady_problem_normalises_inputs_and_solution_apart():
    model = LitOperator(SteadySolution(), nn.Conv1d(1, 2, 1), Optimisation(), channels=2, inputs=1)
    model.states.adopt(SimpleNamespace(mean=MEAN, std=STD))
    model.given.adopt(SimpleNamespace(mean=torch.tensor([7.0]), std=torch.tensor([3.0])))
    given = torch.randn(4, 1, 1, N)
    expected = model.net((given[:, 0] - 7) / 3) * STD[:, None] + MEAN[:, None]
    target = torch.randn(4, 1, 2, N)
    torch.testing.assert_close(model({"input": given, "target": target}), expected[:, None])
    loss = model.training_loss({"input": given, "target": target})
    torch.testing.assert_close(loss, relative_l2(expected[:, None], target))
    mean = target.mean(dim=0, keepdim=True)
    error = relative_l2(mean.expand_as(target), target)
    batches = [{"target": target[:1]}, {"target": target[1:]}]
    score = SteadySolution().score_trivial(batches, batches)
    assert score["nrmse"] == pytest.approx(float(error), rel=1e-5)
    assert "nrmse_first" not in score


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": "magic"}, "teacher_forced, rollout, pushforward"),
        ({"noise": -1.0}, "model.noise is not negative"),
        ({"inputs": 1, "residual": True}, "model.residual=false"),
    ],
)
def test_options_that_cannot_be_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def data(**changed):
    """A stand-in for a PDEDataModule."""
    facts = {
        "task": "Waves",
        "channels": ["u", "v"],
        "inputs": [],
        "normalise": False,
        "normaliser": SimpleNamespace(mean=MEAN + 1, std=STD + 1),
        "train_dataset": [{"input": torch.randn(H, C, N)}],
    }
    return SimpleNamespace(**facts | changed)


def test_statistics_are_taken_over_before_training_alone():
    model = make()
    model.trainer = SimpleNamespace(datamodule=data())
    model.setup("test")
    assert torch.equal(model.states.mean, MEAN)
    model.setup("fit")
    assert torch.equal(model.states.mean, MEAN + 1)
    assert torch.equal(model.states.std, STD + 1)
    assert {"states.mean", "states.std"} <= set(model.state_dict())
    assert model.net.training


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"channels": ["u"]}, r"model.channels is 2 .* has 1 fields \(u\)"),
        ({"inputs": ["a"]}, r"depend on 1 given ones \(a\)"),
        ({"channels": [], "task": "stars"}, "stars has 0 fields"),
        ({"normalise": True}, "data.normalise=false"),
        ({"train_dataset": [{"input": torch.randn(1, C, N)}]}, "cannot take frames of shape"),
    ],
)
def test_data_that_do_not_fit_are_said_before_training(changed, message):
    model = make()
    model.trainer = SimpleNamespace(datamodule=data(**changed))
    with pytest.raises(UnfitDataError, match=message):
        model.setup("fit")


def test_a_network_with_other_outputs_is_said():
    model = LitOperator(Forecast(), nn.Conv1d(H * C, 5, 1), Optimisation(), channels=C)
    model.trainer = SimpleNamespace(datamodule=data())
    with pytest.raises(UnfitDataError, match=r"makes \[5, 16\] of frames"):
        model.setup("fit")


SHORT = ("data.samples=[6,2,3]", "data.generate.frames=6", "data.generate.last_time=0.5")
RANDOM = (
    "trainer.limit_train_batches=null",
    *SHORT,
    "data.batch_size=3",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.pictures=null",
    "callbacks.last.every_n_train_steps=2",
    "data.window.horizon=3",
    "model.training=pushforward",
    "model.noise=0.1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose every step draws noise and a number of free steps."""
    return train_here(tmp_path_factory.mktemp("finished"), "ffno_ks", *RANDOM)


@pytest.mark.parametrize("killed_before", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_loss_for_loss(finished, tmp_path, killed_before):
    kill = f"+callbacks.kill={{_target_: tests.interruptions.KillAt, step: {killed_before}}}"
    process = train_outside(tmp_path, "ffno_ks", *RANDOM, kill)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (run,) = (tmp_path / "runs").iterdir()
    call_runs("resume", run)
    expected, resumed = (scalars(r, "train/loss") for r in (finished, run))
    assert len(expected) == 12
    assert resumed == {step: expected[step] for step in resumed}
    assert max(resumed) == 11
    assert report_of(run)["test"] == report_of(finished)["test"]
    assert scalars(run, "val/nrmse") == scalars(finished, "val/nrmse")


def test_a_finished_run_keeps_its_units_evaluates_and_predicts(finished):
    """What the report says is what the predictions, in the equation's units, are off."""
    _, model, data = runs._prepare(finished)
    torch.testing.assert_close(model.states.mean, data.normaliser.mean)
    torch.testing.assert_close(model.states.std, data.normaliser.std)
    report = report_of(finished)
    assert call_runs("eval", finished) == pytest.approx(report["test"], rel=1e-5)
    with h5py.File(call_runs("predict", finished)) as file, h5py.File(data.paths()[0]) as truth:
        got = torch.from_numpy(file["tensor"][:]).double()
        samples, first = file["sample"][:].tolist(), file["first_predicted"][:].tolist()
        assert file.attrs["channels"].tolist() == ["u"]
        assert (file.attrs["history"], file.attrs["time_stride"]) == (1, 1)
        true = torch.from_numpy(truth["tensor"][:]).double()[samples]
    assert samples == [0, 1, 2]
    assert first == [1, 1, 1]
    assert got.shape == (3, 5, 64)
    ratio = (got - true[:, 1:]).norm(dim=2) / true[:, 1:].norm(dim=2)
    assert report["test"]["nrmse"] == pytest.approx(float(ratio.mean()), rel=1e-5)
    assert report["test"]["nrmse_last"] == pytest.approx(float(ratio[:, -1].mean()), rel=1e-5)
    still = (true[:, :1] - true[:, 1:]).norm(dim=2) / true[:, 1:].norm(dim=2)
    assert report["trivial"] == "persistence"
    assert report["persistence"]["nrmse"] == pytest.approx(float(still.mean()), rel=1e-5)
    assert report["samples_per_second"] > 0


def test_predictions_are_read_as_data(finished, tmp_path):
    from datamodules.pde.layouts import TrajectoryFiles

    files = TrajectoryFiles([call_runs("predict", finished)])
    assert (len(files), files.frames, files.channels, files.shape) == (3, 5, ["u"], (64,))


@pytest.mark.slow
@loopback.needed
def test_two_processes_train_one_operator(tmp_path):
    process = train_outside(tmp_path, "ffno_ks", *RANDOM, "trainer=ddp", "trainer.accelerator=cpu")
    assert process.returncode == 0, process.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert report_of(run)["steps"] == 6
    assert call_runs("eval", run) == pytest.approx(report_of(run)["test"], rel=1e-4)


def test_the_last_screen_names_the_trivial_rival(tmp_path, capfd):
    train_here(tmp_path, "fno_darcy", "data.limit=2", "callbacks.pictures=null")
    screen = capfd.readouterr().out
    for text in ("mean training field", "test nrmse (lower is better)", "limited to 2 samples"):
        assert text in screen
