"""From the runs of a claim to its statistics and its verdict."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal, cast

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

from ledger.claim import Case, Claim, Overrides, Run, Statistic

LEVEL = 0.95

Said = Literal["holds", "fails", "open", "met", "unmet", "shown", "missing"]
Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class Cell:
    """One arm in one case: the metric of every seed.

    Attributes:
        values: by seed a number, or a list over training; None where the run failed.
        chosen: by seed, what validation data chose among `select`.
    """

    arm: str
    case: Case
    values: dict[int, Any]
    chosen: dict[int, Overrides]

    def to_json(self) -> dict[str, Any]:
        """With mean and standard deviation over the seeds."""
        known = [value for value in self.values.values() if value is not None]
        spread = stdev(known) if len(known) > 1 else None
        return asdict(self) | {"mean": fmean(known) if known else None, "sd": spread}


@dataclass(frozen=True)
class Estimate:
    """A statistic in one case: its mean over seeds with a two-sided interval.

    Attributes:
        asked: the claim's bound, such as "≥ 10"; empty where it states none.
        low, high: bounds of the 95 % t interval (of the logarithm, for a ratio; Fieller's, for what
            is recovered); None with one seed, and where the gap may be nothing.
        said: whether the whole interval satisfies the claim's bound (`holds`), none of it
            (`fails`), or part of it (`open`); `shown` where there is no bound, `missing` where a
            number is missing. One seed of a training has no interval, so it is `open`. A condition
            is `met` where it holds, else `unmet`.
    """

    name: str
    case: Case
    ours: str
    rival: str | None
    asked: str
    value: float | None
    low: float | None
    high: float | None
    said: Said


def cells(claim: Claim, runs: list[Run], reports: Mapping[str, dict], metric: str) -> list[Cell]:
    """The metric of every arm and case, after the selection on validation data."""
    by_place: dict[tuple, list[Run]] = {}
    for run in runs:
        by_place.setdefault((run.arm, tuple(run.case.items())), []).append(run)
    found = []
    for (arm, case), here in by_place.items():
        values: dict[int, Any] = {}
        chosen: dict[int, Overrides] = {}
        for seed in dict.fromkeys(run.seed for run in here):
            siblings = [run for run in here if run.seed == seed]
            if any(run.key not in reports for run in siblings):
                # The best of the rest would be a selection from fewer.
                values[seed], chosen[seed] = None, {}
                continue
            best = best_on_validation(siblings, reports, claim.maximise)
            values[seed], chosen[seed] = look_up(reports[best.key], metric), best.chosen
        found.append(Cell(arm, dict(case), values, chosen))
    return found


def best_on_validation(runs: list[Run], reports: Mapping[str, dict], maximise: bool) -> Run:
    """The run with the best selection metric on validation data; the first of equals."""
    if len(runs) == 1:
        return runs[0]

    def score(run: Run) -> float:
        value = reports[run.key]["selected"]["value"]
        worst = -math.inf if maximise else math.inf  # null stands for a value that is not finite
        return worst if value is None else value

    return (max if maximise else min)(runs, key=score)


def look_up(report: Mapping[str, Any], place: str) -> float | list | None:
    """The number or the list at a dotted place of a report, None where there is none."""
    value: Any = report
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if value is None or isinstance(value, list) else float(value)


def estimates(claim: Claim, runs: list[Run], reports: Mapping[str, dict]) -> list[Estimate]:
    """Every statistic of the claim, in every case that it is for, against every rival."""
    found = []
    for statistic in claim.statistics:
        table = cells(claim, runs, reports, statistic.metric or claim.metric)
        by_place = {(cell.arm, tuple(cell.case.items())): cell for cell in table}
        for case in claim.statistics_cases(statistic):
            ours = by_place[statistic.ours, tuple(case.items())]
            for rival in statistic.rivals or (None,):
                theirs = by_place[rival, tuple(case.items())] if rival else None
                if statistic.beside:
                    beside = cells(claim, runs, reports, statistic.beside)
                    same = next(c for c in beside if (c.arm, c.case) == (ours.arm, ours.case))
                    theirs = replace(same, arm=statistic.beside.split(".")[0])
                exact = claim.arms[statistic.ours].study is not None
                reference = None
                if statistic.reference:
                    reference = by_place[statistic.reference, tuple(case.items())]
                found.append(estimate(statistic, ours, theirs, claim.maximise, exact, reference))
    return found


def estimate(
    statistic: Statistic,
    ours: Cell,
    theirs: Cell | None,
    maximise: bool,
    exact: bool = False,
    reference: Cell | None = None,
) -> Estimate:
    """One statistic from cells, paired by seed; `exact` where one seed says all."""
    kind = statistic.kind
    of_seeds: list[float | None] = []
    gaps_of_seeds: list[float | None] = []
    for seed, value in ours.values.items():
        rival = theirs.values[seed] if theirs else 0.0
        model = reference.values[seed] if reference else 0.0
        of_seeds.append(_number(kind, value, rival, model, maximise))
        if kind == "recovered":
            gaps_of_seeds.append(_number(kind, model, rival, model, maximise))
    numbers = [number for number in of_seeds if number is not None]
    gaps = [gap for gap in gaps_of_seeds if gap is not None]
    known = len(numbers) == len(of_seeds) and len(gaps) == len(gaps_of_seeds)
    if not known or (gaps and not fmean(gaps)):
        return _estimate(statistic, ours, theirs, None, None, None, "missing")
    if kind == "deviations":
        assert theirs is not None
        spread = stdev(theirs.values.values()) if len(numbers) > 1 else 0.0
        if not spread:
            return _estimate(statistic, ours, theirs, None, None, None, "missing")
        numbers = [number / spread for number in numbers]
    value, low, high = share(numbers, gaps) if gaps else mean(numbers)
    if kind == "ratio":
        value = math.exp(value)
        low, high = (None if x is None else math.exp(x) for x in (low, high))
    word = said(statistic, value, low, high)
    if low is None and word != "shown" and not exact:
        word = "open"
    if statistic.condition:
        word = "met" if word == "holds" else "unmet"
    return _estimate(statistic, ours, theirs, value, low, high, word)


def mean(numbers: list[float]) -> tuple[float, float | None, float | None]:
    """With the bounds of its t interval, which one number does not have."""
    value = fmean(numbers)
    if len(numbers) == 1:
        return value, None, None
    error = stdev(numbers) / math.sqrt(len(numbers))
    half = _quantile(len(numbers)) * error
    return value, value - half, value + half


def share(parts: list[float], wholes: list[float]) -> tuple[float, float | None, float | None]:
    """Mean part over mean whole, with the bounds of Fieller's interval for pairs.

    It has no bounds where the mean whole may be nothing, at the same level.

    Source: Fieller, "Some Problems in Interval Estimation", J. R. Stat. Soc. B 16, 1954.
    """
    value = fmean(parts) / fmean(wholes)
    if len(parts) == 1:
        return value, None, None
    (of_part, both), (_, of_whole) = _quantile(len(parts)) ** 2 * np.cov(parts, wholes) / len(parts)
    # Shares ρ for which the mean of part − ρ whole may be nothing: a ρ² − 2 b ρ + c ≤ 0.
    a = fmean(wholes) ** 2 - of_whole
    b = fmean(parts) * fmean(wholes) - both
    c = fmean(parts) ** 2 - of_part
    if a <= 0:
        return value, None, None
    root = math.sqrt(max(0.0, b * b - a * c))
    return value, (b - root) / a, (b + root) / a


def alike(trajectory: list[float | None], other: list[float | None]) -> float | None:
    """Spearman's rank correlation of two lists over training, 0 where one is constant.

    None where a number is missing.
    """
    if len(trajectory) != len(other) or None in trajectory or None in other:
        return None
    if min(len({*trajectory}), len({*other})) < 2:
        return 0.0
    # scipy declares no types, and the one that is found is not what it returns.
    return float(cast(Any, spearmanr(trajectory, other)).statistic)


def apart(trajectory: list[float | None], other: list[float | None]) -> float | None:
    """Mean |log| of the ratios of two lists over training, None where a number has no logarithm."""
    pairs = [
        (x, y)
        for x, y in zip(trajectory, other, strict=False)
        if x is not None and y is not None and min(x, y) > 0
    ]
    if not len(pairs) == len(trajectory) == len(other):
        return None
    return fmean(abs(math.log(x / y)) for x, y in pairs)


def _quantile(count: int) -> float:
    return float(student.ppf((1 + LEVEL) / 2, count - 1))


def _number(kind: str, ours: Any, rival: Any, model: Any, maximise: bool) -> float | None:
    """What one seed says, None where a number is missing or has no logarithm."""
    if ours is None or rival is None or model is None:
        return None
    if kind == "value":
        return ours
    if kind == "rank_correlation":
        found = [alike(x, model) for x in (ours, rival) if isinstance(x, list)]
        known = [x for x in found if x is not None]
        return known[0] - sum(known[1:]) if len(known) == len(found) else None
    if kind == "log_distance":
        found = [apart(x, model) for x in (ours, rival) if isinstance(x, list)]
        known = [x for x in found if x is not None]
        return known[-1] - sum(known[:-1]) if len(known) == len(found) else None
    better, worse = (ours, rival) if maximise else (rival, ours)
    if kind == "ratio":
        return math.log(better / worse) if min(better, worse) > 0 else None
    return better - worse


def said(statistic: Statistic, value: float, low: float | None, high: float | None) -> Said:
    """Whether an interval lies on the side of the bound that the paper's sentence asks for."""
    low, high = value if low is None else low, value if high is None else high
    if statistic.at_least is not None:
        inside, outside = low >= statistic.at_least, high < statistic.at_least
    elif statistic.at_most is not None:
        inside, outside = high <= statistic.at_most, low > statistic.at_most
    else:
        return "shown"
    return "holds" if inside else "fails" if outside else "open"


def _estimate(statistic: Statistic, ours: Cell, theirs: Cell | None, *rest: Any) -> Estimate:
    rival = theirs.arm if theirs else None
    return Estimate(statistic.name, ours.case, ours.arm, rival, statistic.asked, *rest)


def verdict(
    found: list[Estimate], failures: int, seeds: tuple[int, ...], asked: tuple[int, ...]
) -> tuple[Verdict, str]:
    """The verdict by rule, and why.

    Inconclusive where a run failed, a seed of the protocol is missing, a condition is unmet, or an
    interval straddles its bound while none lies beyond it; not reproduced where one lies beyond;
    else reproduced.
    """
    missing = [seed for seed in asked if seed not in seeds]
    count = Counter(e.said for e in found)
    bounded = count["holds"] + count["fails"] + count["open"]
    if failures:
        return "inconclusive", f"{failures} runs failed."
    if missing:
        return "inconclusive", f"{len(missing)} of the protocol's {len(asked)} seeds did not run."
    if count["missing"]:
        return "inconclusive", "a report lacks a number that the claim asks for."
    if count["unmet"]:
        conditions = count["met"] + count["unmet"]
        return "inconclusive", f"{count['unmet']} of {conditions} conditions are unmet."
    if not bounded:
        return "inconclusive", "the claim states no bound."
    parts = [f"{count['holds']} of {bounded} comparisons hold"]
    parts += [f"{count['fails']} fail"] * bool(count["fails"])
    parts += [f"{count['open']} are undecided"] * bool(count["open"])
    why = ", ".join(parts) + "."
    if count["fails"]:
        return "not reproduced", why
    return ("inconclusive" if count["open"] else "reproduced"), why
