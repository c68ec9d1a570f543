"""Every error that a user can cause is one sentence: expected, got, what to do."""

import errno
import os

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from errors import explain
from tests.running import (
    arguments,
    call_main,
    call_runs,
    report_of,
    train_here,
    train_outside,
)


def sentence_of(call, *args) -> str:
    with pytest.raises(SystemExit) as stopped:
        call(*args)
    text = str(stopped.value)
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


def test_unknown_experiment(tmp_path):
    text = sentence_of(call_main, "experiment=chimera_lrbg", *arguments(tmp_path))
    assert "there is no experiment 'chimera_lrbg'" in text
    assert "choose one of baseline_atoms, chimera_cifar10, chimera_cifar100, chimera_coco" in text


def test_no_experiment(tmp_path):
    assert "experiment" in sentence_of(call_main, *arguments(tmp_path))


def test_unknown_scale(tmp_path):
    text = sentence_of(call_main, "experiment=chimera_lrgb", *arguments(tmp_path, "scale=huge"))
    assert "scale must be one of smoke, demo, paper, got 'huge'" in text


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.size_jiter=10", "'data.size_jiter': to append to your config use +data.size_jiter="),
        ("model.depth=3", "'model.depth': to append to your config use +model.depth=3."),
        ("+seed=1", "at 'seed': either remove + prefix: 'seed=1', or add a second +"),
        ("data@other=cifar10", "use +data@other=cifar10."),
        ("~callbacks.nothing", "'callbacks.nothing' does not exist."),
        (
            "runs_dir=Läufe",
            "runs_dir=Läufe cannot be read: put a value with spaces, letters",
        ),
        (
            "+model.depth=3",
            "unexpected keyword argument 'depth'): correct them.",
        ),
    ],
)
def test_a_setting_that_cannot_be_made_names_the_remedy(tmp_path, override, told):
    arguments_ = arguments(tmp_path, override)
    assert told in sentence_of(call_main, "experiment=baseline_atoms", *arguments_)


@pytest.mark.parametrize(
    "override",
    [
        "model.net.width=three",
        "+model.nowhere=${nowhere}",
        "callbacks.last.filename=${nowhere}",
        "+callbacks.odd={_target_: nowhere.Nothing}",
        "+callbacks.odd={_target_: lit_models.callbacks.grafting.ExternalGrafting, run: nowhere}",
        "logger._target_=nowhere.Logger",
        "trainer.precision=3-true",
        "+callbacks.odd={_target_: tests.interruptions.PoisonAt, step: 0}",
    ],
)
def test_a_start_that_fails_leaves_no_folder(tmp_path, override, capsys):
    """While the config resolves, while data, model or trainer are made, before the first step."""
    with pytest.raises((SystemExit, Exception)) as stopped:
        call_main("experiment=baseline_atoms", *arguments(tmp_path, override))
    runs = tmp_path / "runs"
    assert not runs.exists() or not [*runs.iterdir()]
    # Nothing of Hydra's stands before our sentence.
    told = stopped.type is SystemExit
    assert told != ("Error executing job" in capsys.readouterr().err)
    assert told == (override != "model.net.width=three")


def test_a_start_that_fails_leaves_a_folder_that_was_there(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    named = ("+callbacks.odd={_target_: nowhere.Nothing}", f"run_dir={tmp_path / 'mine'}")
    sentence_of(call_main, "experiment=baseline_atoms", *arguments(tmp_path, *named))
    assert (tmp_path / "mine/notes.txt").exists()


@pytest.mark.parametrize("key", ["seed", "data.seed", "data.shuffle_seed"])
@pytest.mark.parametrize("value", ["4294967296", "-1", "1.5", "null", "one"])
def test_a_seed_that_is_none(tmp_path, key, value):
    with_it = arguments(tmp_path, f"{key}={value}")
    text = sentence_of(call_main, "experiment=baseline_atoms", *with_it)
    assert f"{key} must be a whole number from 0 to 2**32 - 1, got " in text
    assert not [*tmp_path.iterdir()], "before any data are made"


def test_the_largest_seed(tmp_path):
    seeds = (f"{key}=4294967295" for key in ("seed", "data.seed", "data.shuffle_seed"))
    assert train_here(tmp_path, "baseline_atoms", *seeds)


def test_a_training_that_nothing_ends(tmp_path):
    endless = ("trainer.max_epochs=-1", "+trainer.max_time=00:00:00:05")
    with_it = arguments(tmp_path, *endless)
    text = sentence_of(call_main, "experiment=baseline_atoms", *with_it)
    assert "trainer.max_epochs is -1: give it, or +trainer.max_steps" in text
    assert report_of(train_here(tmp_path, "baseline_atoms", *endless, "+trainer.max_steps=2"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run is True: leave it out"),
        ("trainer.limit_val_batches=0", "validated, as trainer.limit_val_batches is 0"),
        ("trainer.limit_train_batches=0", "trained, as trainer.limit_train_batches is 0"),
        ("trainer.limit_test_batches=0.0", "tested, as trainer.limit_test_batches is 0"),
    ],
)
def test_a_training_without_a_validation_or_test_is_not_begun(tmp_path, override, told):
    text = sentence_of(call_main, "experiment=baseline_atoms", *arguments(tmp_path, override))
    assert told in text
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.max_epochs=0"], "trainer.max_epochs is 0"),
        (["+trainer.max_time=00:00:00:00"], "trainer.max_time was over after"),
        (["+trainer.max_steps=1"], "max_steps 1"),
        (["+trainer.val_check_interval=2", "+trainer.max_steps=1"], "val_check_interval 2"),
    ],
)
def test_why_no_epoch_was_validated(tmp_path, overrides, told):
    text = sentence_of(train_here, tmp_path, "baseline_atoms", *overrides)
    assert "No epoch was validated, so no model was selected" in text
    assert told in text


def test_a_full_disk(tmp_path, monkeypatch, capfd):
    """TensorBoard writes in a thread of its own, whose traceback is none of the user's."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", write)
    text = sentence_of(train_here, tmp_path, "baseline_atoms")
    assert f"{tmp_path / 'runs'}/baseline_atoms-smoke-generated-seed0-" in text
    assert "cannot be written or read (No space left on device): free some space" in text
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", ["EACCES", "EROFS", "EDQUOT", "EPERM"])
def test_what_may_not_be_written(number):
    number = getattr(errno, number)
    error = RuntimeError("while closing")
    error.__context__ = OSError(number, os.strerror(number), "data/here")
    assert explain(error).startswith(f"data/here cannot be written or read ({os.strerror(number)})")
    assert explain(FileNotFoundError(errno.ENOENT, "not there", "data/here")) is None, "a bug"


def test_a_place_where_no_run_can_be(tmp_path):
    (tmp_path / "file").touch()
    cannot = arguments(tmp_path, f"runs_dir={tmp_path / 'file'}")
    text = sentence_of(call_main, "experiment=baseline_atoms", *cannot)
    assert f"folder {tmp_path / 'file'}/baseline_atoms" in text
    assert "cannot be made (Not a directory): name another place by runs_dir" in text


def test_a_model_that_could_not_be_read_again(tmp_path):
    opaque = (
        "model.net._target_=tests.interruptions.OpaqueNet",
        f"data.cache_dir={tmp_path / 'data'}",
    )
    text = sentence_of(train_here, tmp_path, "baseline_atoms", *opaque)
    assert "state_dict holds net._extra_state, of type PosixPath, which cannot be saved" in text


def test_a_shape_that_does_not_fit(tmp_path):
    text = sentence_of(train_here, tmp_path, "chimera_lrgb", "model.net.heads=3")
    assert "width 16 must be a multiple of heads 3" in text


def test_a_training_without_a_validation(tmp_path):
    overrides = ("+trainer.check_val_every_n_epoch=3", "trainer.max_epochs=2")
    text = sentence_of(train_here, tmp_path, "baseline_atoms", *overrides)
    assert "No epoch was validated" in text


def test_wrong_data_folder(tmp_path):
    overrides = ("data.source=official", f"data.data_dir={tmp_path / 'nowhere'}")
    text = sentence_of(train_here, tmp_path, "chimera_lrgb", *overrides)
    assert "nowhere" in text


def test_no_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    text = sentence_of(train_here, tmp_path, "chimera_lrgb", "trainer=gpu")
    assert "asks for a GPU and torch sees none" in text


def test_not_a_run(tmp_path):
    for command in ("eval", "predict", "resume"):
        text = sentence_of(call_runs, command, tmp_path)
        assert "is not the folder of a run" in text


def test_a_corrupt_checkpoint(tmp_path):
    run = train_here(tmp_path, "baseline_atoms")
    assert "is finished" in sentence_of(call_runs, "resume", run)
    path = run / "checkpoints/best.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be read as the model" in sentence_of(call_runs, "eval", run)
    path.unlink()
    assert "has no checkpoints/best.ckpt" in sentence_of(call_runs, "predict", run)


def test_the_command_line_shows_no_traceback(tmp_path):
    process = train_outside(tmp_path, "chimera_lrbg")
    assert process.returncode == 1
    assert process.stderr.strip().startswith("error: there is no experiment 'chimera_lrbg'")
    assert "Traceback" not in process.stderr
