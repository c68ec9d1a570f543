"""Pack what a GPU machine without network needs: the code, wheels it lacks, prepared data.

python -m tools.gpu_bundle [EXPERIMENT …] [OVERRIDE=VALUE …] [--no-wheels] [--python 3.12]
(or: make gpu-bundle)

It fills gpu/, which works beside a checkout, and writes gpu-bundle.tar.gz, the code and gpu/ in
one file. gpu/data.tar.gz holds folders of the data modules' own cache (`cache_folder.CachePlan`):
unpacked into data/ they are found there and nothing is read, downloaded or featurised.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from datamodules.cache_folder import sha256
from errors import UserError, one_sentence_errors
from report import code, commit
from train import CONFIGS

ROOT = Path(__file__).parent.parent
LIMIT_MIB = 60
PACKED = (".", ":(exclude)docs/gallery", ":(exclude)results/claims")
# Pure Python all of them, so that they serve any interpreter and any torch.
WHEELS = (
    "antlr4-python3-runtime",
    "beartype",
    "fla-core==0.6.0",
    "flash-linear-attention==0.6.0",
    "hydra-core",
    "kornia",
    "mamba-ssm",
    "neuraloperator==2.0.0",
    "omegaconf",
    "opt-einsum",
    "tensorly",
    "tensorly-torch",
)
# kornia imports it, though nothing here calls it: one wheel for x86-64 Linux and one Python.
BINARY = ("kornia_rs",)


def main() -> None:
    """Pack as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_bundle", allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT or OVERRIDE=VALUE")
    parser.add_argument("--no-wheels", action="store_true", help="for a machine that lacks none")
    parser.add_argument("--python", default="3.12", help="version of that machine's Python")
    options = parser.parse_intermixed_args()
    experiments = [word for word in options.words if "=" not in word] or ["chimera_lrgb"]
    overrides = [word for word in options.words if "=" in word]
    with one_sentence_errors():
        python = None if options.no_wheels else options.python
        fill(ROOT / "gpu", experiments, overrides, python=python)
        archive(ROOT / "gpu", ROOT / "gpu-bundle.tar.gz")


def fill(folder: Path, experiments: list[str], overrides: list[str], *, python: str | None) -> None:
    """Write wheels/, data.tar.gz, bundle.json and SHA256SUMS; what else is there stays.

    Args:
        folder: written to.
        experiments: whose data are packed.
        overrides: of their configs, as `train.py` takes them.
        python: version of the GPU machine's, such as "3.12"; None packs no wheels.

    Raises:
        UserError, DataError: a wheel or the data cannot be had.
    """
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    if python is not None:
        build_wheels(folder / "wheels", python)
    bundle = {
        "commit": commit(),
        "code": code(),
        "wheels": sorted(path.name for path in folder.glob("wheels/*.whl")),
        "data": pack_data(folder / "data.tar.gz", experiments, overrides),
    }
    (folder / "bundle.json").write_text(json.dumps(bundle, indent=1) + "\n")
    packed = [*folder.glob("wheels/*.whl"), folder / "data.tar.gz", folder / "bundle.json"]
    lines = [f"{sha256(path)}  {path.relative_to(folder)}\n" for path in sorted(packed)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def build_wheels(folder: Path, python: str) -> None:
    """Download, or build, the wheels that a machine with that version of Python lacks."""
    pip = [sys.executable, "-m", "pip"]
    how = ["--quiet", "--no-deps", "--constraint", str(ROOT / "constraints.txt")]
    pure = [*pip, "wheel", *how, "--no-build-isolation", "--wheel-dir", str(folder), *WHEELS]
    there = [
        "--only-binary=:all:",
        "--python-version",
        python,
        "--platform",
        "manylinux2014_x86_64",
    ]
    binary = [*pip, "download", *how, *there, "--dest", str(folder), *BINARY]
    # mamba-ssm without its CUDA extension.
    without = {"MAMBA_FORCE_BUILD": "TRUE", "MAMBA_SKIP_CUDA_BUILD": "TRUE"}
    for command in (pure, binary):
        if subprocess.run(command, env=os.environ | without, check=False).returncode != 0:
            raise UserError(
                "Expected wheels of every package above, but pip could not make them all: connect "
                "to the network, or pass ARGS=--no-wheels for a machine that lacks none."
            )
    for path in folder.iterdir():
        if not path.name.endswith("-none-any.whl") and path.name.split("-")[0] not in BINARY:
            raise UserError(
                f"Expected wheels of pure Python, got {path.name}, which fits one kind of machine "
                "only: take it out of WHEELS in tools/gpu_bundle.py, or name it in BINARY."
            )


def pack_data(path: Path, experiments: list[str], overrides: list[str]) -> dict[str, dict]:
    """Prepare the experiments' data and pack the folders that cache them; provenance by task."""
    packed = {}
    with tarfile.open(path, "w:gz") as tar:
        for experiment in experiments:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                cfg = compose("train", [f"experiment={experiment}", *overrides])
            datamodule = instantiate(cfg.data, _convert_="all")
            if datamodule.task in packed:
                continue
            datamodule.prepare_data()
            datamodule.setup()
            cached = datamodule.cached_folder()
            tar.add(cached, cached.relative_to(datamodule.cache_dir))
            packed[datamodule.task] = datamodule.provenance
    return packed


def archive(folder: Path, path: Path, limit_mib: float = LIMIT_MIB) -> None:
    """Write the code, as it lies here, and `folder` to one file.

    Raises:
        UserError: it is larger than `limit_mib`; it is deleted then.
    """
    # Also what is not committed yet, which the commit's "-dirty" may not tell.
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        raise UserError("Expected a git checkout, whose files are packed: run it in a clone.")
    members = {name: ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    members |= {f"gpu/{p.relative_to(folder)}": p for p in folder.rglob("*") if p.is_file()}
    with tarfile.open(path, "w:gz") as tar:
        for name, source in sorted(members.items()):
            tar.add(source, f"resolvent/{name}")
    mib = path.stat().st_size / 2**20
    if mib > limit_mib:
        path.unlink()
        largest = sorted(members, key=lambda name: -members[name].stat().st_size)[:5]
        sizes = (f"{name} {members[name].stat().st_size / 2**20:.1f} MiB" for name in largest)
        raise UserError(
            f"Expected a bundle of at most {limit_mib:g} MiB, got {mib:.1f} MiB: leave out some of "
            f"its largest files, {', '.join(sizes)}."
        )
    bundle = json.loads((folder / "bundle.json").read_text())
    print(f"{path}: {mib:.1f} MiB, commit {bundle['commit']}, {len(bundle['wheels'])} wheels")
    for task, facts in bundle["data"].items():
        count = facts.get("graphs", facts.get("samples"))["train"]
        print(f"  {task}: {facts['source'].upper()} data, {count:,} to train on")


if __name__ == "__main__":
    main()
