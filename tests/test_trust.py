"""What a run promises: resumed exactly, saved whole, stopped in time, reproduced anew."""

import csv
import json
import math
import shutil
import signal
import subprocess

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.trainer.connectors import signal_connector
from omegaconf import OmegaConf

import report as report_module
import runs
from lit_models.callbacks.checkpoint import AtomicCheckpointIO
from tests import loopback
from tests.running import (
    arguments,
    call_main,
    call_runs,
    report_of,
    scalars,
    train_here,
    train_outside,
)

TEN_STEPS = (
    "data.limit=null",
    "data.batch_size=6",
    "trainer.limit_train_batches=null",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "model.net.dropout=0.2",
    "callbacks.last.every_n_train_steps=3",
)
KILL = "+callbacks.kill={_target_: tests.interruptions.KillAt, step: STEP}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of two epochs of ten steps."""
    return train_here(tmp_path_factory.mktemp("finished"), "chimera_lrgb", *TEN_STEPS)


@pytest.mark.parametrize(
    "killed_before", [8, *(pytest.param(step, marks=pytest.mark.slow) for step in (10, 15))]
)
def test_a_killed_run_resumes_loss_for_loss(finished, tmp_path, killed_before):
    """kill −9 inside the first epoch, between the two, and inside the second."""
    kill = KILL.replace("STEP", str(killed_before))
    process = train_outside(tmp_path, "chimera_lrgb", *TEN_STEPS, kill)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert "site-packages" not in process.stderr, "a library's warning"
    (run,) = (tmp_path / "runs").iterdir()
    at_kill = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert killed_before - 3 <= at_kill <= killed_before
    assert not (run / "report.json").exists()
    call_runs("resume", run)
    expected, resumed = (scalars(r, "train/loss") for r in (finished, run))
    assert sorted(expected) == list(range(20))
    assert {s: v for s, v in resumed.items() if s >= at_kill} == {
        s: v for s, v in expected.items() if s >= at_kill
    }
    assert report_of(run)["test"] == report_of(finished)["test"]
    assert scalars(run, "val/ap") == scalars(finished, "val/ap")


SHORT_EPOCHS = (
    *TEN_STEPS,
    "trainer.limit_train_batches=6",
    "trainer.max_epochs=3",
    "callbacks.last.every_n_train_steps=2",
)


@pytest.fixture(scope="module")
def finished_short(tmp_path_factory):
    """An uninterrupted run of three epochs that end before their ten batches do."""
    return train_here(tmp_path_factory.mktemp("short"), "chimera_lrgb", *SHORT_EPOCHS)


@pytest.mark.parametrize(
    "kill",
    [
        "{_target_: tests.interruptions.KillInValidation, epoch: 0}",
        pytest.param(
            "{_target_: tests.interruptions.KillInValidation, epoch: 2}", marks=pytest.mark.slow
        ),
        pytest.param("{_target_: tests.interruptions.KillAt, step: 6}", marks=pytest.mark.slow),
        "{_target_: tests.interruptions.KillAt, step: 13}",
    ],
)
def test_a_run_killed_around_a_validation_resumes_loss_for_loss(finished_short, tmp_path, kill):
    """Also where an epoch's last step is one at which a checkpoint would be due."""
    process = train_outside(tmp_path, "chimera_lrgb", *SHORT_EPOCHS, f"+callbacks.kill={kill}")
    assert process.returncode == -signal.SIGKILL, process.stderr
    (run,) = (tmp_path / "runs").iterdir()
    call_runs("resume", run)
    expected, resumed = (scalars(r, "train/loss") for r in (finished_short, run))
    assert sorted(expected) == list(range(18))
    assert resumed == {s: v for s, v in expected.items() if s in resumed}
    assert max(resumed) == 17
    assert scalars(run, "val/ap") == scalars(finished_short, "val/ap")
    reports = [report_of(r) for r in (run, finished_short)]
    for key in ("test", "selected", "steps", "epochs"):
        assert reports[0][key] == reports[1][key]


def test_sigterm_ends_in_one_sentence_and_can_be_resumed(tmp_path):
    kill = KILL.replace("STEP", "5, signal_number: 15")
    process = train_outside(tmp_path, "chimera_lrgb", *TEN_STEPS, kill)
    assert process.returncode == 1
    assert "Stopped by SIGTERM: `make resume" in process.stderr
    assert "Traceback" not in process.stderr
    (run,) = (tmp_path / "runs").iterdir()
    call_runs("resume", run)
    assert (run / "report.json").exists()


SLURM = {
    "JOB_ID": "1",
    "JOB_NAME": "train",
    "NTASKS": "1",
    "PROCID": "0",
    "LOCALID": "0",
    "NODEID": "0",
}


def test_a_run_that_slurm_stopped_goes_on_where_it_was_and_hurts_no_other(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("whole", "stopped", "other")]
    whole = train_here(folders[0], "baseline_atoms", *TEN_STEPS)
    for name, value in SLURM.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(signal_connector, "call", lambda *args, **kwargs: 0)  # scontrol
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    signalled = KILL.replace("STEP", f"12, signal_number: {int(signal.SIGUSR1)}")
    poison = "+callbacks.poison={_target_: tests.interruptions.PoisonAt, step: 14}"
    with pytest.raises(SystemExit):
        train_here(folders[1], "baseline_atoms", *TEN_STEPS, signalled, poison)
    (run,) = (folders[1] / "runs").iterdir()
    assert (run / "hpc_ckpt_1.ckpt").is_file()
    assert not [*(tmp_path / "here").iterdir()]
    other = train_here(folders[2], "baseline_atoms", *TEN_STEPS)
    assert report_of(other)["test"] == report_of(whole)["test"]
    again = (*arguments(folders[1], *TEN_STEPS), f"run_dir={run}")
    with pytest.raises(SystemExit, match="holds a run that SLURM stopped: go on with `make resume"):
        call_main("experiment=baseline_atoms", *again)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    call_main("experiment=baseline_atoms", *again)
    resumed = {s: v for s, v in scalars(run, "train/loss").items() if s >= 12}
    assert resumed == {s: v for s, v in scalars(whole, "train/loss").items() if s >= 12}
    for fact in ("test", "selected", "steps", "epochs"):
        assert report_of(run)[fact] == report_of(whole)[fact]
    assert call_runs("eval", run) == pytest.approx(report_of(whole)["test"], rel=1e-6)


@pytest.mark.parametrize(
    "stop",
    [
        KILL.replace("STEP", "15, signal_number: 15"),
        "+callbacks.kill={_target_: tests.interruptions.StopAtEnd}",
    ],
)
def test_a_run_that_was_moved_resumes_as_if_it_had_not_been(tmp_path, stop, monkeypatch):
    """Stopped in its second epoch, or after it; of this seed the first epoch is the best."""
    monkeypatch.chdir(tmp_path)
    poor = (*TEN_STEPS, "seed=2", "model.optimisation.lr=0.3", "+model.optimisation.decay=none")
    whole = train_here(tmp_path / "whole", "baseline_atoms", *poor)
    with pytest.raises(SystemExit):
        call_main(
            "experiment=baseline_atoms", *arguments(tmp_path, *poor, stop), "run_dir=lit_models"
        )
    run = tmp_path / ("a folder of another name, " * 5) / "run"
    run.parent.mkdir()
    (tmp_path / "lit_models").rename(run)
    call_runs("resume", run)
    for fact in ("test", "selected", "steps", "epochs"):
        assert report_of(run)[fact] == report_of(whole)[fact]
    assert scalars(run, "val/ap") == scalars(whole, "val/ap")
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 10, "or the best epoch was the last, and nothing was tested"
    # A name that is also a part of classes' names, given with a slash.
    run.rename(tmp_path / "lit_models")
    assert call_runs("eval", "lit_models/") == pytest.approx(report_of(whole)["test"], rel=1e-6)
    assert {p.name for p in tmp_path.iterdir()} <= {"whole", "lit_models", "data", run.parent.name}


def test_a_checkpoint_is_whole_or_absent(tmp_path, monkeypatch):
    path, save = tmp_path / "last.ckpt", torch.save
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def save_half(obj, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    monkeypatch.setattr(torch, "save", save)
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    poison = "+callbacks.poison={_target_: tests.interruptions.PoisonAt, step: 7}"
    with pytest.raises(SystemExit) as stopped:
        train_here(tmp_path, "chimera_lrgb", *TEN_STEPS, poison)
    sentence = str(stopped.value)
    assert "The loss became nan at step 7 (epoch 0, batch 7), before the optimiser step" in sentence
    assert "train again with a smaller model.optimisation.lr" in sentence
    (run,) = (tmp_path / "runs").iterdir()
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert all(v.isfinite().all() for v in last["state_dict"].values())


def test_load_run_gives_the_selected_model_back(finished):
    model = runs.load_run(finished)
    checkpoint = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    assert type(model.net).__name__ == "ChimeraGraph"
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][name])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_of_another_library_is_trained_saved_and_loaded(tmp_path):
    peer = "{_target_: neuralop.models.FNO, n_modes: [4], in_channels: 1, out_channels: 1, "
    peer += "hidden_channels: 8, n_layers: 2}"
    run = train_here(tmp_path, "fno_burgers", "~model.net", f"+model.net={peer}")
    assert type(runs.load_run(run).net).__module__.startswith("neuralop.")
    assert call_runs("eval", run) == pytest.approx(report_of(run)["test"], rel=1e-6)


def test_eval_reproduces_the_report(finished):
    reported = report_of(finished)["test"]
    assert call_runs("eval", finished) == pytest.approx(reported, rel=1e-6)


def test_predictions_reproduce_the_report(finished):
    path = call_runs("predict", finished)
    rows = list(csv.DictReader(path.open()))
    assert [int(row["graph"]) for row in rows] == list(range(20))
    _, _, datamodule = runs._prepare(finished)
    names = datamodule.label_names
    logits = torch.tensor([[float(row[name]) for name in names] for row in rows])
    target = torch.cat([graph.y for graph in datamodule.test_dataset])
    metrics = runs.load_run(finished).task.metrics()
    metrics.update(logits, target)
    assert float(metrics.compute()["ap"]) == pytest.approx(
        report_of(finished)["test"]["ap"], rel=1e-6
    )


def test_a_run_leaves_one_folder_with_all_that_is_needed(finished):
    assert finished.name.startswith("chimera_lrgb-smoke-generated-seed0-")
    assert [p.name for p in finished.parent.iterdir()] == [finished.name]
    names = {p.name.split(".out.")[0] for p in finished.iterdir()}
    assert {"config.yaml", "checkpoints", "report.json", "events"} <= names
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["data"]["source"] == "generated"
    report = report_of(finished)
    assert report["data"]["source"] == "generated"
    assert report["steps"] == 20
    assert report["averaging"] == config["callbacks"]["averaging"]["decay"]
    for fact in (
        "parameters",
        "graphs_per_second",
        "peak_memory_mib",
        "seed",
        "versions",
        "commit",
    ):
        assert report[fact] is not None
    assert 0 <= report["constant"]["ap"] <= 1


def test_tensorboard_shows_curves_labels_steps_and_pictures(finished):
    for tag in ("train/loss", "train/grad_norm", "val/loss", "val/ap", "test/ap"):
        values = scalars(finished, tag)
        assert values, tag
        assert all(math.isfinite(v) for v in values.values())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {"images": set(), "histograms": set(), "scalars": set()}
    for path in finished.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for kind in tags:
            tags[kind] |= set(events.Tags()[kind])
    assert {"resolvent", "molecules"} <= tags["images"]
    assert {f"delta_{c}/net.blocks.0.mixer" for c in ("source", "target", "self", "edge")} <= tags[
        "histograms"
    ]
    assert any(tag.startswith("val_ap_per_label/") for tag in tags["scalars"])


@loopback.needed
def test_two_processes_train_one_model(tmp_path):
    process = train_outside(
        tmp_path,
        "chimera_lrgb",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.limit_train_batches=null",
        "data.limit=null",
    )
    assert process.returncode == 0, process.stderr
    (run,) = (tmp_path / "runs").iterdir()
    report = report_of(run)
    assert report["steps"] == math.ceil(60 / 16) / 2
    assert call_runs("eval", run) == pytest.approx(report["test"], rel=1e-4)
    assert {p.name for p in tmp_path.iterdir()} <= {"runs", "data"}


@pytest.mark.slow
def test_a_sweep_of_two_seeds_leaves_two_runs_in_one_folder(tmp_path):
    process = train_outside(tmp_path, "baseline_atoms", "-m", "seed=0,1")
    assert process.returncode == 0, process.stderr
    assert "site-packages" not in process.stderr, "a library's warning"
    assert {p.name for p in tmp_path.iterdir()} <= {"runs", "data"}
    (sweep,) = (tmp_path / "runs/sweeps").iterdir()
    names = sorted(p.name.rsplit("-", 2)[0] for p in sweep.iterdir())
    assert names == [
        "baseline_atoms-smoke-generated-seed0",
        "baseline_atoms-smoke-generated-seed1",
        "multirun.yaml",
    ]


def test_the_baseline_is_trained_on_the_same_data(tmp_path, capfd):
    run = train_here(tmp_path / "Läufe été", "chimera_lrgb", "compare=baseline_atoms")
    screen = capfd.readouterr().out
    report, baseline = report_of(run), report_of(run / "baseline_atoms")
    assert report["baseline"]["test"] == baseline["test"]
    assert baseline["data"] == report["data"]
    for text in ("source GENERATED", "constant predictor", str(run), "make eval"):
        assert text in screen
    assert f"baseline_atoms          {baseline['test']['ap']:.4f}" in screen


@pytest.mark.slow
def test_a_baseline_that_fails_is_said_to(tmp_path, capfd):
    run = train_here(tmp_path, "chimera_peptides_struct", "compare=baseline_atoms")
    assert report_of(run)["baseline"]["test"] is None
    assert "The baseline_atoms has no score: it failed" in capfd.readouterr().out


@pytest.mark.parametrize(
    "value",
    [
        "Läufe/é",
        'a "quoted" \\ name, with spaces',
        "trailing \\",
        "null",
        "1",
        [1, 2.5, None, True, "x y"],
        {"_target_": "a.B", "sizes": [64], "viscosity": 1e-05, "deep": {"a": "b c"}},
        0.0,
        float("inf"),
    ],
)
def test_the_baseline_is_told_the_same_data_in_any_language(value):
    override = OverridesParser.create().parse_override(f"key={report_module.as_override(value)}")
    assert override.value() == value


def screen_of(capsys, **facts) -> str:
    """The last screen of a report on average precision with some other facts."""
    report = {
        "experiment": "x",
        "scale": "demo",
        "seed": 0,
        "parameters": 1,
        "steps": 1,
        "averaging": None,
        "data": {"task": "t", "source": "official", "limit": None},
        "selected": {"metric": "val/ap"},
        "test": {"ap": 0.9},
        "trivial": "constant",
        "constant": {"ap": 0.2},
        "maximise": True,
        "baseline": {"experiment": "baseline_atoms", "test": {"ap": 0.5}},
    }
    report = json.loads(json.dumps(report | facts))
    report_module.print_summary(OmegaConf.create({"run_dir": "runs/x"}), report)
    return capsys.readouterr().out


@pytest.mark.parametrize("metric_better", [True, False])
def test_the_last_screen_says_so_when_the_model_is_not_ahead(metric_better, capsys):
    decay = 0.99 if metric_better else None
    screen = screen_of(capsys, test={"ap": 0.9 if metric_better else 0.3}, averaging=decay)
    assert ("x is NOT better than the baseline_atoms" in screen) != metric_better
    assert "NOT better than the constant" not in screen
    assert ("weights averaged with decay 0.99" in screen) == metric_better


@pytest.mark.parametrize("score", [None, 0.0])
def test_the_last_screen_knows_no_score_from_one_of_zero(score, capsys):
    told = "0.0000" if score == 0 else "nan"
    baseline = {"experiment": "baseline_atoms", "test": {"ap": score}}
    screen = screen_of(capsys, baseline=baseline)
    assert f"baseline_atoms          {told}" in screen
    assert ("baseline_atoms has no score: its ap is not defined" in screen) == (score is None)
    screen = screen_of(capsys, constant={"ap": score})
    assert f"constant predictor      {told}" in screen
    screen = screen_of(capsys, test={"ap": score})
    assert f"x                       {told}" in screen
    assert ("The x has no score" in screen) == (score is None)
    assert ("x is NOT better than the constant" in screen) == (score == 0)


@pytest.mark.parametrize(("score", "told"), [(0.0, "0.000000"), (None, "nan")])
def test_eval_tells_a_reported_score_of_zero(finished, tmp_path, capsys, score, told):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    report = report_of(run)
    report["test"]["ap"] = score
    (run / "report.json").write_text(json.dumps(report))
    call_runs("eval", run)
    (line,) = (row for row in capsys.readouterr().out.splitlines() if row.split()[0] == "ap")
    assert line.endswith(f"reported {told}")


def test_a_changed_tree_is_dirty_unless_results_alone_changed(tmp_path, monkeypatch):
    def git(*args):
        person = ("-c", "user.name=x", "-c", "user.email=x@x")
        done = subprocess.run(
            ["git", *person, *args], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    monkeypatch.setattr(report_module, "__file__", str(tmp_path / "report.py"))
    git("init")
    assert report_module.commit() is None
    (tmp_path / "results").mkdir()
    for path in (tmp_path / "code.py", tmp_path / "results/a.json"):
        path.write_text("before")
    git("add", "--all")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "results/a.json").write_text("after")
    assert report_module.commit() == head
    (tmp_path / "code.py").write_text("after")
    assert report_module.commit() == f"{head}-dirty"
