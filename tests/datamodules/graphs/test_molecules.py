"""Features of molecules against OGB's own."""

import ast
import csv
import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from datamodules.errors import DataError
from datamodules.graphs import lrgb, molecules
from datamodules.graphs.molecules import (
    ATOM_FEATURE_SIZES,
    BOND_FEATURE_SIZES,
    smiles_to_graph,
    smiles_to_graphs,
)

# Importing ogb starts a thread that asks the network for a newer ogb, unless this is missing.
sys.modules.setdefault("outdated", None)
from ogb.utils import features as ogb_features  # noqa: E402
from ogb.utils import mol as ogb_mol  # noqa: E402

MOLECULES = {
    "alanine": "C[C@H](N)C(=O)O",
    "alanine, other hand": "C[C@@H](N)C(=O)O",
    "dipeptide": "N[C@@H](Cc1ccccc1)C(=O)N[C@@H](CO)C(=O)O",
    "charged peptide": "[NH3+][C@@H](CCCC[NH3+])C(=O)N[C@@H](CC(=O)[O-])C(=O)[O-]",
    "arginine": "N[C@@H](CCCNC(N)=[NH2+])C(=O)O",
    "histidine": "N[C@@H](Cc1c[nH]cn1)C(=O)O",
    "tryptophan": "N[C@@H](Cc1c[nH]c2ccccc12)C(=O)O",
    "proline": "O=C(O)[C@@H]1CCCN1",
    "disulfide bridge": "N[C@@H]1CSSC[C@@H](C(=O)O)NC(=O)CNC1=O",
    "cyclic peptide": "O=C1CNC(=O)[C@H](C)NC(=O)[C@@H](CC(C)C)N1",
    "isoleucine": "CC[C@H](C)[C@H](N)C(=O)O",
    "methane, one atom": "C",
    "sodium ion, one atom": "[Na+]",
    "table salt": "[Na+].[Cl-]",
    "ions beside a molecule": "[K+].CC(=O)[O-].O",
    "calcium salt": "[Ca+2].[O-]C(=O)C.[O-]C(=O)C",
    "triple bond": "CC#N",
    "alkyne": "C#CCO",
    "isonitrile": "C[N+]#[C-]",
    "azide": "CN=[N+]=[N-]",
    "E alkene": "C/C=C/C",
    "Z alkene": "C/C=C\\C",
    "open stereo": "CC=CC",
    "E and Z diene": "C/C=C/C=C\\Cl",
    "allene": "C=C=C",
    "pyridine": "c1ccncc1",
    "pyrrole": "c1cc[nH]c1",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "aromatic cation": "C[n+]1ccccc1",
    "nitro group": "O=[N+]([O-])c1ccccc1",
    "thiophene, furan": "c1ccsc1-c1ccoc1",
    "sulfone": "CS(=O)(=O)N",
    "sulfur hexafluoride": "FS(F)(F)(F)(F)F",
    "phosphorus pentachloride": "ClP(Cl)(Cl)(Cl)Cl",
    "phosphate": "COP(=O)([O-])[O-]",
    "radical": "C[CH2]",
    "carbene": "[CH2]",
    "nitroxide": "CC1(C)CCCC(C)(C)N1[O]",
    "boron": "OB(O)c1ccccc1",
    "dummy atom": "*CC",
    "dative bond": "N->[Cu]",
    "quadruple bond": "[Re]$[Re]",
    "square planar": "F[Pt@SP1](Cl)(Br)I",
    "isotope, explicit hydrogen": "[2H]C([2H])([13CH3])[H]",
    "charge beyond the table": "[Th+6]",
    "bicycle": "C1CC2CCC1C2",
    "steroid": "C[C@]12CC[C@H]3[C@@H](CCc4cc(O)ccc34)[C@@H]1CC[C@@H]2O",
}


def assert_equals_ogb(graph: Data, smiles: str) -> None:
    expected = ogb_mol.smiles2graph(smiles)
    assert graph.x.dtype == graph.edge_index.dtype == graph.edge_attr.dtype == torch.int64
    np.testing.assert_array_equal(graph.x, expected["node_feat"])
    np.testing.assert_array_equal(graph.edge_index, expected["edge_index"])
    np.testing.assert_array_equal(graph.edge_attr, expected["edge_feat"])
    assert graph.num_nodes == expected["num_nodes"]


@pytest.mark.parametrize("smiles", MOLECULES.values(), ids=MOLECULES.keys())
def test_features_equal_ogb(smiles):
    assert_equals_ogb(smiles_to_graph(smiles), smiles)


def test_features_equal_ogb_on_official_peptides(real):
    with gzip.open(real(f"lrgb/{lrgb.CSV_FOLDER}/{lrgb.CSV_NAME}"), "rt") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)][::311]
    assert len(smiles) == 50
    for graph, text in zip(smiles_to_graphs(smiles), smiles, strict=True):
        assert_equals_ogb(graph, text)


def test_embedding_sizes_are_ogbs():
    assert list(ATOM_FEATURE_SIZES) == ogb_features.get_atom_feature_dims()
    assert list(BOND_FEATURE_SIZES) == ogb_features.get_bond_feature_dims()


def test_every_bond_comes_twice_in_a_row():
    graph = smiles_to_graph(MOLECULES["tryptophan"])
    assert graph.smiles == MOLECULES["tryptophan"]
    assert torch.equal(graph.edge_index[:, 0::2], graph.edge_index[:, 1::2].flip(0))
    assert torch.equal(graph.edge_attr[0::2], graph.edge_attr[1::2])
    assert graph.is_undirected()
    assert graph.edge_index.is_contiguous()


def test_worker_processes_give_the_same_graphs_in_the_same_order(monkeypatch):
    monkeypatch.setattr(molecules, "_CHUNK", 7)
    smiles = list(MOLECULES.values())
    alone, shared = smiles_to_graphs(smiles, processes=1), smiles_to_graphs(smiles, processes=2)
    for one, two in zip(alone, shared, strict=True):
        assert one.smiles == two.smiles
        assert all(torch.equal(one[key], two[key]) for key in ("x", "edge_index", "edge_attr"))


def test_no_molecules_are_no_graphs():
    assert smiles_to_graphs([]) == []


@pytest.mark.parametrize("smiles", ["", "C(", "not a molecule", "C1CC"])
@pytest.mark.parametrize("processes", [1, 2])
def test_unreadable_smiles_is_named(smiles, processes, monkeypatch, capfd):
    monkeypatch.setattr(molecules, "_CHUNK", 1)
    with pytest.raises(DataError, match="RDKit cannot read") as caught:
        smiles_to_graphs(["CC", smiles], processes)
    assert repr(smiles) in str(caught.value)
    assert capfd.readouterr().err == ""  # RDKit's own complaint is not needed


@pytest.mark.parametrize("smiles", [None, 6, float("nan"), b"CC"])
@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_no_string_is_named_by_its_row(smiles, processes, monkeypatch):
    monkeypatch.setattr(molecules, "_CHUNK", 1)
    with pytest.raises(DataError, match=f"a SMILES string in row 2, got {smiles!r}: correct or"):
        smiles_to_graphs(["CC", "C", smiles, None], processes)


SCRIPT = """
from datamodules.graphs.molecules import smiles_to_arrays
smiles_to_arrays(["C" * 100] * 400_000, processes=2)
"""


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def until(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return what()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_was_killed(how):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[3])
    try:
        assert until(lambda: len(children(process.pid)) == 2, 60)
        workers = children(process.pid)
        process.send_signal(how)
        process.wait(10)
        ended = until(lambda: not any(map(runs, workers)), 20)
    finally:
        process.kill()
    left = [pid for pid in workers if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert ended, left


def test_stereo_unknown_to_ogb_is_an_error():
    atropisomer = "Cc1cccc(I)c1-c1c(C)cccc1Br |wU:7.6|"
    with pytest.raises(DataError, match=r"STEREOATROP.*drop this molecule"):
        smiles_to_graph(atropisomer)


def test_rdkit_is_imported_on_first_use_only(monkeypatch):
    for name in ("molecules", "lrgb"):
        source = Path(molecules.__file__).with_name(f"{name}.py").read_text()
        imports = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not any("rdkit" in ast.unparse(node) for node in imports)
    molecules._chem.cache_clear()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(DataError, match="pip install rdkit"):
        smiles_to_graph("C")
