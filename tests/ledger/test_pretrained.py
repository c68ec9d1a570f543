"""An arm may go on from a run of another claim."""

import pytest

import reproduce
from errors import UserError
from ledger.claim import Planner, load_claim
from tests.ledger.conftest import write_claim

pytestmark = pytest.mark.timeout(600)

READING = """\
title: Words are filled in
paper: none
sentence: Chimera learns.
published: nothing
protocol: One arm.
metric: test.cross_entropy
maximise: false
seeds: [0]
minutes: 1
overrides: {data.source: generated, data.cache_dir: CACHE}
arms:
  chimera: {experiment: chimera_mlm, tuned: {model.optimisation.lr: 2e-3}}
cases:
  budget: {short: {trainer.max_epochs: 1}, long: {trainer.max_epochs: 2}}
tune: {seeds: [7], case: {budget: short}, grid: {model.optimisation.lr: [1e-3, 2e-3]}}
statistics:
  - name: below the bigram
    kind: difference
    ours: all
    beside: bigram.cross_entropy
    at_least: 0
    condition: true
"""
TASK = """\
title: It helps to have read
paper: none
sentence: Pretraining helps.
published: nothing
protocol: Two arms.
metric: test.accuracy
maximise: true
seeds: [0]
minutes: 1
overrides: {data.source: generated, data.cache_dir: CACHE}
arms:
  read:
    experiment: chimera_glue
    pretrained: {claim: reading, arm: chimera, case: {budget: short}}
  unread: {experiment: chimera_glue}
tune: {seeds: [7], grid: {model.optimisation.lr: [1e-3, 3e-3]}}
statistics:
  - {name: gain, kind: difference, ours: read, rivals: [unread], at_least: 0}
"""

GRAFTING = """\
arms:
  small: {experiment: sgd_vgg11_cifar10, overrides: {trainer.log_every_n_steps: 1}}
  large:
    experiment: sgd_vgg11_cifar10
    overrides: {+grafting@callbacks.grafting: external}
    pretrained: {claim: grafting, arm: small, place: callbacks.grafting.run}
statistics:
  - {name: gain, kind: difference, ours: large, rivals: [small]}
"""


@pytest.fixture
def task(claims, tmp_path):
    """A claim on a task, which goes on from one on words."""
    write_claim(claims, READING.replace("CACHE", str(tmp_path / "data")), "reading")
    write_claim(claims, TASK.replace("CACHE", str(tmp_path / "data")), "task")
    return load_claim("task", "smoke")


def test_a_run_goes_on_from_that_of_equal_seed(task):
    read, unread = Planner(task).test_runs((0,))
    (reading,) = (
        run
        for run in Planner(load_claim("reading", "smoke")).test_runs((0,))
        if run.case == {"budget": "short"}
    )
    assert read.after.key == reading.key
    assert unread.after is None
    assert [run.key for run in read.line] == [reading.key, read.key]
    folders = (read.config.model.pretrained, unread.config.model.pretrained)
    assert folders == (f"None/../{reading.folder}", None), "beside a run's own folder, once it is"


def test_tuning_goes_on_from_the_run_that_was_tuned(task):
    # The settings that tuning chose are those of demo scale.
    tuned = Planner(load_claim("task", "demo")).tuning_runs()[0]
    keys = {run.chosen["model.optimisation.lr"]: run.key for run in _tuned("reading")}
    assert tuned.after.key == keys[2e-3]


def _tuned(name: str) -> list:
    return Planner(load_claim(name, "demo")).tuning_runs()


def test_what_an_arm_goes_on_from_runs_first_and_once(task, tmp_path):
    folders = {"runs_dir": tmp_path / "runs", "results_dir": tmp_path / "results"}
    result = reproduce.reproduce(task, **folders)
    assert not result["failures"]
    read, unread = result["runs"]
    assert "pretrained" not in unread
    (reading,) = (tmp_path / "runs").glob(f"chimera_mlm-{read['pretrained']}/report.json")
    (after,) = (tmp_path / "runs").glob(f"chimera_glue-{read['key']}/config.yaml")
    assert reading.stat().st_mtime < after.stat().st_mtime
    reproduce.reproduce(load_claim("reading", "smoke"), **folders)
    assert len(list((tmp_path / "runs").glob("chimera_mlm-*"))) == 2, "short is there, long is new"


def test_an_arm_may_take_the_records_of_another_one(claims, tmp_path):
    shared, _ = TASK.replace("CACHE", str(tmp_path / "data")).split("arms:")
    write_claim(claims, shared + GRAFTING, "grafting")
    folders = {"runs_dir": tmp_path / "runs", "results_dir": tmp_path / "results"}
    result = reproduce.reproduce(load_claim("grafting", "smoke"), **folders)
    assert not result["failures"]
    small, large = result["runs"]
    assert large["pretrained"] == small["key"]


def test_a_run_whose_pretraining_failed_says_so(task, tmp_path):
    task.arms.pop("unread")
    planner = Planner(task)
    (run,) = planner.test_runs((0,))
    run.after.config.trainer.max_epochs = 0
    outcome = reproduce.carry_out([run], tmp_path, title="broken", alone=False, minutes=1)
    assert outcome.failures.keys() == {run.key, run.after.key}
    assert "There is no checkpoint" in outcome.failures[run.key]


def test_an_arm_that_is_not_there_is_one_sentence(claims, task, tmp_path):
    write_claim(claims, TASK.replace("arm: chimera", "arm: bert"), "task")
    with pytest.raises(UserError, match="claim reading has no arm 'bert'"):
        Planner(load_claim("task", "smoke")).test_runs((0,))
