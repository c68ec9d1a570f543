"""RESULTS.md and the figures of claims, rendered from their JSON alone."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ledger import figures

HEAD = """\
# Results

Every claim below is a sentence of a paper turned into runs, one statistic and a rule that was fixed
before the test seeds ran. This page is rendered by `make results` from the JSON files in
[claims/](claims/), which hold every run's report and all that was tried in tuning. An interval is
a 95 % t interval over seeds, Fieller's for a share of a gap. *Reproduced*: every comparison that
the claim asks for lies, with its whole interval, on the side that the paper says. *Not reproduced*:
at least one lies wholly on the other side. *Inconclusive*: neither, or a run failed, or a condition
of the comparison is unmet.
`demo` means minutes on two CPU cores: a verdict at that scale speaks of small networks and short
training, not of the paper's own numbers.
"""

SHORT = {
    "holds": "holds",
    "fails": "does not hold",
    "open": "undecided",
    "met": "condition met",
    "unmet": "condition unmet",
    "shown": "",
    "missing": "missing",
}


def all_results(results_dir: Path) -> None:
    """Render every figure that is not its JSON's, and RESULTS.md."""
    for path in claim_files(results_dir):
        figure(path)
    (results_dir / "RESULTS.md").write_text(page(results_dir))


def claim_files(results_dir: Path) -> list[Path]:
    """The JSON of every claim that was tested."""
    return sorted((results_dir / "claims").glob("*.json"))


def figure(path: Path) -> None:
    """Draw a claim's figure beside its JSON, unless it is there."""
    target, digest = path.with_suffix(".png"), digest_of(path)
    if figures.digest_in(target) != digest:
        figures.draw(json.loads(path.read_text()), target, digest)


def digest_of(path: Path) -> str:
    """Of a claim's JSON, to be found again in its figure."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def page(results_dir: Path) -> str:
    """RESULTS.md."""
    results = {path.stem: json.loads(path.read_text()) for path in claim_files(results_dir)}
    rows = [
        [f"[{stem}](#{stem})", r["claim"]["title"], f"**{r['verdict']}**"]
        for stem, r in results.items()
    ]
    overview = table(["claim", "what it says", "verdict"], rows)
    return "\n".join([HEAD, overview, "", *(section(stem, r) for stem, r in results.items())])


def section(stem: str, result: dict[str, Any]) -> str:
    """All that RESULTS.md says of one claim."""
    claim, made = result["claim"], result["provenance"]
    data = ", ".join(made["sources"])
    lines = [
        f"## {stem}",
        "",
        f"**{claim['title']}.**",
        "",
        f"- **The paper** ({claim['paper']}): {claim['sentence']}",
        f"- **Published:** {claim['published']}",
        f"- **Tested here:** {claim['protocol']} Scale `{claim['scale']}`, seeds "
        f"{', '.join(map(str, result['seeds']))}" + (f", {data} data." if data else "."),
        f"- **Verdict: {result['verdict']}.** {result['why'][0].upper()}{result['why'][1:]}",
    ]
    if claim["limits"]:
        lines.append(f"- **What it does not say:** {claim['limits']}")
    command = f"make reproduce CLAIM={claim['name']}"
    command += "" if claim["scale"] == "demo" else f" SCALE={claim['scale']}"
    commits = ", ".join(c[:12] + c[40:] for c in made["commits of runs"])
    lines += [
        f"- **Again:** `{command}`, about {claim['minutes']:g} min on two CPU cores; measured "
        f"at commit {commits}, on {', '.join(made['devices'])}.",
        "",
    ]
    lines += [statistics_table(result), "", metric_table(result), ""]
    lines += [f"![{claim['title']}](claims/{stem}.png)", ""]
    return "\n".join(lines)


def statistics_table(result: dict[str, Any]) -> str:
    """What was asked of the runs and what they answered."""
    rows = [
        [
            e["name"],
            case_text(e["case"]),
            e["ours"] + (f" against {e['rival']}" if e["rival"] else ""),
            interval(e),
            e["asked"],
            SHORT[e["said"]],
        ]
        for e in result["statistics"]
    ]
    return table(["statistic", "case", "arms", "value [95 % interval]", "asked", ""], rows)


def metric_table(result: dict[str, Any]) -> str:
    """Mean ± standard deviation over seeds, one line a case and one column an arm.

    The paper's own lines follow, where the claim has them.
    """
    claim = result["claim"]
    arms = list(claim["arms"])
    cells = {(case_text(cell["case"]), cell["arm"]): cell for cell in result["table"]}
    cases = list(dict.fromkeys(case for case, _ in cells))
    better = "higher is better" if claim["maximise"] else "lower is better"
    rows = [[case or "all", *(spread(cells[case, arm]) for arm in arms)] for case in cases]
    for where, row in claim.get("paper_table", {}).items():
        printed = (f"{row[arm]:g}" if arm in row else "" for arm in arms)
        rows.append([f"the paper: {where}", *printed])
    title = f"{claim['metric'].rsplit('.', 1)[-1]} ({better})"
    return table([title, *arms], rows)


def interval(estimate: dict[str, Any]) -> str:
    """A value with its interval."""
    if estimate["value"] is None:
        return "no value"
    text = number(estimate["value"])
    if estimate["low"] is None:
        return text
    return f"{text} [{number(estimate['low'])}, {number(estimate['high'])}]"


def spread(cell: dict[str, Any]) -> str:
    """Mean ± standard deviation; says how many seeds are missing."""
    failed = sum(value is None for value in cell["values"].values())
    if cell["mean"] is None:
        return "failed"
    text = number(cell["mean"]) + ("" if cell["sd"] is None else f" ± {number(cell['sd'])}")
    return text + (f" ({failed} failed)" if failed else "")


def number(value: float) -> str:
    """Three significant digits, without an exponent where it is easily read."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return digits
    return f"{value:.1e}"


def case_text(case: dict[str, str]) -> str:
    """A case in a few words."""
    return ", ".join(f"{factor} {label}" for factor, label in case.items())


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, without columns that are empty in every row."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [
        [head[i] for i in kept],
        ["---"] * len(kept),
        *([row[i] for i in kept] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def screen(result: dict[str, Any]) -> str:
    """What a finished claim says on the terminal."""
    claim = result["claim"]
    lines = [
        f"{claim['name']} at scale {claim['scale']}: {claim['title']}",
        f"paper: {claim['sentence']}",
    ]
    lines += [f"published: {claim['published']}"]
    for cell in result["table"]:
        lines.append(f"  {cell['arm']:<20}{case_text(cell['case']):<44}{spread(cell)}")
    for e in result["statistics"]:
        arms = e["ours"] + (f" against {e['rival']}" if e["rival"] else "")
        where = ", ".join(filter(None, [e["name"], arms, case_text(e["case"])]))
        asked = f", asked {e['asked']}: {SHORT[e['said']]}" if e["asked"] else ""
        lines.append(f"  {where}: {interval(e)}{asked}")
    lines += [f"{f['run']} FAILED: {f['error']}" for f in result["failures"]]
    verdict = f"VERDICT: {result['verdict'].upper()}. {result['why'][0].upper()}{result['why'][1:]}"
    width = min(100, max(map(len, lines)))
    return "\n".join(["", "─" * width, *lines, verdict, "─" * width])
