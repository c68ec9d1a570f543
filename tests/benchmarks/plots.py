"""Figures of benchmark results, drawn from their JSON alone."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GROWTH = "growth with nodes, "


def draw_growth(results: dict[str, dict], path: Path) -> None:
    """Time of the resolvent and of its plan against the number of nodes, both logarithmic."""
    kinds = {name.removeprefix(GROWTH): r for name, r in results.items() if name.startswith(GROWTH)}
    if not kinds:
        return
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind, result in kinds.items():
        rows = result["rows"]
        nodes = [row["nodes"] for row in rows]
        low, middle, high = zip(*(row["ms"] for row in rows), strict=True)
        label = f"{kind}: forward and backward, slope {result['log_log_slope']:.2f}"
        (line,) = axes.plot(nodes, middle, marker="o", label=label)
        axes.fill_between(nodes, low, high, alpha=0.2, color=line.get_color())
        plans = [row["plan_ms"][1] for row in rows]
        axes.plot(nodes, plans, linestyle=":", color=line.get_color(), label=f"{kind}: planning")
    shape = f"H = {result['heads']}, S = {result['state']}, P = {result['head_dim']}"
    axes.set(xscale="log", yscale="log", xlabel="nodes of one graph", ylabel="milliseconds")
    axes.set_title(f"kernels.resolvent, state form, {shape}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
