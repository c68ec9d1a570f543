"""How many items that need large temporary arrays are worked on together."""

import torch

# Numbers per temporary array: large enough to feed the cores, small enough to stay near them.
CPU_TILE, GPU_TILE = 2**19, 2**27


def tiles(count: int, numbers_each: int, device: torch.device) -> list[slice]:
    """Cut `count` items that need arrays of `numbers_each` into ranges worked on together."""
    tile = CPU_TILE if device.type == "cpu" else GPU_TILE
    step = max(1, tile // max(1, numbers_each))
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
