"""Generated peptides: sound molecules, and labels that the order of the residues alone decides."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from rdkit import Chem
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, r2_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from datamodules.graphs.generated_peptides import (
    LABEL_NAMES,
    RESIDUES,
    TARGET_MEAN,
    TARGET_NAMES,
    TARGET_STD,
    GeneratedPeptides,
    alpha_carbon_distances,
    generate_peptides,
    order_labels,
    order_scores,
    to_smiles,
)

NEUTRAL_FORMS = {"[NH3+]": "N", "[NH2+]": "N", "[O-]": "O"}


@pytest.fixture(scope="module")
def peptides() -> GeneratedPeptides:
    return generate_peptides(2000, seed=3)


@pytest.fixture(scope="module")
def molecules(peptides: GeneratedPeptides) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(smiles) for smiles in peptides.smiles]


def test_equal_seeds_give_equal_peptides(peptides: GeneratedPeptides) -> None:
    again = generate_peptides(100, seed=3)
    assert again.smiles == peptides.smiles[:100]
    assert torch.equal(again.labels, peptides.labels[:100])
    assert torch.equal(again.targets, peptides.targets[:100])
    assert generate_peptides(100, seed=4).smiles != again.smiles


def test_shapes_and_distinctness(peptides: GeneratedPeptides) -> None:
    assert peptides.labels.shape == (2000, len(LABEL_NAMES)) == (2000, 10)
    assert peptides.targets.shape == (2000, len(TARGET_NAMES)) == (2000, 11)
    assert peptides.labels.dtype == peptides.targets.dtype == torch.float32
    assert len(set(peptides.sequences)) == len(set(peptides.smiles)) == 2000


def test_no_peptides_are_refused() -> None:
    with pytest.raises(ValueError, match="positive number"):
        generate_peptides(0, seed=0)


def test_sizes_resemble_the_official_set(
    peptides: GeneratedPeptides, molecules: list[Chem.Mol]
) -> None:
    # Published: mean 150.9 atoms (arXiv:2206.08164). Cysteine, hence disulfides, are rarer here.
    sizes = np.array([molecule.GetNumAtoms() for molecule in molecules])
    assert 140 < sizes.mean() < 160
    assert sizes.min() < 25
    assert 350 < sizes.max() < 480
    bridged = np.mean(["%10" in smiles for smiles in peptides.smiles])
    assert 0.015 < bridged < 0.06


def test_label_frequencies(peptides: GeneratedPeptides) -> None:
    frequency = peptides.labels.mean(0)
    assert ((frequency > 0.08) & (frequency < 0.5)).all()


def test_targets_are_standardised(peptides: GeneratedPeptides) -> None:
    assert peptides.targets.mean(0).abs().max() < 0.1
    assert (peptides.targets.std(0) - 1).abs().max() < 0.1


@pytest.mark.parametrize("sequence", ["ACDEFGHIKLMNPQRSTVWY", "GG", "PPWP"])
def test_smiles_are_those_of_rdkit(sequence: str) -> None:
    smiles = to_smiles(sequence)
    for charged, neutral in NEUTRAL_FORMS.items():
        smiles = smiles.replace(charged, neutral)
    assert Chem.CanonSmiles(smiles) == Chem.MolToSmiles(Chem.MolFromSequence(sequence))


@pytest.mark.parametrize("bridge", [None, (1, 6), (0, 9)])
def test_distances_are_those_of_the_molecule(bridge: tuple[int, int] | None) -> None:
    sequence = "CCPAGKCNDC"
    bonds = bonds_of(Chem.MolFromSmiles(to_smiles(sequence, bridge)))
    np.testing.assert_array_equal(alpha_carbon_distances(len(sequence), bridge), bonds)


@pytest.mark.parametrize("sequence", ["KLDFAW", "RGELCI"])
def test_scores_compare_with_all_permutations(sequence: str) -> None:
    scores = [order_scores("".join(order)) for order in permutations(sequence)]
    for name in scores[0]:
        values = np.array([score[name] for score in scores])
        assert abs(values.mean()) < 1e-9, name
        if name.endswith(("_dipole", "_eccentricity", "end_charge")):
            assert values.std() == pytest.approx(1), name


def test_charge_dipole_by_hand() -> None:
    # Positions -2..2, charges 1, 0, 0, 0, -1: Σwq = -4, variance 10 · 2 / 4 = 5.
    assert order_scores("KAAAD")["charge_dipole"] == pytest.approx(-4 / math.sqrt(5))
    assert order_scores("DAAAK")["charge_dipole"] == pytest.approx(4 / math.sqrt(5))
    assert order_scores("GAAAG")["charge_dipole"] == 0  # no charge


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [
        ("basic_n_terminus", "KRGGGGDE", "DEGGGGKR"),
        ("hydrophobic_n_terminus", "ILVGSNKR", "KRNSGILV"),
        ("hydrophobic_blocks", "IIIIKKKK", "IKIKIKIK"),
        ("bulky_ends", "WWGAGAGWW", "GAWWWWAGG"),
        ("aromatics_before_charges", "WFAAAAKE", "KEAAAAWF"),
        ("signal_peptide", "KKGLLLLLSTNDS", "LLSDNLKKTSGLL"),
        ("salt_bridge_ladder", "KKAEEAAKKAEE", "KKAAKKAEEAEE"),
        ("segregated_charges", "KKKAGAGEEE", "KEKAGAGEKE"),
        ("amphipathic_helix", "LKKLLKLLKKLLKL", "LLLLLLLLKKKKKK"),
        ("amphipathic_strand", "VKVKVKVK", "VVKKVVKK"),
    ],
)
def test_labels_of_textbook_peptides(name: str, positive: str, negative: str) -> None:
    assert Counter(positive) == Counter(negative)
    column = LABEL_NAMES.index(name)
    assert order_labels(order_scores(positive))[column]
    assert not order_labels(order_scores(negative))[column]


def test_labels_and_targets_follow_from_sequence_and_graph(
    peptides: GeneratedPeptides, molecules: list[Chem.Mol]
) -> None:
    bridged = [index for index, smiles in enumerate(peptides.smiles) if "%10" in smiles]
    for index in [*range(60), *bridged[:60]]:
        score = reference_scores(peptides.sequences[index], bonds_of(molecules[index]))
        assert peptides.labels[index].tolist() == reference_labels(score)
        raw = peptides.targets[index].double().numpy() * TARGET_STD + TARGET_MEAN
        np.testing.assert_allclose(raw, [score[name] for name in TARGET_NAMES], atol=1e-5)


def test_a_bag_of_atoms_predicts_nothing(
    peptides: GeneratedPeptides, molecules: list[Chem.Mol]
) -> None:
    bags = [Counter(atom_features(atom) for atom in mol.GetAtoms()) for mol in molecules]
    kinds = sorted({kind for bag in bags for kind in bag})
    counts = StandardScaler().fit_transform([[bag[kind] for kind in kinds] for bag in bags])
    train, test = slice(0, 1200), slice(1200, None)

    excess, scores = [], []
    for label in peptides.labels.numpy().T:
        model = HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=8)
        with threadpool_limits(1):  # the fits are too small to share between threads
            probability = model.fit(counts[train], label[train]).predict_proba(counts[test])[:, 1]
        precision = average_precision_score(label[test], probability)
        excess.append(precision - label[test].mean())
    for target in peptides.targets.numpy().T:
        prediction = Ridge(10.0).fit(counts[train], target[train]).predict(counts[test])
        scores.append(r2_score(target[test], prediction))
    assert np.mean(excess) < 0.05, dict(zip(LABEL_NAMES, excess, strict=True))
    assert max(excess) < 0.1, dict(zip(LABEL_NAMES, excess, strict=True))
    assert max(scores) < 0.05, dict(zip(TARGET_NAMES, scores, strict=True))


def atom_features(atom: Chem.Atom) -> tuple[int, ...]:
    """The fields of OGB's atom features that vary in peptides."""
    return (
        atom.GetAtomicNum(),
        atom.GetDegree(),
        atom.GetTotalNumHs(),
        atom.GetFormalCharge(),
        int(atom.GetHybridization()),
        int(atom.GetChiralTag()),
        int(atom.GetIsAromatic()),
        int(atom.IsInRing()),
    )


def bonds_of(molecule: Chem.Mol) -> np.ndarray:
    """Bonds between the α-carbons, in the order of the sequence, by RDKit."""
    backbone = Chem.MolFromSmarts("[NX3][CX4]C(=O)[NX3,OX2]")
    carbons = sorted(match[1] for match in molecule.GetSubstructMatches(backbone))
    return Chem.GetDistanceMatrix(molecule)[np.ix_(carbons, carbons)]


def reference_scores(sequence: str, bonds: np.ndarray) -> dict[str, float]:
    """The scores from their definitions, by loops over pairs of residues."""
    length = len(sequence)
    hydrophobicity = [RESIDUES[letter].hydrophobicity for letter in sequence]
    charge = [(letter in "KR") - (letter in "DE") for letter in sequence]
    contrast = [(letter in "KRDE") - (letter in "FHWY") for letter in sequence]
    size = [RESIDUES[letter].size for letter in sequence]
    position = list(range(length))
    ends = [math.exp((i - length + 1) / 4) - math.exp(-i / 4) for i in position]
    distance_sum = [sum(row) for row in bonds]

    def linear(weight: list[float], value: list[float]) -> float:
        if len(set(value)) == 1 or np.ptp(weight) < 1e-9:
            return 0.0
        covariance = np.cov(weight, value)
        scale = math.sqrt(covariance[0, 0] * covariance[1, 1] / (length - 1))
        return covariance[0, 1] / scale

    def quadratic(kernel: Callable[[int, int], float], value: list[float]) -> float:
        matrix = [[float(kernel(i, j)) for j in position] for i in position]
        rows = [sum(row) / length for row in matrix]
        diagonal = sum(matrix[i][i] for i in position)
        trace = (diagonal - sum(rows)) / (length - 1)
        total = norm = 0.0
        mean = sum(value) / length
        for i in position:
            for j in position:
                entry = matrix[i][j] - rows[i] - rows[j] + sum(rows) / length
                entry -= trace * ((i == j) - 1 / length)
                total += entry * (value[i] - mean) * (value[j] - mean)
                norm += entry**2
        if norm < 1e-15 or len(set(value)) == 1:
            return 0.0
        return total / (math.sqrt(2 * norm) * np.var(value, ddof=1))

    def wave(degrees: float) -> Callable[[int, int], float]:
        return lambda i, j: math.cos(math.radians(degrees) * (i - j))

    return {
        "end_charge": linear(ends, charge),
        "charge_dipole": linear(position, charge),
        "hydrophobic_dipole": linear(position, hydrophobicity),
        "aromatic_centroid": linear(position, [letter in "FHWY" for letter in sequence]),
        "charge_after_aromatic": linear(position, contrast),
        "hydrophobic_eccentricity": linear(distance_sum, hydrophobicity),
        "bulk_eccentricity": linear(distance_sum, size),
        "hydrophobic_blocks": quadratic(lambda i, j: abs(i - j) == 1, hydrophobicity),
        "hydrophobic_mirror": quadratic(lambda i, j: i + j == length - 1, hydrophobicity),
        "hydrophobic_segregation": quadratic(lambda i, j: -bonds[i, j], hydrophobicity),
        "charge_segregation": quadratic(lambda i, j: -bonds[i, j], charge),
        "salt_bridges": quadratic(lambda i, j: -(abs(i - j) in (3, 4)), charge),
        "helical_moment": quadratic(wave(100), hydrophobicity),
        "strand_moment": quadratic(wave(170), hydrophobicity),
    }


def reference_labels(score: dict[str, float]) -> list[float]:
    rules = {
        "basic_n_terminus": score["end_charge"] < -0.01,
        "hydrophobic_n_terminus": score["hydrophobic_dipole"] < -0.51,
        "hydrophobic_blocks": score["hydrophobic_blocks"] > 0.81,
        "bulky_ends": score["bulk_eccentricity"] > 0.71,
        "aromatics_before_charges": score["charge_after_aromatic"] > 0.11,
        "signal_peptide": score["end_charge"] < -0.01 and score["hydrophobic_eccentricity"] < -0.31,
        "salt_bridge_ladder": score["salt_bridges"] > 0.61,
        "segregated_charges": score["charge_segregation"] > 0.51,
        "amphipathic_helix": score["helical_moment"] > 0.51,
        "amphipathic_strand": score["strand_moment"] > 0.71,
    }
    return [float(rules[name]) for name in LABEL_NAMES]
