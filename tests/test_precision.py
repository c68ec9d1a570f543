"""Weights of 16 or 64 bits: every subject trains, and its metrics are those of its predictions."""

import pytest
import torch
from scipy.stats import pearsonr

import runs
from tests.running import call_runs, report_of, train_here


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
