"""Figures show the numbers of their JSON."""

import pytest
from matplotlib.figure import Figure

from ledger.figures import draw_heat, draw_ladder


def run(arm, seed, **test):
    return {"arm": arm, "case": {}, "seed": seed, "report": {"test": test}}


def test_a_ladder_shows_the_mean_of_the_seeds_at_every_number():
    figure = Figure()
    runs = [
        run("ours", 0, error_2=1.0, error_10=0.5, error=7.0),
        run("ours", 1, error_2=3.0, error_10=0.7, error=7.0),
        run("theirs", 0, error_2=4.0, error_10=4.0),
    ]
    spec = {"metrics": "error_", "x": "steps", "scale": "linear"}
    claim = {"figure": spec, "arms": {"ours": {}, "theirs": {}}}
    draw_ladder({"claim": claim, "runs": runs}, figure)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "-"}
    assert list(lines["ours"].get_xdata()) == [2, 10]
    assert list(lines["ours"].get_ydata()) == pytest.approx([2.0, 0.6])
    assert list(lines["theirs"].get_ydata()) == [4.0, 4.0]
    dots = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "."]
    assert [1.0, 3.0] in dots


def test_heat_shows_a_number_for_every_case_that_has_one():
    figure = Figure()
    values = {("32", ".1"): 1.5, ("64", ".1"): 1.25, ("32", ".2"): 0.5, ("64", ".2"): None}
    statistics = [
        {"name": "gain", "case": {"points": points, "ν": viscosity}, "value": value}
        for (points, viscosity), value in values.items()
    ] + [{"name": "other", "case": {"points": "32", "ν": ".1"}, "value": 9.0}]
    cases = {"points": {"32": {}, "64": {}}, "ν": {".1": {}, ".2": {}}}
    claim = {"figure": {"x": "points", "y": "ν", "statistic": "gain"}, "cases": cases}
    draw_heat({"claim": claim, "statistics": statistics}, figure)
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(0, 0): "1.50", (1, 0): "1.25", (0, 1): "0.50"}
    assert figure.axes[0].images[0].get_array().mask[1, 1]
