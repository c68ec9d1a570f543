"""Pack what a GPU machine without network needs: the code, wheels it lacks, prepared data.

python -m tools.gpu_bundle [EXPERIMENT …] [OVERRIDE=VALUE …] [--no-wheels]    (or: make gpu-bundle)

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
    "mamba-ssm",
    "neuraloperator==2.0.0",
    "omegaconf",
    "opt-einsum",
    "tensorly",
    "tensorly-torch",
)


def main() -> None:
    """Pack as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_bundle", allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT or OVERRIDE=VALUE")
    parser.add_argument("--no-wheels", action="store_true", help="for a machine that lacks none")
    options = parser.parse_intermixed_args()
    experiments = [word for word in options.words if "=" not in word] or ["chimera_lrgb"]
    overrides = [word for word in options.words if "=" in word]
    with one_sentence_errors():
        fill(ROOT / "gpu", experiments, overrides, wheels=not options.no_wheels)
        archive(ROOT / "gpu", ROOT / "gpu-bundle.tar.gz")


def fill(folder: Path, experiments: list[str], overrides: list[str], *, wheels: bool) -> None:
    """Write wheels/, data.tar.gz, bundle.json and SHA256SUMS; what else is there stays.

    Args:
        folder: written to.
        experiments: whose data are packed.
        overrides: of their configs, as `train.py` takes them.
        wheels: False packs none.

    Raises:
        UserError, DataError: a wheel or the data cannot be had.
    """
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    if wheels:
        build_wheels(folder / "wheels")
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


def build_wheels(folder: Path) -> None:
    """Download, or build, the wheels that the machine lacks."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--wheel-dir", str(folder), *WHEELS]
    # mamba-ssm without its CUDA extension.
    without = {"MAMBA_FORCE_BUILD": "TRUE", "MAMBA_SKIP_CUDA_BUILD": "TRUE"}
    if subprocess.run(command, env=os.environ | without, check=False).returncode != 0:
        raise UserError(
            "Expected wheels of every package above, but pip could not make them all: connect to "
            "the network, or pass ARGS=--no-wheels for a machine that lacks none."
        )
    for path in folder.iterdir():
        if not path.name.endswith("-none-any.whl"):
            raise UserError(
                f"Expected wheels of pure Python, got {path.name}, which fits one kind of machine "
                "only: take it out of WHEELS in tools/gpu_bundle.py."
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
