"""One figure a claim, from its JSON alone.

A claim's `figure` says which: `kind: cases` (the default) shows the metric of every seed, arm and
case; `kind: curves` draws what runs reported as curves, `kind: ladder` metrics whose names end in
a number against that number, and `kind: heat` a statistic over two factors of cases.
"""

import math
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter
from PIL import Image

STAMP = "resolvent-json"


def digest_in(path: Path) -> str | None:
    """The digest of the JSON that a figure was drawn from, None if there is no such figure."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get(STAMP)


def draw(result: dict[str, Any], target: Path, digest: str) -> None:
    """Draw a claim's figure to a PNG that bears the digest of its JSON."""
    figure = Figure(layout="constrained")
    kind = result["claim"]["figure"].get("kind", "cases")
    kinds = {"cases": draw_cases, "curves": draw_curves, "ladder": draw_ladder, "heat": draw_heat}
    kinds[kind](result, figure)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if axis.get_scale() == "log":
            _plain_numbers(axis)
    title = textwrap.fill(result["claim"]["title"], int(12 * figure.get_figwidth()))
    figure.suptitle(f"{title}\n{result['verdict']}", fontsize=10)
    figure.savefig(target, dpi=110, metadata={STAMP: digest, "Software": None})


def draw_cases(result: dict[str, Any], figure: Figure) -> None:
    """Metric against case, a dot a seed and a bar at their mean; a panel a label of `panel`."""
    spec, table = result["claim"]["figure"], result["table"]
    panel = spec.get("panel")
    panels = list(dict.fromkeys(cell["case"].get(panel) for cell in table))
    arms = list(result["claim"]["arms"])
    cases = list(dict.fromkeys(_x(cell, panel) for cell in table))
    one = cases == [""]
    places = len(arms) if one else len(cases)
    figure.set_size_inches(max(5.0, (1.2 + 0.9 * places) * len(panels)), 4.2)
    for axes, label in zip(_row(figure, len(panels)), panels, strict=True):
        for index, arm in enumerate(arms):
            for cell in table:
                if cell["arm"] != arm or cell["case"].get(panel) != label:
                    continue
                values = [value for value in cell["values"].values() if value is not None]
                if not values:
                    continue
                shift = (index - (len(arms) - 1) / 2) * 0.7 / len(arms)
                x = index if one else cases.index(_x(cell, panel)) + shift
                axes.plot([x] * len(values), values, ".", color=f"C{index}", alpha=0.6)
                axes.plot([x], [cell["mean"]], "_", color=f"C{index}", markersize=18, label=arm)
        axes.set_xticks(range(places), arms if one else cases, rotation=20, ha="right")
        axes.set_yscale(spec.get("scale", "linear"))
        axes.set_title("" if label is None else f"{panel}: {label}", fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    claim = result["claim"]
    better = "higher is better" if claim["maximise"] else "lower is better"
    figure.axes[0].set_ylabel(f"{claim['metric'].rsplit('.', 1)[-1]} ({better})")
    if not one:
        _legend(figure.axes[-1])


def draw_curves(result: dict[str, Any], figure: Figure) -> None:
    """Curves of every arm's first seed, a panel an arm: `y` against `x`, on logarithmic axes.

    Where curves lie in the report is `curves`; `y` lists them by name.
    """
    spec = result["claim"]["figure"]
    runs = {}
    for run in result["runs"]:
        if run["report"] is not None:
            runs.setdefault(run["arm"], run)
    figure.set_size_inches(max(6.0, 4.4 * len(runs)), 4.2)
    for axes, (arm, run) in zip(_row(figure, len(runs)), runs.items(), strict=True):
        curves: Any = run["report"]
        for part in spec["curves"].split("."):
            curves = curves[part]
        for name in spec["y"]:
            style = "--" if "bound" in name else "-"
            axes.plot(curves[spec["x"]], curves[name], style, marker="o", markersize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel=spec["x"], title=arm)
        axes.grid(alpha=0.3)
        _legend(axes)


def draw_ladder(result: dict[str, Any], figure: Figure) -> None:
    """Every metric `<metrics><number>` of the tests against the number: means, and all seeds.

    A line an arm; `x` is what the numbers are, `y` the metric.
    """
    claim = result["claim"]
    spec, prefix = claim["figure"], claim["figure"]["metrics"]
    ladders: dict[str, dict[float, list[float]]] = {arm: {} for arm in claim["arms"]}
    for run in result["runs"]:
        for name, value in (run["report"] or {"test": {}})["test"].items():
            if name.startswith(prefix):
                number = float(name.removeprefix(prefix))
                ladders[run["arm"]].setdefault(number, []).append(value)
    figure.set_size_inches(5.5, 4.2)
    axes = figure.subplots()
    for index, (arm, ladder) in enumerate(ladders.items()):
        numbers = sorted(ladder)
        means = [fmean(ladder[number]) for number in numbers]
        axes.plot(numbers, means, "-", color=f"C{index}", label=arm)
        for number, values in ladder.items():
            axes.plot([number] * len(values), values, ".", color=f"C{index}", alpha=0.6)
    axes.set(xscale="log", yscale="log", xlabel=spec["x"], ylabel=spec["y"])
    numbers = sorted(set().union(*ladders.values()))
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    _legend(axes)


def draw_heat(result: dict[str, Any], figure: Figure) -> None:
    """A number a case: the value of `statistic` over the factors `x` and `y`."""
    spec, claim = result["claim"]["figure"], result["claim"]
    columns, rows = list(claim["cases"][spec["x"]]), list(claim["cases"][spec["y"]])
    values = {
        (e["case"][spec["y"]], e["case"][spec["x"]]): e["value"]
        for e in result["statistics"]
        if e["name"] == spec["statistic"] and e["value"] is not None
    }
    grid = [[values.get((row, column), math.nan) for column in columns] for row in rows]
    figure.set_size_inches(1.6 + 1.3 * len(columns), 1.8 + 0.7 * len(rows))
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="RdBu_r", norm=CenteredNorm(1), aspect="auto")
    for (row, column), value in values.items():
        at = columns.index(column), rows.index(row)
        axes.text(*at, f"{value:.2f}", ha="center", va="center", backgroundcolor="white")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=spec["x"], ylabel=spec["y"])
    figure.colorbar(image, label=spec["statistic"])


def _x(cell: dict[str, Any], panel: str | None) -> str:
    return ", ".join(f"{k} {v}" for k, v in cell["case"].items() if k != panel)


def _row(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, max(count, 1), sharey=True, squeeze=False)[0])


def _plain_numbers(axis: Axis) -> None:
    """0.02 for 2 × 10⁻²; between powers of ten the fewer, the more of them there are."""
    if isinstance(axis.get_major_locator(), FixedLocator):
        return
    low, high = axis.get_view_interval()
    digits = "123456789" if high < 20 * low else "25" if high < 200 * low else ""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else "")
    )


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=8)
