"""Predictions: of molecules of one's own, and numbered as the whole test split is."""

import csv
import re

import pytest
import torch

import runs
from datamodules.graphs.molecules import smiles_to_graphs
from tests.running import ROOT, call_runs, train_here

SMILES = ["NCC(=O)O", "C", "NCC(=O)NCC(=O)O"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on peptides, of which every other one is left out."""
    return train_here(tmp_path_factory.mktemp("predict"), "baseline_atoms", "data.limit=10")


def table(path) -> list[dict]:
    return list(csv.DictReader(path.open()))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\n".join(SMILES), [1, 2, 3]),
        (f"{SMILES[0]} glycine\n\n{SMILES[1]}\tmethane\n{SMILES[2]}\n", [1, 3, 4]),
        ("\ufeffname,SMILES\n" + "\n".join(f'"a, b",{s}' for s in SMILES), [2, 3, 4]),
        ("smiles\r\n" + "\r\n".join(SMILES), [2, 3, 4]),
    ],
    ids=["one a line", "with names", "CSV", "one column"],
)
def test_molecules_of_a_file_are_predicted(run, tmp_path, text, lines):
    file = tmp_path / "mine.smi"
    file.write_bytes(text.encode())
    rows = table(runs.predict(run, file))
    model = runs.load_run(run)
    assert [(int(row["line"]), row["smiles"]) for row in rows] == list(zip(lines, SMILES))
    _, _, data = runs._prepare(run)
    assert model.label_names == data.label_names == [*rows[0]][2:]
    logits = model(smiles_to_graphs(SMILES))
    for row, expected in zip(rows, logits.tolist(), strict=True):
        got = [float(row[name]) for name in model.label_names]
        assert got == pytest.approx(expected, rel=1e-5)
    assert not list(run.glob("predictions-other*"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("C\nCC\nno molecule\n", r"Line 3 of .*other.smi: Expected a SMILES.*'no'"),
        ("name,smiles\na,C\nb\n", r"Line 3 of .*''"),
        ("name,structure\na,C\n", "columns name, structure, and none of them is `smiles`"),
        ("\n\n", "holds no molecule"),
        (None, "cannot be read as a text file"),
    ],
    ids=["no SMILES", "short row", "no column", "empty", "missing"],
)
def test_what_is_no_molecule_is_named_in_a_sentence(run, tmp_path, text, what):
    file = tmp_path / "other.smi"
    if text is not None:
        file.write_text(text)
    with pytest.raises(runs.UserError, match=what):
        runs.predict(run, file)
    assert not list(run.glob("predictions-other*"))


@pytest.mark.parametrize("experiment", ["edge_star", "fno_burgers"])
def test_a_run_on_anything_else_predicts_no_molecules(tmp_path, experiment):
    run = train_here(tmp_path, experiment)
    (tmp_path / "mine.smi").write_text("C\n")
    with pytest.raises(runs.UserError, match="can predict nothing from SMILES"):
        runs.predict(run, tmp_path / "mine.smi")


def test_the_page_works(run, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/predict.md").read_text(), re.DOTALL)
    exec(compile(code.replace("runs/NAME", str(run)), "predict.md", "exec"), {})
    assert runs.load_run(run).label_names[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("experiment", "column"),
    [("baseline_atoms", "graph"), ("chimera_glue", "sentence"), ("sgd_vgg11_cifar10", "image")],
)
def test_rows_bear_the_numbers_of_the_whole_test_split(tmp_path, experiment, column):
    """Joined by them, predictions are those of the same samples without a limit."""
    run = train_here(tmp_path, experiment, "data.limit=10")
    limited = {int(row.pop(column)): [*row.values()] for row in table(call_runs("predict", run))}
    assert sorted(limited) == list(range(0, 20, 2))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("limit: 10\n", "limit: null\n"))
    whole = {int(row.pop(column)): [*row.values()] for row in table(call_runs("predict", run))}
    assert sorted(whole) == list(range(20))
    for number, outputs in limited.items():
        got, expected = (
            torch.tensor([float(x) for x in row if x]) for row in (outputs, whole[number])
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
