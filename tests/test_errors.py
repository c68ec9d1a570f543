"""Every error that a user can cause is one sentence: expected, got, what to do."""

import pytest
import torch

from tests.running import arguments, call_main, call_runs, train_here, train_outside


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


def test_unknown_setting(tmp_path):
    text = sentence_of(call_main, "experiment=chimera_lrgb", *arguments(tmp_path, "model.depth=3"))
    assert "model.depth" in text


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
