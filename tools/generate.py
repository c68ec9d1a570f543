"""Solve an equation and leave its trajectories in one HDF5 file, without any model.

python -m tools.generate kolmogorov_flow scale=demo data.equation.viscosity=1e-3   (or: make data)
"""

import argparse
import time

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from checks import require_seeds
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
        UserError: there is no such config, or a value of another kind than it expects, or a seed
            that is none.
    """
    if name not in names():
        raise UserError(f"there is no PDE {name!r}: choose one of {', '.join(names())}.")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("generate", [f"data=pde/{name}", *overrides])
    require_seeds(OmegaConf.to_container(cfg, resolve=True))
    if cfg.data.source != "generated":
        raise UserError(
            f"`make data` solves equations, got data.source={cfg.data.source}: leave it generated."
        )
    try:
        return instantiate(cfg.data, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, TypeError):
            raise UserError(
                f"{name} cannot be made so ({error.__cause__}): see configs/data/pde/{name}.yaml."
            ) from error
        raise


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
    frames = len(data.times) or 1
    equation = data.equation
    assert equation is not None  # as the data are generated
    shape = "×".join(map(str, equation.shape))
    channels = ", ".join(equation.channels)
    print(
        f"{path}: {sum(data.samples):,} × {frames} states of {channels} on {shape} points, "
        f"{path.stat().st_size / 2**20:,.1f} MiB, in {seconds:.0f} s.\n"
        "PDEBench's layout: first those for test, then for validation, then for training."
    )


if __name__ == "__main__":
    with one_sentence_errors():
        main()
