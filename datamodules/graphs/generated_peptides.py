"""Random peptides whose labels depend on the order of the residues: an offline stand-in for
LRGB's Peptides-func and Peptides-struct (Dwivedi et al. 2022, arXiv:2206.08164).

Sizes and protonation resemble the official set. Amino acids are as frequent as in Swiss-Prot, where
cysteine is rare: 3 % of the peptides have a disulfide bridge, fewer than of the official ones.
Labels and targets are our own and no number on them is comparable with a published one. Every one
of them derives from a score that compares a peptide with all permutations of its own residues (mean
0, standard deviation about 1 over the permutations). Hence neither the size nor the composition, so
no bag of atoms, tells much: a model has to relate residues that are far apart.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GENERATOR_VERSION = 1
"""Raised whenever the same (num, seed) would give other peptides, labels or targets."""

MIN_LENGTH, MAX_LENGTH = 2, 50
"""Residues per peptide, as in the official set."""

MIN_LOOP = 3
"""Least distance between bridged cysteines, in residues."""

BONDS_PER_RESIDUE = 3
"""Bonds between the α-carbons of neighbouring residues: Cα-C, C-N, N-Cα."""

BONDS_PER_BRIDGE = 5
"""Bonds between the α-carbons of bridged cysteines: Cα-Cβ, Cβ-S, S-S, S-Cβ, Cβ-Cα."""


class Residue(NamedTuple):
    """An amino acid: side chain, share in %, hydrophobicity, charge, ring, heavy atoms."""

    side_chain: str
    frequency: float
    hydrophobicity: float
    charge: int
    is_aromatic: bool
    size: int


# Frequencies: the composition of UniProtKB/Swiss-Prot, from its release statistics at
# https://web.expasy.org/docs/relnotes/relstat.html. Hydrophobicity: the consensus scale of
# Eisenberg et al. 1984 (J. Mol. Biol. 179:125). Charges: at pH 7. Sizes: within a chain.
RESIDUES = {
    "A": Residue("C", 8.25, 0.62, 0, False, 5),
    "C": Residue("CS", 1.38, 0.29, 0, False, 6),
    "D": Residue("CC(=O)[O-]", 5.46, -0.90, -1, False, 8),
    "E": Residue("CCC(=O)[O-]", 6.72, -0.74, -1, False, 9),
    "F": Residue("Cc1ccccc1", 3.86, 1.19, 0, True, 11),
    "G": Residue("", 7.07, 0.48, 0, False, 4),
    "H": Residue("Cc1c[nH]cn1", 2.27, -0.40, 0, True, 10),
    "I": Residue("[C@@H](C)CC", 5.91, 1.38, 0, False, 8),
    "K": Residue("CCCC[NH3+]", 5.80, -1.50, 1, False, 9),
    "L": Residue("CC(C)C", 9.65, 1.06, 0, False, 8),
    "M": Residue("CCSC", 2.41, 0.64, 0, False, 8),
    "N": Residue("CC(=O)N", 4.06, -0.78, 0, False, 8),
    "P": Residue("CCC1", 4.74, 0.12, 0, False, 7),
    "Q": Residue("CCC(=O)N", 3.93, -0.85, 0, False, 9),
    "R": Residue("CCCNC(N)=[NH2+]", 5.53, -2.53, 1, False, 11),
    "S": Residue("CO", 6.64, -0.18, 0, False, 6),
    "T": Residue("[C@H](O)C", 5.35, -0.05, 0, False, 7),
    "V": Residue("C(C)C", 6.86, 1.08, 0, False, 7),
    "W": Residue("Cc1c[nH]c2ccccc12", 1.10, 0.81, 0, True, 14),
    "Y": Residue("Cc1ccc(O)cc1", 2.92, 0.26, 0, True, 12),
}

LABEL_NAMES = (
    "basic_n_terminus",
    "hydrophobic_n_terminus",
    "hydrophobic_blocks",
    "bulky_ends",
    "aromatics_before_charges",
    "signal_peptide",
    "salt_bridge_ladder",
    "segregated_charges",
    "amphipathic_helix",
    "amphipathic_strand",
)

TARGET_NAMES = (
    "charge_dipole",
    "hydrophobic_dipole",
    "aromatic_centroid",
    "hydrophobic_eccentricity",
    "bulk_eccentricity",
    "hydrophobic_blocks",
    "hydrophobic_mirror",
    "hydrophobic_segregation",
    "charge_segregation",
    "helical_moment",
    "strand_moment",
)

# Mean and standard deviation of the raw targets of 20,000 peptides, as `target_constants()` gives.
TARGET_MEAN = np.array(
    [-0.008, 0.005, -0.01, -0.015, 0.017, 0.01, -0.004, 0.009, -0.002, -0.002, -0.014]
)
TARGET_STD = np.array([0.965, 1.004, 0.886, 0.995, 0.997, 0.925, 0.929, 0.932, 0.842, 0.921, 0.914])

Bridge = tuple[int, int] | None
"""The positions of two bridged cysteines, the first one first, or None."""


@dataclass
class GeneratedPeptides:
    """Peptides as SMILES and one-letter sequences (N- to C-terminus), `labels` [n, 10] in {0, 1}
    in the order of `LABEL_NAMES`, and `targets` [n, 11] standardised, dimensionless, in the order
    of `TARGET_NAMES`."""

    smiles: list[str]
    sequences: list[str]
    labels: Tensor
    targets: Tensor


def generate_peptides(num: int, seed: int) -> GeneratedPeptides:
    """`num` distinct random peptides with their labels and targets, the same for the same seed.

    The first peptides of a longer list are those of a shorter one. 15,535 take about 7 s on one
    core.

    Raises:
        ValueError: if `num` is not positive.
    """
    if num < 1:
        raise ValueError(f"Expected a positive number of peptides, got {num}.")
    rng = np.random.default_rng(seed)
    bridges: dict[str, Bridge] = {}
    while len(bridges) < num:
        sequence = _random_sequence(rng)
        bridge = _random_bridge(sequence, rng)
        bridges.setdefault(sequence, bridge)
    scores = [order_scores(sequence, bridge) for sequence, bridge in bridges.items()]
    raw = np.array([[score[name] for name in TARGET_NAMES] for score in scores])
    return GeneratedPeptides(
        smiles=[to_smiles(sequence, bridge) for sequence, bridge in bridges.items()],
        sequences=list(bridges),
        labels=torch.tensor([order_labels(score) for score in scores], dtype=torch.float32),
        targets=torch.tensor((raw - TARGET_MEAN) / TARGET_STD, dtype=torch.float32),
    )


def target_constants(num: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The values of `TARGET_MEAN` and `TARGET_STD`, after a change of the generator:

    `python -c "from datamodules.graphs.generated_peptides import *; print(target_constants())"`
    """
    peptides = generate_peptides(num, seed)
    raw = peptides.targets.double().numpy() * TARGET_STD + TARGET_MEAN
    return raw.mean(0).round(3), raw.std(0).round(3)


def to_smiles(sequence: str, bridge: Bridge = None) -> str:
    """The SMILES of a peptide of L-amino acids, a free amine at its start, an acid at its end."""
    parts = []
    for position, letter in enumerate(sequence):
        side_chain = RESIDUES[letter].side_chain
        if bridge and position in bridge:
            side_chain += "%10"
        if letter == "G":
            parts.append("NCC(=O)")
        elif letter == "P":
            parts.append(f"N1[C@@H]({side_chain})C(=O)")
        else:
            parts.append(f"N[C@@H]({side_chain})C(=O)")
    return "".join(parts) + "O"


def order_scores(sequence: str, bridge: Bridge = None) -> dict[str, float]:
    """How the order of the residues differs from a random permutation of them, by name.

    Dipoles and centroids are positive where the property lies towards the C-terminus,
    eccentricities where it lies at the ends, far from the rest in bonds.
    """
    residues = [RESIDUES[letter] for letter in sequence]
    hydrophobicity = np.array([residue.hydrophobicity for residue in residues])
    charge = np.array([residue.charge for residue in residues], dtype=float)
    is_aromatic = np.array([residue.is_aromatic for residue in residues], dtype=float)
    size = np.array([residue.size for residue in residues], dtype=float)

    kernels = _chain_kernels(len(sequence))
    position, bonds, spread = kernels["position"], kernels["bonds"], kernels["spread"]
    if bridge:
        bonds = alpha_carbon_distances(len(sequence), bridge)
        spread = _normalised(-bonds)
    return {
        "end_charge": linear_score(kernels["ends"], charge),
        "charge_dipole": linear_score(position, charge),
        "hydrophobic_dipole": linear_score(position, hydrophobicity),
        "aromatic_centroid": linear_score(position, is_aromatic),
        "charge_after_aromatic": linear_score(position, np.abs(charge) - is_aromatic),
        "hydrophobic_eccentricity": linear_score(bonds.sum(1), hydrophobicity),
        # The part of the residue-weighted Wiener index that is linear in the weights.
        "bulk_eccentricity": linear_score(bonds.sum(1), size),
        "hydrophobic_blocks": quadratic_score(kernels["neighbours"], hydrophobicity),
        "hydrophobic_mirror": quadratic_score(kernels["mirror"], hydrophobicity),
        "hydrophobic_segregation": quadratic_score(spread, hydrophobicity),
        "charge_segregation": quadratic_score(spread, charge),
        "salt_bridges": quadratic_score(kernels["turn"], charge),
        "helical_moment": quadratic_score(kernels["helix"], hydrophobicity),
        "strand_moment": quadratic_score(kernels["strand"], hydrophobicity),
    }


def order_labels(score: dict[str, float]) -> list[bool]:
    """The labels of a peptide's `order_scores`, as `LABEL_NAMES` orders them.

    The thresholds set the frequencies, which run from .17 to .47; no short peptide scores exactly
    one of them, so rounding decides nothing.
    """
    return [
        score["end_charge"] < -0.01,
        score["hydrophobic_dipole"] < -0.51,
        score["hydrophobic_blocks"] > 0.81,
        score["bulk_eccentricity"] > 0.71,
        score["charge_after_aromatic"] > 0.11,
        score["end_charge"] < -0.01 and score["hydrophobic_eccentricity"] < -0.31,
        score["salt_bridges"] > 0.61,
        score["charge_segregation"] > 0.51,
        score["helical_moment"] > 0.51,
        score["strand_moment"] > 0.71,
    ]


def linear_score(weight: np.ndarray, value: np.ndarray) -> float:
    """Σᵢ wᵢ hᵢ as a z-score: less its mean, over its standard deviation, of all permutations of h.

    Zero where all weights or all values [n] are equal.
    """
    weight, value = weight - weight.mean(), value - value.mean()
    variance = (weight @ weight) * (value @ value) / max(len(value) - 1, 1)
    return float(weight @ value / np.sqrt(variance)) if variance > 1e-12 else 0.0


def quadratic_score(kernel: np.ndarray, value: np.ndarray) -> float:
    """hᵀAh of a normalised kernel A [n, n] in units of the variance of h [n].

    Its mean over all permutations of h is exactly 0; its standard deviation is 1 for Gaussian h.
    """
    value = value - value.mean()
    variance = value @ value / max(len(value) - 1, 1)
    return float(value @ kernel @ value / variance) if variance > 1e-12 else 0.0


def alpha_carbon_distances(length: int, bridge: Bridge = None) -> np.ndarray:
    """Bonds on the shortest path between each two α-carbons [n, n] of a peptide."""
    position = np.arange(length)
    bonds = BONDS_PER_RESIDUE * np.abs(position[:, None] - position)
    if bridge:
        first, last = bridge
        across = bonds[:, first, None] + BONDS_PER_BRIDGE + bonds[last]
        bonds = np.minimum(bonds, np.minimum(across, across.T))
    return bonds.astype(float)


@cache
def _chain_kernels(length: int) -> dict[str, np.ndarray]:
    position = np.arange(length, dtype=float)
    lag = np.abs(position[:, None] - position)
    bonds = alpha_carbon_distances(length)
    return {
        "position": position,
        # Four residues, so that the two ends of the chain decide.
        "ends": np.exp(-position[::-1] / 4) - np.exp(-position / 4),
        "bonds": bonds,
        "spread": _normalised(-bonds),
        "neighbours": _normalised(lag == 1),
        "mirror": _normalised(np.eye(length)[::-1]),
        # Charges three or four residues apart face each other on a helix; opposite ones attract.
        "turn": _normalised(-1.0 * ((lag == 3) | (lag == 4))),
        "helix": _normalised(np.cos(np.deg2rad(100) * lag)),
        "strand": _normalised(np.cos(np.deg2rad(170) * lag)),
    }


def _normalised(kernel: np.ndarray) -> np.ndarray:
    # Without row sums and trace, hᵀAh has mean 0 over the permutations of h.
    length = len(kernel)
    centring = np.eye(length) - 1 / length
    centred = centring @ kernel @ centring
    centred -= np.trace(centred) / max(length - 1, 1) * centring
    norm = np.sqrt(2) * np.linalg.norm(centred)
    return centred / norm if norm > 1e-9 else np.zeros_like(centred)


def _random_sequence(rng: np.random.Generator) -> str:
    # Mean length 19.5, which gives about the published mean of 151 atoms.
    length = MIN_LENGTH + int((MAX_LENGTH + 1 - MIN_LENGTH) * rng.beta(1.3, 2.3))
    frequency = np.array([residue.frequency for residue in RESIDUES.values()])
    draws = rng.choice(len(RESIDUES), size=length, p=frequency / frequency.sum())
    return "".join(np.array(list(RESIDUES))[draws])


def _random_bridge(sequence: str, rng: np.random.Generator) -> Bridge:
    cysteines = [position for position, letter in enumerate(sequence) if letter == "C"]
    pairs = [(p, q) for p in cysteines for q in cysteines if q - p >= MIN_LOOP]
    return pairs[rng.integers(len(pairs))] if pairs else None
