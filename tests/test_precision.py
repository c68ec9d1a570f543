"""Weights of 16 or 64 bits: every subject trains, and its metrics are those of its predictions."""

import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import pearsonr

import runs
from tests.running import call_runs, report_of, scalars, train_here


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize(
    "experiment", ["edge_star", "sgd_vgg11_cifar10", "fno_darcy", "chimera_lrgb"]
)
def test_a_run_ends_in_a_report_that_can_be_measured_again(tmp_path, experiment, precision):
    run = train_here(tmp_path, experiment, f"trainer.precision={precision}")
    report = report_of(run)
    assert call_runs("eval", run) == pytest.approx(report["test"], rel=1e-4)


def test_the_correlation_of_rounded_predictions_is_itself_not_rounded(tmp_path):
    """In bfloat16 its sums, and labels such as 3.25, would lose all but two digits."""
    run = train_here(tmp_path, "chimera_glue", "glue=stsb", "trainer.precision=bf16-true")
    model = runs.load_run(run).bfloat16()
    _, _, data = runs._prepare(run)
    predicted, true = [], []
    for batch in data.test_dataloader():
        with torch.inference_mode():
            predicted.append(model(data.on_after_batch_transfer(batch, 0)).float().flatten())
        true.append(batch["label"])
    expected = pearsonr(torch.cat(predicted), torch.cat(true)).statistic
    assert report_of(run)["test"]["pearson"] == pytest.approx(expected, abs=1e-4)


TEN_STEPS = (
    "data.limit=null",
    "trainer.limit_train_batches=null",
    "data.batch_size=6",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.last.every_n_train_steps=3",
)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_run_that_was_stopped_resumes_loss_for_loss(tmp_path, precision):
    """Weights are restored before Lightning converts the model, the average not rounded."""
    options = (*TEN_STEPS, f"trainer.precision={precision}")
    finished = train_here(tmp_path / "finished", "baseline_atoms", *options)
    poison = "+callbacks.poison={_target_: tests.interruptions.PoisonAt, step: 14}"
    with pytest.raises(SystemExit, match="became nan at step 14"):
        train_here(tmp_path, "baseline_atoms", *options, poison)
    (run,) = (tmp_path / "runs").iterdir()
    config = OmegaConf.load(run / "config.yaml")
    del config.callbacks.poison
    OmegaConf.save(config, run / "config.yaml")
    call_runs("resume", run)
    expected, resumed = (scalars(r, "train/loss") for r in (finished, run))
    assert sorted(resumed) == sorted(expected) == list(range(20))
    assert resumed == expected
    assert report_of(run)["test"] == report_of(finished)["test"]
    last, other = (
        torch.load(r / "checkpoints/last.ckpt", weights_only=True) for r in (finished, run)
    )
    for weights in ("state_dict", "current_model_state"):
        for name, value in last[weights].items():
            assert torch.equal(value, other[weights][name]), (weights, name)
