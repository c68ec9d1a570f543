"""Runs that are kept among the results."""

import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from errors import UserError
from tools.keep_runs import MOST_POINTS, keep


def make_run(folder, encoder: str, accuracy: float):
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"run_dir: {folder}\nseed: 3\ndata:\n  data_dir: {folder}\n"
        f"model:\n  net:\n    encoder:\n      _target_: lit_models.{encoder}\n"
    )
    selected = {"metric": "val/accuracy", "value": accuracy}
    (folder / "report.json").write_text(json.dumps({"selected": selected}))
    with SummaryWriter(str(folder)) as board:
        for step in range(3 * MOST_POINTS):
            board.add_scalar("train/loss", 1 / (step + 1), step)
        for step, value in ((10, accuracy / 2), (20, accuracy)):
            board.add_scalar("val/accuracy", value, step)
    return folder


def test_reports_curves_and_what_differs(tmp_path):
    runs = [
        make_run(tmp_path / "a", "images.vit.ViT", 0.5),
        make_run(tmp_path / "b", "other.Net", 0.6),
    ]
    kept = json.loads(keep("both", runs, tmp_path / "results").read_text())["runs"]
    assert kept[0]["config"] == {
        "seed": 3,
        "model.net.encoder._target_": "lit_models.images.vit.ViT",
    }
    assert kept[1]["config"] == {"model.net.encoder._target_": "lit_models.other.Net"}
    assert [run["report"]["selected"]["value"] for run in kept] == [0.5, 0.6]
    assert kept[1]["curves"]["val/accuracy"] == {"step": [10, 20], "value": [0.3, 0.6]}
    loss = kept[0]["curves"]["train/loss"]
    assert len(loss["step"]) == MOST_POINTS
    assert loss["value"][1] == pytest.approx(1 / (loss["step"][1] + 1), rel=1e-4)
    assert (tmp_path / "results" / "both.png").stat().st_size > 1000


def test_a_run_that_is_not_finished(tmp_path):
    with pytest.raises(UserError, match=r"no report\.json: name the folders of finished runs"):
        keep("one", [tmp_path], tmp_path / "results")
