"""Solve an equation and leave its trajectories in one HDF5 file, without any model.

python -m tools.generate kolmogorov_flow scale=demo data.equation.viscosity=1e-3   (or: make data)
"""

import argparse
import time

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from datamodules.pde.module import PDEDataModule
from errors import UserError, one_sentence_errors
from train import CONFIGS

GROUP = CONFIGS / "data" / "pde"


def names() -> list[str]:
    """Every data set that can be made."""
    return sorted(path.stem for path in GROUP.glob("[!_]*.yaml"))


def load(name: str, overrides: list[str]) -> PDEDataModule:
    """The data module of a config of configs/data/pde.

    Raises:
        UserError: there is no such config.
    """
    if name not in names():
        raise UserError(f"there is no PDE {name!r}: choose one of {', '.join(names())}.")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("generate", [f"data=pde/{name}", *overrides])
    return instantiate(cfg.data, _convert_="all")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate", allow_abbrev=False)
    parser.add_argument("name", help=", ".join(names()))
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE=VALUE")
    given = parser.parse_intermixed_args()
    data = load(given.name, given.overrides)
    began = time.monotonic()
    (path,) = data.paths()
    seconds = time.monotonic() - began
    data.setup()
    frames = len(data.times) or 1
    shape = "×".join(map(str, data.equation.shape))
    print(
        f"{path}: {sum(data.samples):,} × {frames} states of {', '.join(data.channels)} on {shape} "
        f"points, {path.stat().st_size / 2**20:,.1f} MiB, in {seconds:.0f} s.\n"
        "PDEBench's layout: first those for test, then for validation, then for training."
    )


if __name__ == "__main__":
    with one_sentence_errors():
        main()
