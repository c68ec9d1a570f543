"""Random images as graphs of regions, whose objects are told by both of their ends: an offline
stand-in for LRGB's PascalVOC-SP and COCO-SP (Dwivedi et al. 2022, arXiv:2206.08164).

Number of regions, adjacency and the kinds of features resemble the official set; images and
classes are our own and no score on them is comparable with a published one. Objects are ellipses
on a background of class 0. The body of every object has the same texture; one end has one of R
textures and the other end one of C others, and the class is the pair (r, c). A region by itself
tells that it is part of an object, at best one half of the pair, never the class; scattered
background regions carry the same textures. Colours and shapes mean nothing. A model has to bring
together what the two ends say, over about ten regions, without mixing up objects.
"""

import math

import numpy as np
import torch
from scipy.spatial import Delaunay
from torch_geometric.data import Data

GENERATOR_VERSION = 1
"""Raised whenever the same arguments would give other graphs."""

CLUTTER = 0.05
"""Share of the regions away from all objects that have a random texture."""

NOISE = 0.08
"""Standard deviation of a region's texture, whose 9 numbers lie in [0, 1]."""

OBJECTS = 8
"""Objects tried per image; those that would touch another one are dropped."""


def class_names(num_classes: int) -> list[str]:
    """What the classes are called: "background", then one name for each pair of ends."""
    pairs = (end_kinds(label, num_classes) for label in range(1, num_classes))
    return ["background", *(f"object_{first}_{second}" for first, second in pairs)]


def end_kinds(label: int, num_classes: int) -> tuple[int, int]:
    """Textures (r, c) of the two ends of an object of class `label` ≥ 1; 4 × 5 for 21 classes."""
    return divmod(label - 1, _ends(num_classes)[1])


def textures(num_classes: int) -> np.ndarray:
    """What each kind of texture looks like, [kinds, 9] in [0, 1]: background, body, R, then C."""
    return np.random.default_rng(num_classes).random((2 + sum(_ends(num_classes)), 9))


def generate_superpixels(num: int, seed: int, num_classes: int) -> list[Data]:
    """`num` images as graphs, the same for the same seed; about 7 ms each on one core.

    The first graphs of a longer list are those of a shorter one.

    Returns:
        Graphs with x float [N, 14], edge_attr float [E, 2], edge_index int64 [2, E] in both
        directions and y int64 [N] in 0…num_classes − 1; N is 480 and E about 2,700 on average.
        x holds mean, standard deviation, maximum and minimum of red, green and blue (range about
        [0, 1]), then the centre's coordinates in heights of the image; edge_attr the similarity
        of the mean colours in [0, 1] and the length of the common boundary in region diameters.

    Raises:
        ValueError: if `num` is not positive or there are fewer than 2 classes.
    """
    if num < 1 or num_classes < 2:
        raise ValueError(f"Expected num ≥ 1 and num_classes ≥ 2, got {num} and {num_classes}.")
    looks = textures(num_classes)
    return [_image(np.random.default_rng([seed, i]), num_classes, looks) for i in range(num)]


def _ends(num_classes: int) -> tuple[int, int]:
    """R and C, as equal as can be."""
    first = math.isqrt(num_classes - 1)
    return first, math.ceil((num_classes - 1) / first)


def _image(rng: np.random.Generator, num_classes: int, looks: np.ndarray) -> Data:
    columns, rows = rng.integers(22, 27), rng.integers(18, 23)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    centres = (grid + rng.uniform(0.15, 0.85, grid.shape)) / rows
    edges, length = region_adjacency(centres * rows)
    source, target = edges

    colour = rng.uniform(0.4, 0.6, 3) + (centres - 0.5) @ rng.normal(0, 0.03, (2, 3))
    label, kind = np.zeros(len(centres), dtype=np.int64), np.zeros(len(centres), dtype=np.int64)
    is_free = np.ones(len(centres), dtype=bool)
    for _ in range(OBJECTS):
        along, across = _ellipse(rng, centres, columns / rows)
        inside = along**2 + across**2 < 1
        ends = inside & (along > 0.65), inside & (along < -0.65)
        if not is_free[inside].all() or not all(end.any() for end in ends):
            continue
        is_free[inside] = False
        is_free[target[inside[source]]] = False  # background all around every object
        of_object = int(rng.integers(1, num_classes))
        first, second = end_kinds(of_object, num_classes)
        label[inside], kind[inside] = of_object, 1
        kind[ends[0]], kind[ends[1]] = 2 + first, 2 + _ends(num_classes)[0] + second
        colour[inside] = rng.uniform(0.4, 0.6, 3)
    is_clutter = is_free & (rng.random(len(kind)) < CLUTTER)
    kind[is_clutter] = rng.integers(1, len(looks), is_clutter.sum())

    colour = colour + rng.normal(0, 0.02, colour.shape)
    texture = looks[kind] + NOISE * rng.standard_normal((len(kind), 9))
    deviation, above, below = np.split(texture.clip(0, 1), 3, axis=1)
    statistics = (0.02 + 0.1 * deviation, 0.1 + 0.3 * above, -0.1 - 0.3 * below)
    x = np.hstack([colour, statistics[0], colour + statistics[1], colour + statistics[2], centres])
    similarity = np.exp(-np.linalg.norm(colour[source] - colour[target], axis=1) / 0.1)
    return Data(
        x=torch.from_numpy(x).float(),
        edge_index=torch.from_numpy(edges),
        edge_attr=torch.from_numpy(np.stack([similarity, length], axis=1)).float(),
        y=torch.from_numpy(label),
    )


def _ellipse(
    rng: np.random.Generator, centres: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the centres [N] in units of a random ellipse's axes; its ends are visible."""
    angle, half_length = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.35)
    axis = np.array([np.cos(angle), np.sin(angle)])
    margin = half_length * np.abs(axis)
    offset = centres - rng.uniform(margin, np.array([width, 1.0]) - margin)
    half_width = half_length * rng.uniform(0.4, 0.6)
    return offset @ axis / half_length, offset @ (axis[1], -axis[0]) / half_width


def region_adjacency(centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring Voronoi cells of `centres` [N, 2], about one apart, and how long they touch.

    Returns:
        int64 [2, E], every edge in both directions, and [E], the length of the common boundary,
        at most 2. Cells more than 2 apart, which meet outside the image, are not neighbours.
    """
    corners = Delaunay(centres).simplices.astype(np.int64)
    edges, halves = [], []
    for apex in range(3):
        i, j, k = corners[:, apex - 2], corners[:, apex - 1], corners[:, apex]
        to_i, to_j = centres[i] - centres[k], centres[j] - centres[k]
        cross = np.abs(to_i[:, 0] * to_j[:, 1] - to_i[:, 1] * to_j[:, 0])
        side = np.linalg.norm(centres[i] - centres[j], axis=1)
        # From the middle of a side to the circumcentre: half the side times cot(opposite angle).
        halves.append(side / 2 * (to_i * to_j).sum(1) / np.maximum(cross, 1e-9))
        edges.append(np.sort(np.stack([i, j], axis=1), axis=1))
    first, last = np.concatenate(edges).T
    # One number for a pair: sorting those is several times faster than sorting pairs.
    codes, which = np.unique(first * len(centres) + last, return_inverse=True)
    pairs = np.stack(np.divmod(codes, len(centres)), axis=1)
    length = np.bincount(which, np.concatenate(halves)).clip(0, 2)
    kept = np.linalg.norm(np.diff(centres[pairs], axis=1)[:, 0], axis=1) < 2
    pairs, length = pairs[kept].T, length[kept]
    return np.hstack([pairs, pairs[::-1]]), np.tile(length, 2)
