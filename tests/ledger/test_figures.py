"""Figures show the numbers of their JSON."""

import pytest
from matplotlib.figure import Figure

from ledger.figures import draw_ladder


def run(arm, seed, **test):
    return {"arm": arm, "case": {}, "seed": seed, "report": {"test": test}}


def test_a_ladder_shows_the_mean_of_the_seeds_at_every_number():
    figure = Figure()
    runs = [
        run("ours", 0, error_2=1.0, error_10=0.5, error=7.0),
        run("ours", 1, error_2=3.0, error_10=0.7, error=7.0),
        run("theirs", 0, error_2=4.0, error_10=4.0),
    ]
    spec = {"metrics": "error_", "x": "steps", "y": "error"}
    claim = {"figure": spec, "arms": {"ours": {}, "theirs": {}}}
    draw_ladder({"claim": claim, "runs": runs}, figure)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "-"}
    assert list(lines["ours"].get_xdata()) == [2, 10]
    assert list(lines["ours"].get_ydata()) == pytest.approx([2.0, 0.6])
    assert list(lines["theirs"].get_ydata()) == [4.0, 4.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "10"]
    dots = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "."]
    assert [1.0, 3.0] in dots
