"""Statistics against numbers worked out by hand, and the rule of the verdict."""

import math
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

from ledger.claim import Arm, Run, Statistic
from ledger.statistics import Cell, Estimate, best_on_validation, cells, estimate, verdict
from ledger.statistics import estimates as all_estimates


def cell(arm: str, *values: float | None) -> Cell:
    return Cell(arm, {}, dict(enumerate(values)), {})


def test_a_difference_is_paired_and_signed_so_that_more_is_better():
    ours, rival = cell("a", 0.5, 0.7, 0.6), cell("b", 0.4, 0.5, 0.6)
    statistic = Statistic("gain", "difference", "a", ("b",), at_least=0)
    found = estimate(statistic, ours, rival, maximise=True)
    expected = stats.ttest_1samp([0.1, 0.2, 0.0], 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, *expected))
    assert found.said == "open"
    lower = estimate(statistic, ours, rival, maximise=False)
    assert (lower.value, lower.low) == pytest.approx((-0.1, -expected[1]))


def test_a_ratio_is_a_geometric_mean():
    ours, rival = cell("edge", 0.01, 0.04), cell("node", 0.4, 0.4)
    statistic = Statistic("ratio", "ratio", "edge", ("node",), at_least=10)
    found = estimate(statistic, ours, rival, maximise=False)
    assert found.value == pytest.approx(20)
    assert found.low * found.high == pytest.approx(400)
    # Two seeds: t of one degree of freedom is 12.7, and the standard error is log(4) / 2.
    assert math.log(found.high / 20) == pytest.approx(12.706 * math.log(4) / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("bound", "values", "said"),
    [
        ({"at_least": 1}, (2.0, 2.1, 2.2), "holds"),
        ({"at_least": 3}, (2.0, 2.1, 2.2), "fails"),
        ({"at_least": 2.1}, (2.0, 2.1, 2.2), "open"),
        ({"at_most": 3}, (2.0, 2.1, 2.2), "holds"),
        ({"at_most": 1}, (2.0, 2.1, 2.2), "fails"),
        ({"at_most": 4}, (4.0,), "holds"),
        ({"at_least": 4.1}, (4.0,), "fails"),
        ({}, (4.0,), "shown"),
        ({"at_least": 0}, (4.0, None), "missing"),
    ],
)
def test_a_bound_asks_for_the_whole_interval(bound, values, said):
    statistic = Statistic("rounds", "value", "a", **bound)
    assert estimate(statistic, cell("a", *values), None, True, exact=True).said == said


def test_one_seed_of_a_training_decides_nothing():
    statistic = Statistic("rounds", "value", "a", at_least=1)
    found = estimate(statistic, cell("a", 4.0), None, maximise=True)
    assert (found.value, found.low, found.said) == (4.0, None, "open")


@pytest.mark.parametrize(("values", "said"), [((2.0, 2.1), "met"), ((0.9, 3.0), "unmet")])
def test_a_condition_is_met_or_not(values, said):
    statistic = Statistic("sound", "value", "a", at_least=1, condition=True)
    assert estimate(statistic, cell("a", *values), None, maximise=True).said == said


def test_a_run_may_be_held_against_its_own_report():
    statistic = Statistic("gain", "difference", "a", beside="bigram.loss", at_least=0)
    runs = [Run("a", {}, seed, {}, None, str(seed)) for seed in (0, 1)]
    reports = {
        "0": {"test": {"loss": 3.0}, "bigram": {"loss": 5.0}},
        "1": {"test": {"loss": 3.5}, "bigram": {"loss": 5.1}},
    }

    class claim:  # all that `estimates` reads of one
        maximise, metric, statistics = False, "test.loss", (statistic,)
        arms: ClassVar = {"a": Arm(experiment="any")}
        statistics_cases = staticmethod(lambda statistic: [{}])

    (found,) = all_estimates(claim, runs, reports)
    assert (found.value, found.rival) == (pytest.approx(1.8), "bigram")


def test_what_has_no_logarithm_is_missing():
    statistic = Statistic("ratio", "ratio", "a", ("b",))
    assert estimate(statistic, cell("a", 0.0, 1.0), cell("b", 1.0, 1.0), False).said == "missing"


def test_validation_data_choose_and_a_failed_sibling_leaves_nothing_to_choose():
    def run(key: str, arm: str, depth: int) -> Run:
        return Run(arm, {}, 0, {"depth": depth}, None, key)

    runs = [run("a", "one", 1), run("b", "one", 2), run("c", "two", 1), run("d", "two", 2)]
    reports = {
        "a": {"selected": {"value": 0.5}, "test": {"rmse": 0.1}},
        "b": {"selected": {"value": 0.3}, "test": {"rmse": 0.2}},
        "c": {"selected": {"value": 0.5}, "test": {"rmse": 0.3}},
    }
    assert best_on_validation(runs[:2], reports, maximise=False).key == "b"
    assert best_on_validation(runs[:2], reports, maximise=True).key == "a"
    diverged = reports | {"a": {"selected": {"value": None}}}
    assert best_on_validation(runs[:2], diverged, maximise=True).key == "b"

    class claim:  # all that `cells` reads of one
        maximise = False

    one, two = cells(claim, runs, reports, "test.rmse")
    assert (one.values, one.chosen) == ({0: 0.2}, {0: {"depth": 2}})
    assert two.values == {0: None}


def estimates(*said: str) -> list[Estimate]:
    return [Estimate("", {}, "a", "b", "", 1.0, 0.9, 1.1, word) for word in said]


@pytest.mark.parametrize(
    ("said", "failures", "seeds", "word"),
    [
        (("holds", "shown"), 0, (0, 1), "reproduced"),
        (("holds", "open"), 0, (0, 1), "inconclusive"),
        (("holds", "open", "fails"), 0, (0, 1), "not reproduced"),
        (("holds",), 1, (0, 1), "inconclusive"),
        (("fails",), 1, (0, 1), "inconclusive"),
        (("holds",), 0, (0,), "inconclusive"),
        (("holds",), 0, (0, 1, 2), "reproduced"),
        (("shown",), 0, (0, 1), "inconclusive"),
        (("holds", "missing"), 0, (0, 1), "inconclusive"),
        (("holds", "met"), 0, (0, 1), "reproduced"),
        (("fails", "unmet"), 0, (0, 1), "inconclusive"),
    ],
)
def test_the_rule_of_the_verdict(said, failures, seeds, word):
    assert verdict(estimates(*said), failures, seeds, (0, 1))[0] == word


def test_deviations_are_those_of_the_rival_over_its_seeds():
    ours, rival = cell("a", 0.5, 0.7, 0.6), cell("b", 0.4, 0.5, 0.6)
    statistic = Statistic("gap", "deviations", "a", ("b",), at_most=2)
    found = estimate(statistic, ours, rival, maximise=True)
    assert found.value == pytest.approx(0.1 / 0.1)
    plain = estimate(Statistic("gap", "difference", "a", ("b",)), ours, rival, maximise=True)
    assert found.high == pytest.approx(plain.high / 0.1)


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5)])
def test_without_a_deviation_nothing_is_measured_in_it(values):
    statistic = Statistic("gap", "deviations", "a", ("b",), at_most=2)
    ours = cell("a", *[0.6] * len(values))
    assert estimate(statistic, ours, cell("b", *values), maximise=True).said == "missing"


def test_what_is_recovered_of_a_gap_is_a_share_of_means():
    small, large, ours = (
        cell("s", 0.8, 0.9, 0.7),
        cell("l", 0.6, 0.5, 0.6),
        cell("o", 0.7, 0.8, 0.6),
    )
    statistic = Statistic("share", "recovered", "o", ("l",), "s", at_least=0.5)
    found = estimate(statistic, ours, large, maximise=True, reference=small)
    assert found.value == pytest.approx((0.1 + 0.3 + 0.0) / (0.2 + 0.4 + 0.1))
    less = estimate(statistic, ours, large, maximise=False, reference=small)
    assert less.value == found.value, "a share has no sign"


@pytest.mark.parametrize("share", [0.2, 1.3])
def test_bounds_of_a_share_are_where_the_rest_may_be_nothing(share):
    rng = np.random.default_rng(0)
    whole = 0.5 + 0.1 * rng.standard_normal(6)
    part = share * whole + 0.05 * rng.standard_normal(6)
    cells = cell("o", *part), cell("l", *[0.0] * 6), True, False, cell("s", *whole)
    found = estimate(Statistic("share", "recovered", "o", ("l",), "s"), *cells)
    assert found.low < share < found.high
    for bound in (found.low, found.high):
        assert stats.ttest_1samp(part - bound * whole, 0).pvalue == pytest.approx(0.05)


def test_a_share_of_a_gap_that_may_be_nothing_has_no_bounds():
    ours, large, small = (
        cell("o", 0.5, 0.4, 0.6),
        cell("l", 0.4, 0.5, 0.6),
        cell("s", 0.5, 0.4, 0.7),
    )
    statistic = Statistic("share", "recovered", "o", ("l",), "s", at_least=-9)
    found = estimate(statistic, ours, large, maximise=True, reference=small)
    assert (found.low, found.high, found.said) == (None, None, "open")


def test_a_rank_correlation_is_of_lists_over_training():
    model, ours, rival = ([1.0, 2.0, 3.0, 4.0], [1.0, 9.0, 8.0, 70.0], [4.0, 3.0, 2.0, 1.0])
    reference = Cell("s", {}, {0: model, 1: model}, {})
    own = Cell("o", {}, {0: ours, 1: model}, {})
    found = estimate(
        Statistic("like", "rank_correlation", "o", (), "s"), own, None, True, False, reference
    )
    assert found.value == pytest.approx((0.8 + 1) / 2)
    other = Cell("l", {}, {0: rival, 1: [5.0] * 4}, {})
    statistic = Statistic("like", "rank_correlation", "o", ("l",), "s")
    more = estimate(statistic, own, other, True, False, reference)
    assert more.value == pytest.approx((0.8 + 1 + 1 - 0) / 2), "a constant is like nothing"
    for broken in ([1.0, None, 3.0, 4.0], [1.0, 2.0, 3.0], None):
        gone = Cell("o", {}, {0: broken, 1: model}, {})
        assert estimate(statistic, gone, other, True, False, reference).said == "missing"


def test_a_log_distance_is_of_lists_over_training():
    model = [1.0, 2.0, 4.0]
    reference = Cell("s", {}, {0: model, 1: model}, {})
    own = Cell("o", {}, {0: [2.0, 1.0, 8.0], 1: model}, {})
    found = estimate(
        Statistic("far", "log_distance", "o", (), "s"), own, None, True, False, reference
    )
    assert found.value == pytest.approx(math.log(2) / 2)
    other = Cell("l", {}, {0: [4.0, 8.0, 1.0], 1: [4.0, 8.0, 16.0]}, {})
    statistic = Statistic("near", "log_distance", "o", ("l",), "s")
    nearer = estimate(statistic, own, other, True, False, reference)
    assert nearer.value == pytest.approx(math.log(4) - math.log(2) / 2)
    for broken in ([1.0, None, 3.0], [1.0, 0.0, 3.0], [1.0], None):
        gone = Cell("o", {}, {0: broken, 1: model}, {})
        assert estimate(statistic, gone, other, True, False, reference).said == "missing"
