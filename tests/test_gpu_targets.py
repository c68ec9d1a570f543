"""What `make gpu-bundle` packs works without git and network, stops in time and goes on exactly."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import report
from errors import UserError
from report import commit
from tests.benchmarks.timing import device_name
from tests.running import FEW, ROOT, report_of, scalars, train_here
from tools import gpu_train
from tools.gpu_bundle import archive, fill

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="bundles are made in a clone")

RUN = "gpu-chimera_lrgb-smoke-generated-seed0"
DATA = ("data.source=generated", FEW)
TEN_STEPS = (
    *DATA,
    "data.limit=null",
    "data.batch_size=12",
    "trainer.limit_train_batches=null",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "model.net.dropout=0.2",
    "callbacks.last.every_n_train_steps=3",
)
LINGER = "+callbacks.linger={_target_: tests.test_gpu_targets.LingerAt, step: 7}"


class LingerAt(Callback):
    """Wait before a step until the run is told to stop, unless it was resumed."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args) -> None:
        if trainer.global_step == self.step and trainer.ckpt_path is None:
            Path("lingering").touch()
            while not trainer.received_sigterm:
                time.sleep(0.05)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The folder of a bundle without wheels, of a few generated peptides."""
    folder = tmp_path_factory.mktemp("bundle")
    overrides = ["scale=paper", *DATA, f"data.cache_dir={folder / 'cache'}"]
    fill(folder / "gpu", ["chimera_lrgb", "gps_lrgb"], overrides, python=None)
    archive(folder / "gpu", folder / "gpu-bundle.tar.gz")
    return folder


def unpack(bundle: Path, folder: Path) -> Path:
    """The bundle's code and data in a folder of its own, as on the machine it is for."""
    with tarfile.open(bundle / "gpu-bundle.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "resolvent"


def make(tree: Path, *words: str) -> str:
    """What a target prints, run in an unpacked bundle with the interpreter of the tests."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", *words, f"GPU_PYTHON={sys.executable}", "OUT=out"]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_bundle_holds_code_and_data_and_says_which(bundle, tmp_path):
    tree = unpack(bundle, tmp_path)
    packed = json.loads((tree / "gpu/bundle.json").read_text())
    assert packed["commit"] == commit()
    assert packed["wheels"] == []
    assert list(packed["data"]) == ["peptides-func"]
    assert packed["data"]["peptides-func"]["source"] == "generated"
    assert packed["data"]["peptides-func"]["graphs"] == {"train": 60, "val": 20, "test": 20}
    for name in ("train.py", "Makefile", "configs/experiment/chimera_lrgb.yaml", "gpu/data.tar.gz"):
        assert (tree / name).is_file()
    make(tree, "gpu-setup")
    (cached,) = (tree / "data/lrgb").glob("peptides-func-generated-*")
    assert torch.load(cached / "train.pt", weights_only=True)["smiles"]


def test_without_git_the_commit_is_the_bundles(bundle, tmp_path, monkeypatch):
    tree = unpack(bundle, tmp_path)
    monkeypatch.setattr(report, "__file__", str(tree / "report.py"))
    packed = json.loads((tree / "gpu/bundle.json").read_text())
    assert report.code() == packed["code"]
    assert report.commit() == packed["commit"]
    (tree / "kernels/spec.py").write_text("changed")
    assert report.code() != packed["code"]
    assert report.commit() == packed["commit"].removesuffix("-dirty") + "-dirty"


def test_a_bundle_that_is_too_large_names_its_largest_files(bundle, tmp_path):
    folder = shutil.copytree(bundle / "gpu", tmp_path / "gpu")
    (folder / "noise.bin").write_bytes(os.urandom(3 * 2**20))
    path = tmp_path / "gpu-bundle.tar.gz"
    with pytest.raises(UserError, match=r"at most 2 MiB, got 3\.\d MiB.*gpu/noise.bin 3.0 MiB"):
        archive(folder, path, limit_mib=2)
    assert not path.exists()


@pytest.mark.slow
def test_tests_that_have_passed_are_not_run_again(bundle, tmp_path, monkeypatch):
    tree = unpack(bundle, tmp_path)
    for path in (tree / "tests/kernels").rglob("test_*.py"):
        path.unlink()
    tests = "def test_one(): pass\ndef test_two(): pass\ndef test_three(): assert False\n"
    (tree / "tests/kernels/test_all.py").write_text(tests)
    monkeypatch.setattr(report, "__file__", str(tree / "report.py"))
    one, two, three = (f"tests/kernels/test_all.py::test_{n}" for n in ("one", "two", "three"))
    came_back = {"code": report.code(), "outcomes": {one: "passed", two: "failed"}}
    came_back["failures"] = {two: "killed"}
    name = f"tests-{device_name()}.json"
    (tree / "gpu" / name).write_text(json.dumps(came_back))
    with pytest.raises(AssertionError, match="1 failed, 1 passed in"):
        make(tree, "gpu-test")
    record = json.loads((tree / "out" / name).read_text())
    assert record["outcomes"] == {one: "passed", two: "passed", three: "failed"}
    assert record["counts"] == {"passed": 2, "failed": 1, "skipped": 0}
    assert list(record["failures"]) == [three]
    assert "assert False" in record["failures"][three]


def train_on_gpu_machine(tree: Path, *overrides: str) -> None:
    """What `make gpu-train` runs, in an unpacked bundle; its training is a process of its own."""
    words = ["chimera_lrgb", "--minutes", "50", "--out", "out", "scale=smoke", "trainer=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tree)
        patch.setattr(gpu_train, "ROOT", tree)
        patch.setattr(gpu_train, "DELIVERY_SECONDS", 0.5)
        clock = SimpleNamespace(monotonic=lambda: 3600 * Path("lingering").exists())
        patch.setattr(gpu_train, "time", clock)
        patch.setattr(sys, "argv", ["gpu_train", *words, *TEN_STEPS, *overrides])
        gpu_train.main()


@pytest.mark.slow
def test_a_training_stopped_in_time_goes_on_elsewhere_loss_for_loss(bundle, tmp_path, capsys):
    tree = unpack(bundle, tmp_path / "one")
    make(tree, "gpu-setup")
    train_on_gpu_machine(tree, LINGER)
    assert (
        "Stopped after 50 minutes; the same command goes on from step 6." in capsys.readouterr().out
    )
    names = sorted(path.name for path in (tree / "out").iterdir())
    assert names == [f"{RUN}-best.ckpt", f"{RUN}-last.ckpt", f"{RUN}.tar.gz"]
    # On a bare machine, with what came back:
    bare = unpack(bundle, tmp_path / "two")
    for path in (tree / "out").iterdir():
        shutil.copy(path, bare / "gpu")
    make(bare, "gpu-setup")
    train_on_gpu_machine(bare)
    assert f"Going on with runs/{RUN} from step 6." in capsys.readouterr().out
    resumed, whole = bare / "runs" / RUN, train_here(tmp_path, "chimera_lrgb", *TEN_STEPS)
    assert json.loads((bare / "out" / f"{RUN}.json").read_text()) == report_of(resumed)
    assert len(scalars(whole, "train/loss")) == 10
    for tag in ("train/loss", "val/ap"):
        assert scalars(resumed, tag) == scalars(whole, tag)
    for fact in ("test", "selected", "steps", "data"):
        assert report_of(resumed)[fact] == report_of(whole)[fact]
    train_on_gpu_machine(bare)
    assert "is finished already" in capsys.readouterr().out
