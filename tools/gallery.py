"""Draw one trajectory of every equation for docs/gallery.md.   (or: make gallery)

In one dimension a space–time diagram, in two an animation, for a steady problem what is given and
what solves it.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from datamodules.pde.equation import Steady
from datamodules.pde.generation import Recipe
from tools.generate import GROUP, load, names

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "gallery"
PIXELS = 128
FRAMES = 32
MILLISECONDS = 80
COLOURS = "RdBu_r"


def main() -> None:
    """Draw all of them, and write the page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Gallery",
        "",
        "One test trajectory of every data set that `make data PDE=…` makes, at demo scale, drawn",
        "by `make gallery`. Time runs upwards in space–time diagrams.",
    ]
    for name in names():
        picture = draw(name)
        comment = (GROUP / f"{name}.yaml").read_text().splitlines()[1].removeprefix("# ")
        image = f"![{name}](gallery/{picture.name})"
        lines += ["", f"## `make data PDE={name}`", "", comment, "", image]
    (FOLDER.parent / "gallery.md").write_text("\n".join(lines) + "\n")


def draw(name: str) -> Path:
    """A PNG or a GIF of one trajectory."""
    data = load(name, ["scale=demo"])
    equation = data.equation
    assert equation is not None  # as the data are generated
    times = data.times
    if len(equation.shape) > 1 and times:
        times = tuple(np.linspace(times[0], times[-1], FRAMES))
    fields = Recipe(equation, times, 1, data.generate.seed).solve([0])
    states = list(fields.values())
    if isinstance(equation, Steady):
        return _panels(name, [field.reshape(field.shape[-2:]) for field in states])
    if len(equation.shape) == 1:
        return _panels(name, [field[0] for field in states])
    return _animation(name, [field[0] for field in states])


def _panels(name: str, images: list[np.ndarray]) -> Path:
    figure = Figure(figsize=(3.2 * len(images), 2.6), layout="constrained")
    for axes, image in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        drawn = axes.imshow(
            image, origin="lower", aspect="auto", cmap=COLOURS, interpolation="bilinear"
        )
        axes.set(xticks=[], yticks=[])
        figure.colorbar(drawn, ax=axes)
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=80, metadata={"Software": f"matplotlib {matplotlib.__version__}"})
    return path


def _animation(name: str, fields: list[np.ndarray]) -> Path:
    scaled = []
    for field in fields:
        low, high = np.quantile(field, [0.002, 0.998])
        scaled.append(np.clip((field - low) / (high - low), 0, 1))
    side_by_side = np.concatenate(scaled, axis=1)
    pixels = (255 * colormaps[COLOURS](side_by_side)[..., :3]).astype(np.uint8)
    # x along the page, y upwards
    images = [Image.fromarray(p.transpose(1, 0, 2)[::-1]) for p in pixels]
    size = (PIXELS * len(fields), PIXELS)
    small = [image.resize(size).quantize(32) for image in images]
    path = FOLDER / f"{name}.gif"
    small[0].save(
        path, save_all=True, append_images=small[1:], duration=MILLISECONDS, loop=0, optimize=True
    )
    return path


if __name__ == "__main__":
    main()
