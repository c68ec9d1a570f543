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


def test_a_heat_map_shows_a_statistic_where_its_case_stands():
    figure = Figure()
    spec = {"x": "points", "y": "viscosity", "statistic": "gain"}
    claim = {
        "figure": spec,
        "cases": {"viscosity": {"0.1": {}, "0.2": {}}, "points": {"32": {}, "64": {}}},
    }
    values = {("0.1", "32"): 3.0, ("0.1", "64"): 2.0, ("0.2", "32"): 0.5, ("0.2", "64"): None}
    entries = [
        {"name": name, "case": {"viscosity": row, "points": column}, "value": known}
        for (row, column), value in values.items()
        for name, known in (("gain", value), ("another", 7.0))
    ][::-1]
    draw_heat({"claim": claim, "statistics": entries}, figure)
    axes = figure.axes[0]
    (image,) = axes.images
    shown = image.get_array()
    assert shown[0].tolist() == [3.0, 2.0]
    assert shown[1, 0] == 0.5
    assert shown.mask[1, 1]
    assert {t.get_text(): t.get_position() for t in axes.texts} == {
        "3.00": (0, 0),
        "2.00": (1, 0),
        "0.50": (0, 1),
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "0.2"]
