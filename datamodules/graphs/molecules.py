"""Molecules as graphs: SMILES strings to the categorical features of the Open Graph Benchmark.

The nine atom and three bond features, their order and their categories are those of
`ogb.utils.smiles2graph` (Hu et al. 2020, "Open Graph Benchmark", arXiv:2005.00687, code
https://github.com/snap-stanford/ogb), which the molecular LRGB tasks are defined with.
RDKit is imported on first use only.
"""

import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from datamodules.cores import cores
from datamodules.errors import DataError
from datamodules.processes import end_with_parent

FEATURE_VERSION = 1
"""Raise it with every change of the features: cached data of another version are not used."""

ATOM_FEATURE_SIZES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
"""Categories of: atomic number, chirality, degree, formal charge, hydrogens, radical electrons,
hybridisation, aromatic, in a ring."""

BOND_FEATURE_SIZES = (5, 6, 2)
"""Categories of: bond type, stereo, conjugated."""

# Where OGB keeps a last "misc" category, a name that is not listed gets the index after the last.
_CHIRALITY = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW", "CHI_OTHER")
_HYBRIDISATION = ("SP", "SP2", "SP3", "SP3D", "SP3D2")
_BOND_TYPE = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
_BOND_STEREO = (
    "STEREONONE",
    "STEREOZ",
    "STEREOE",
    "STEREOCIS",
    "STEREOTRANS",
    "STEREOANY",
)
_MAX_CHARGE = 5
_CHUNK = 256  # molecules sent to a worker at once


@dataclass(frozen=True)
class MoleculeArrays:
    """Features of many molecules, laid end to end.

    Attributes:
        x: uint8 [atoms, 9], `ATOM_FEATURE_SIZES`.
        edge_index: int32 [2, edges], atom numbers local to their molecule.
        edge_attr: uint8 [edges, 3], `BOND_FEATURE_SIZES`.
        num_atoms: int64 [molecules].
        num_edges: int64 [molecules], each bond counted twice.
    """

    x: np.ndarray
    edge_index: np.ndarray
    edge_attr: np.ndarray
    num_atoms: np.ndarray
    num_edges: np.ndarray


@cache
def _chem() -> Any:
    try:
        from rdkit import Chem
    except ImportError as error:
        raise DataError(
            "Turning SMILES into graphs needs RDKit, which is not installed: "
            "run `pip install rdkit`."
        ) from error
    return Chem


@cache
def _categories() -> tuple[dict[Any, int], dict[Any, int], dict[Any, int], dict[Any, int]]:
    chem = _chem()

    def index(enum: Any, names: tuple[str, ...]) -> dict[Any, int]:
        return {enum.names[name]: i for i, name in enumerate(names)}

    return (
        index(chem.ChiralType, _CHIRALITY),
        index(chem.HybridizationType, _HYBRIDISATION),
        index(chem.BondType, _BOND_TYPE),
        index(chem.BondStereo, _BOND_STEREO),
    )


def _parse(smiles: str) -> Any:
    from rdkit import rdBase

    with rdBase.BlockLogs():
        molecule = _chem().MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        shown = smiles if len(smiles) <= 80 else smiles[:77] + "..."
        raise DataError(
            f"Expected a SMILES string of at least one atom, but RDKit cannot read {shown!r}: "
            "correct or drop this molecule."
        )
    return molecule


def smiles_to_arrays(smiles: Sequence[str], processes: int | None = None) -> MoleculeArrays:
    """Featurise molecules into compact arrays laid end to end, in the order given.

    Args:
        smiles: SMILES strings.
        processes: worker processes; None takes the available cores, at most eight, and works in
            this process when there are few molecules.

    Raises:
        DataError: an element is not a string, RDKit is missing or cannot read one, or a bond has a
            stereo category that OGB does not know.

    Source: features of `ogb.utils.smiles2graph`, arXiv:2005.00687.
    """
    for row, text in enumerate(smiles):
        if not isinstance(text, str):
            raise DataError(
                f"Expected a SMILES string in row {row}, got {text!r}: correct or drop this "
                "molecule."
            )
    _chem()  # imported before any fork, so that no worker waits for an import lock
    chunks = [smiles[i : i + _CHUNK] for i in range(0, len(smiles), _CHUNK)] or [smiles]
    if processes is None:
        processes = min(cores(), 8)
    processes = min(processes, len(chunks))
    if processes <= 1:
        return _concatenate([_featurise(chunk) for chunk in chunks])
    # Forked workers start at once and never call torch, whose threads a fork would not carry over.
    # Elsewhere than on Linux a fork is unsafe, so workers are spawned there.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        try:
            with ProcessPoolExecutor(processes, context, end_with_parent) as pool:
                return _concatenate(list(pool.map(_featurise, chunks)))
        except BrokenProcessPool as error:
            raise DataError(
                f"One of {processes} worker processes that featurise molecules was killed, most "
                "often for lack of memory: free memory and try again."
            ) from error


def smiles_to_graphs(smiles: Sequence[str], processes: int | None = None) -> list[Data]:
    """Featurise molecules, in parallel when there are many.

    Args:
        smiles: SMILES strings.
        processes: as in `smiles_to_arrays`.

    Returns:
        One graph a molecule, as `smiles_to_graph` gives it.

    Raises:
        DataError: as in `smiles_to_arrays`.
    """
    arrays = smiles_to_arrays(smiles, processes)
    x = torch.from_numpy(arrays.x).long().split(arrays.num_atoms.tolist())
    sizes = arrays.num_edges.tolist()
    edge_attr = torch.from_numpy(arrays.edge_attr).long().split(sizes)
    edge_index = torch.from_numpy(arrays.edge_index).long().split(sizes, dim=1)
    return [
        Data(x=x[i], edge_index=edge_index[i].contiguous(), edge_attr=edge_attr[i], smiles=text)
        for i, text in enumerate(smiles)
    ]


def smiles_to_graph(smiles: str) -> Data:
    """Featurise one molecule, equal to OGB's `smiles2graph`.

    Args:
        smiles: a SMILES string; hydrogens stay implicit.

    Returns:
        A graph with x int64 [N, 9], edge_index int64 [2, E], edge_attr int64 [E, 3] and the
        string as `smiles`; bond by bond in RDKit's order, each as (i, j) and then (j, i).

    Raises:
        DataError: as in `smiles_to_arrays`.

    Source: `ogb.utils.smiles2graph`, arXiv:2005.00687.
    """
    return smiles_to_graphs([smiles], processes=1)[0]


def _featurise(smiles: Sequence[str]) -> MoleculeArrays:
    chirality, hybridisation, bond_type, bond_stereo = _categories()
    atoms, bonds = bytearray(), bytearray()  # every category fits a byte
    ends: list[int] = []
    num_atoms, num_edges = [], []
    for text in smiles:
        molecule = _parse(text)
        # Looked up by index, which is twice as fast as iterating over RDKit's sequences.
        for atom in map(molecule.GetAtomWithIdx, range(molecule.GetNumAtoms())):
            number = atom.GetAtomicNum()
            charge = atom.GetFormalCharge()
            atoms += bytes(
                (
                    number - 1 if 1 <= number <= 118 else 118,
                    chirality.get(atom.GetChiralTag(), len(_CHIRALITY)),
                    min(atom.GetTotalDegree(), 11),
                    charge + _MAX_CHARGE if abs(charge) <= _MAX_CHARGE else 2 * _MAX_CHARGE + 1,
                    min(atom.GetTotalNumHs(), 9),
                    min(atom.GetNumRadicalElectrons(), 5),
                    hybridisation.get(atom.GetHybridization(), len(_HYBRIDISATION)),
                    atom.GetIsAromatic(),
                    atom.IsInRing(),
                )
            )
        for bond in map(molecule.GetBondWithIdx, range(molecule.GetNumBonds())):
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            stereo = bond_stereo.get(bond.GetStereo())
            if stereo is None:
                raise DataError(
                    f"Expected bond stereo {', '.join(_BOND_STEREO)}, but atoms {i} and {j} of "
                    f"{text!r} are joined by {bond.GetStereo()}, which OGB's features do not "
                    "know: drop this molecule."
                )
            feature = (
                bond_type.get(bond.GetBondType(), len(_BOND_TYPE)),
                stereo,
                bond.GetIsConjugated(),
            )
            bonds += bytes(feature + feature)
            ends += (i, j, j, i)
        num_atoms.append(molecule.GetNumAtoms())
        num_edges.append(2 * molecule.GetNumBonds())
    return MoleculeArrays(
        x=np.frombuffer(atoms, np.uint8).reshape(-1, len(ATOM_FEATURE_SIZES)),
        edge_index=np.array(ends, np.int32).reshape(-1, 2).T,
        edge_attr=np.frombuffer(bonds, np.uint8).reshape(-1, len(BOND_FEATURE_SIZES)),
        num_atoms=np.array(num_atoms, np.int64),
        num_edges=np.array(num_edges, np.int64),
    )


def _concatenate(parts: list[MoleculeArrays]) -> MoleculeArrays:
    return MoleculeArrays(
        x=np.concatenate([part.x for part in parts]),
        edge_index=np.concatenate([part.edge_index for part in parts], axis=1),
        edge_attr=np.concatenate([part.edge_attr for part in parts]),
        num_atoms=np.concatenate([part.num_atoms for part in parts]),
        num_edges=np.concatenate([part.num_edges for part in parts]),
    )
