"""Keep the reports and curves of finished runs, side by side, among the results.

python -m tools.keep_runs NAME RUN [RUN …]        (or: make keep NAME=… RUNS="…")

Writes results/runs/NAME.json, which has every run's config as it differs from the first one's, its
report and its curves, and results/runs/NAME.png, the selection metric on validation data.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from errors import UserError, one_sentence_errors
from ledger.claim import OF_THE_MACHINE
from report import save

RESULTS = Path(__file__).parent.parent / "results" / "runs"
MOST_POINTS = 200
"""Of a curve; of longer ones evenly spaced points are kept."""
FOLDERS = ("run_dir", "runs_dir", "dirpath", "save_dir")


def main() -> None:
    """Keep what the command line names."""
    if len(sys.argv) < 3:
        sys.exit("usage: python -m tools.keep_runs NAME RUN [RUN …]")
    with one_sentence_errors():
        print(f"kept in {keep(sys.argv[1], [Path(run) for run in sys.argv[2:]])}")


def keep(name: str, runs: list[Path], results: Path = RESULTS) -> Path:
    """Write NAME.json and NAME.png.

    Args:
        name: of the files.
        runs: folders of finished runs, of one metric.
        results: where they are written.

    Raises:
        UserError: a run is not finished.
    """
    kept = []
    first = None
    for run in runs:
        if not (run / "report.json").is_file():
            raise UserError(f"{run} has no report.json: name the folders of finished runs.")
        config = flat(OmegaConf.to_container(OmegaConf.load(run / "config.yaml")))
        first = config if first is None else first
        own = {key: value for key, value in config.items() if first.get(key) != value}
        report = json.loads((run / "report.json").read_text())
        kept.append({"config": own or config, "report": report, "curves": curves(run)})
    results.mkdir(parents=True, exist_ok=True)
    save(results / f"{name}.json", {"runs": kept})
    draw(kept).savefig(results / f"{name}.png", dpi=120)
    return results / f"{name}.json"


def flat(config: Any, place: str = "") -> dict[str, Any]:
    """Values by their dotted places, without folders and what is of the machine."""
    if not isinstance(config, dict) or not config:
        return {place: config}
    return {
        key: value
        for name, part in config.items()
        if name not in (*FOLDERS, *OF_THE_MACHINE)
        for key, value in flat(part, f"{place}.{name}" if place else name).items()
    }


def curves(run: Path) -> dict[str, dict[str, list]]:
    """`step` and `value` of every scalar that training logged."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        points = points[:: -(-len(points) // MOST_POINTS)]
        steps, values = zip(*((p.step, float(f"{p.value:.5g}")) for p in points), strict=True)
        found[tag] = {"step": list(steps), "value": list(values)}
    return found


def draw(kept: list[dict]) -> Figure:
    """The selection metric on validation data against the step, a line a run."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    metric = kept[0]["report"]["selected"]["metric"]
    for number, run in enumerate(kept):
        curve = run["curves"].get(metric, {"step": [], "value": []})
        told = run["config"].get("model.net.encoder._target_", f"run {number}").rsplit(".", 1)[-1]
        axes.plot(curve["step"], curve["value"], marker=".", label=told)
    axes.set(xlabel="optimiser step", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
