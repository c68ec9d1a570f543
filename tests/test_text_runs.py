"""What is left of a finished run on text, and what goes from one to the next."""

import csv

import pytest

from errors import UserError
from runs import _prepare, evaluate, load_run, predict
from tests import loopback
from tests.running import report_of, train_here, train_outside


def test_predictions_reproduce_the_report(tmp_path):
    run = train_here(tmp_path, "chimera_glue")
    rows = list(csv.DictReader(predict(run).open()))
    _, _, datamodule = _prepare(run)
    assert [int(row["sentence"]) for row in rows] == list(range(len(datamodule.test_dataset)))
    names = [name for name in rows[0] if name != "sentence"]
    assert len(names) == 2
    labels = [int(sentence["label"]) for sentence in datamodule.test_dataset]
    right = [
        float(row[names[label]]) == max(float(row[name]) for name in names)
        for row, label in zip(rows, labels, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(report_of(run)["test"]["accuracy"])
    assert evaluate(run) == pytest.approx(report_of(run)["test"], rel=1e-5)


@pytest.mark.slow
@loopback.needed
def test_two_processes_share_the_weights_of_one_model(tmp_path):
    on_cpus = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true")
    process = train_outside(tmp_path, "chimera_mlm", *on_cpus)
    assert process.returncode == 0, process.stderr
    (shared,) = (tmp_path / "runs").iterdir()
    assert evaluate(shared) == pytest.approx(report_of(shared)["test"], rel=1e-5)
    alone = train_here(tmp_path / "alone", "chimera_mlm", "data.batch_size=32")
    assert report_of(shared)["test"] == pytest.approx(report_of(alone)["test"], rel=1e-3)


def test_fine_tuning_begins_with_a_language_model(tmp_path):
    language_model = train_here(tmp_path, "chimera_mlm")
    with pytest.raises(UserError, match="a number for every word"):
        predict(language_model)
    still = "model.optimisation.lr=0.0"
    run = train_here(tmp_path, "chimera_glue", f"model.pretrained={language_model}", still)
    before, after = (load_run(path).net.encoder.words.weight for path in (language_model, run))
    assert after.equal(before)
