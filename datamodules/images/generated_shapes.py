"""Images whose class is told by how two shapes stand to each other; for runs without real data.

A disc and a square of random colours lie on a textured ground. Up to ten classes differ in the
elevation of the square as seen from the disc; of more, tens differ in the direction and hundreds in
the width of the square's stripes. A mirrored image keeps its class, and colours tell nothing of it.
"""

import math

import numpy as np

GENERATOR_VERSION = 1
"""Raise it with every change of what is drawn."""
ELEVATIONS = 10
DIRECTIONS = 10


def shapes(count: int, classes: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Random images and their classes.

    Args:
        count: of images.
        classes: their number, 2 to 1,000.
        side: height and width, in pixels.
        rng: what is drawn comes from.

    Returns:
        uint8 [count, 3, side, side] and int64 [count].
    """
    label = rng.integers(classes, size=count)
    image = np.empty((count, 3, side, side), dtype=np.uint8)
    for i in range(count):
        image[i] = _draw(int(label[i]), classes, side, rng)
    return image, label


def _draw(label: int, classes: int, side: int, rng: np.random.Generator) -> np.ndarray:
    steps = min(classes, ELEVATIONS)
    elevation = math.pi * (label % ELEVATIONS / (steps - 1) - 0.5)
    direction = math.pi / 2 * (label // ELEVATIONS % DIRECTIONS) / (DIRECTIONS - 1)
    stripes = 4 + label // (ELEVATIONS * DIRECTIONS)  # across the image
    mirrored = rng.choice([-1.0, 1.0])
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    # The middle between the shapes moves only so far that both stay inside.
    middle = rng.uniform(-0.13, 0.13, size=2)
    half = 0.22 * np.array([mirrored * math.cos(elevation), math.sin(elevation)])
    disc_x, disc_y = middle - half
    square_x, square_y = middle + half
    ground, disc, square = rng.uniform(0, 1, (3, 3, 1, 1))
    disc, square = (np.where(abs(c - ground) < 0.25, 1 - c, c) for c in (disc, square))
    image = ground + rng.normal(0, 0.05, (3, side, side))
    image = np.where(np.hypot(x - disc_x, y - disc_y) < 0.12, disc, image)
    along = x * mirrored * math.cos(direction) + y * math.sin(direction)
    striped = square * (0.75 + 0.25 * np.sin(2 * math.pi * stripes * along))
    inside = np.maximum(abs(x - square_x), abs(y - square_y)) < 0.12
    image = np.where(inside, striped, image)
    return (255 * image.clip(0, 1)).round().astype(np.uint8)
