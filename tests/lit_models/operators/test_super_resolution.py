"""A network that is tested at more points than it was trained at, from data to report."""

import h5py
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from runs import evaluate, load_run, predict
from tests.running import report_of, train_here

STRIDE = ("data.sampling.space_stride=4", "data.sampling.refinements=[2,4]", "model.net.modes=[6]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("run"), "fno_burgers", *STRIDE)


def test_scores_at_every_resolution_are_reported_and_measured_again(run):
    report = report_of(run)["test"]
    assert {"nrmse", "nrmse_2x", "nrmse_4x"} <= set(report)
    # An FNO is one map of functions: after two steps, as bad at each.
    assert report["nrmse"] == pytest.approx(report["nrmse_4x"], rel=1e-2)
    assert report["nrmse"] != report["nrmse_4x"]
    assert evaluate(run) == pytest.approx(report, rel=1e-4, nan_ok=True)


def test_predictions_are_those_at_the_resolution_of_training(run):
    with h5py.File(predict(run)) as file:
        assert file["tensor"].shape == (2, 1, 16)


def test_scores_are_of_the_fields_at_more_points(run):
    """By hand, from the run's own files."""
    data = instantiate(OmegaConf.load(run / "config.yaml").data, _convert_="all")
    data.prepare_data()
    data.setup()
    model = load_run(run)
    batch = next(iter(data.test_dataloader()[2]))
    with torch.no_grad():
        error = (model(batch) - batch["target"]).double()
    assert batch["target"].shape[-1] == 64
    want = (error.flatten(2).norm(dim=2) / batch["target"].flatten(2).norm(dim=2)).mean()
    assert report_of(run)["test"]["nrmse_4x"] == pytest.approx(float(want), rel=1e-5)
