"""A file of trajectories: the same bytes however it came about."""

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import torch

from datamodules.cache_folder import ensure
from datamodules.errors import DataError
from datamodules.pde import generation
from datamodules.pde.compressible import CompressibleNavierStokes
from datamodules.pde.equation import Evolution, SolverError, SpectralEquation
from datamodules.pde.generation import Recipe
from datamodules.pde.kuramoto_sivashinsky import KuramotoSivashinsky
from datamodules.pde.layouts import TrajectoryFiles
from tests.running import ROOT
from tools.generate import load, names

SMALL = KuramotoSivashinsky(sizes=(32,), length=16.0, viscosity=0.3, step=0.01)
TIMES = (0.0, 0.1, 0.2)
RECIPE = Recipe(SMALL, TIMES, 37, seed=0)

SCRIPT = """
import sys
from pathlib import Path
from datamodules.cache_folder import ensure
from tests.datamodules.pde.test_generation import slow
if __name__ == "__main__":
    ensure(slow.plan(Path(sys.argv[1]), processes=1))
"""

SOLVERS = """
import sys
from pathlib import Path
from datamodules.cache_folder import ensure
from datamodules.pde import generation
from tests.datamodules.pde.test_generation import slow
if __name__ == "__main__":
    generation.PATIENCE_SECONDS = 0
    ensure(slow.plan(Path(sys.argv[1]), processes=2))
"""


@dataclass(frozen=True)
class Slow(KuramotoSivashinsky):
    """Takes its time, so that it can be interrupted."""

    def solve(self, initial, times):
        time.sleep(0.1)
        return super().solve(initial, times)


@dataclass(frozen=True)
class Killed(KuramotoSivashinsky):
    """Is killed where another process solves it."""

    def solve(self, initial, times):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().solve(initial, times)


slow = Recipe(Slow(**vars(SMALL)), TIMES, 200, seed=3)


def made(recipe, folder, **options):
    return ensure(recipe.plan(folder, **options)) / "data.hdf5"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_number_of_processes_changes_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "PATIENCE_SECONDS", 0)
    paths = [made(RECIPE, tmp_path / str(n), processes=n) for n in (1, 2)]
    assert digest(paths[0]) == digest(paths[1])
    with h5py.File(paths[0]) as file:
        assert file["tensor"].shape == (37, 3, 32)
        assert file["tensor"].dtype == np.float32
        assert file["t-coordinate"][:].tolist() == list(TIMES)
        assert file["x-coordinate"][:].tolist() == [i / 2 for i in range(32)]


def test_a_sample_is_its_seed_s_whatever_is_beside_it(tmp_path):
    few = TrajectoryFiles([made(Recipe(SMALL, TIMES, 5, seed=0), tmp_path, processes=1)])
    many = TrajectoryFiles([made(RECIPE, tmp_path, processes=1)])
    other = TrajectoryFiles([made(Recipe(SMALL, TIMES, 5, seed=1), tmp_path, processes=1)])
    for i in range(5):
        np.testing.assert_array_equal(few.read(i), many.read(i))
        assert abs(few.read(i) - other.read(i)).max() > 0.01
    u0 = SMALL.initial(generation.generator(0, 4))
    alone = SMALL.solve(u0[None], TIMES)[0]
    np.testing.assert_allclose(alone, many.read(4), atol=1e-6)


@pytest.mark.slow
def test_killed_at_a_random_moment_it_ends_in_the_same_bytes(tmp_path):
    whole = made(slow, tmp_path / "whole", processes=1)
    moments = random.Random(os.getpid())
    kills = 0
    for _ in range(100):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")], cwd=ROOT
        )
        started = time.monotonic()
        folder = tmp_path / "killed" / "pde"
        while not list(folder.glob(".*.parts/*.npz")) and time.monotonic() < started + 100:
            time.sleep(0.01)
        try:
            process.wait(moments.uniform(0.05, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if kills == 2:
            break
    parts = {p: p.stat().st_mtime_ns for p in folder.glob(".*.parts/*.npz")}
    assert parts
    assert not list(folder.glob("*/data.hdf5"))
    solved = []
    again = Recipe(slow.equation, slow.times, slow.samples, slow.seed)
    original = generation._solve_chunk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            generation, "_solve_chunk", lambda *args: (solved.append(args[2]), original(*args))
        )
        resumed = made(again, tmp_path / "killed", processes=1)
    assert len(solved) == len(slow.chunks) - len(parts)
    assert digest(resumed) == digest(whole)
    assert not list(folder.glob(".*.parts"))


def test_what_cannot_be_trusted_is_not_saved(tmp_path):
    wild = KuramotoSivashinsky(sizes=(16,), length=64.0, viscosity=0.05)
    with pytest.raises(SolverError, match="raise oversample"):
        made(Recipe(wild, (0.0, 20.0), 4, seed=0), tmp_path, processes=1)
    assert not list(tmp_path.glob("pde/*/data.hdf5"))
    assert not list(tmp_path.glob("pde/.*.parts/*.npz"))


def test_another_parameter_is_another_folder(tmp_path):
    recipes = [
        RECIPE,
        Recipe(SMALL, TIMES, 37, seed=1),
        Recipe(SMALL, TIMES, 36, seed=0),
        Recipe(SMALL, TIMES[:2], 37, seed=0),
        Recipe(KuramotoSivashinsky(**vars(SMALL) | {"viscosity": 0.31}), TIMES, 37, seed=0),
    ]
    assert len({recipe.plan(tmp_path).folder for recipe in recipes}) == len(recipes)


def test_draws_do_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    first, second = (RECIPE.draw([0, 7]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_part_is_solved_again(tmp_path):
    whole = made(RECIPE, tmp_path / "whole", processes=1)
    parts = tmp_path / "parts"
    parts.mkdir()
    generation.solve_chunks(RECIPE, parts, 1, "cpu")
    first, second, third = sorted(parts.glob("*.npz"))
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-50])
    content = bytearray(third.read_bytes())
    content[len(content) // 2] ^= 1
    third.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged: its trajectories are solved again") as said:
        generation.assemble(RECIPE, parts, tmp_path / "data.hdf5", "cpu")
    assert sum("solved again" in str(warning.message) for warning in said) == 3
    assert digest(tmp_path / "data.hdf5") == digest(whole)


def test_no_device_goes_on_with_what_another_kind_has_solved(tmp_path):
    names = [generation._part(tmp_path, range(16), device) for device in ("cpu", "cpu:0", "cuda")]
    assert names[0] == names[1] != names[2]


@pytest.mark.slow
def test_solvers_end_with_the_process_that_was_killed(tmp_path):
    """They wait on a pipe whose other end they hold themselves."""
    process = subprocess.Popen([sys.executable, "-c", SOLVERS, str(tmp_path)], cwd=ROOT)
    folder, deadline = tmp_path / "pde", time.monotonic() + 100
    while len(list(folder.glob(".*.parts/*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    descendants = descendants_of(process.pid)
    assert len(descendants) >= 3  # the server of forks and two solvers
    process.kill()
    process.wait()
    while any(map(alive, descendants)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, descendants))


def descendants_of(process: int) -> list[int]:
    found = []
    for line in subprocess.check_output(["ps", "-e", "-o", "pid=,ppid="], text=True).splitlines():
        child, parent = map(int, line.split())
        if parent == process:
            found += [child, *descendants_of(child)]
    return found


def alive(process: int) -> bool:
    status = subprocess.run(
        ["ps", "-p", str(process), "-o", "stat="], capture_output=True, text=True
    )
    return status.stdout.strip()[:1] not in ("", "Z")


def test_a_killed_solver_is_one_sentence_and_what_is_solved_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "PATIENCE_SECONDS", 0)
    with pytest.raises(DataError, match=r"was killed.*lower data.generate.processes \(now 2\)"):
        made(Recipe(Killed(**vars(SMALL)), TIMES, 40, seed=0), tmp_path, processes=2)
    assert len(list(tmp_path.glob("pde/.*.parts/*.npz"))) == 1


def test_a_seed_that_repeats_initial_states_is_refused(tmp_path):
    """One of the first 2000 samples of this seed has the lower 32 bits of another."""
    generation.check_seeds(Recipe(SMALL, TIMES, 2000, seed=271))
    recipe = Recipe(SMALL, TIMES, 2000, seed=272)
    drawn = {torch.rand(1, generator=generation.generator(272, i)).item() for i in range(2000)}
    assert len(drawn) == 1999
    with pytest.raises(
        DataError, match=r"1 of 2000 trajectories of data.generate.seed=272 would repeat"
    ):
        made(recipe, tmp_path, processes=1)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(device, tmp_path):
    with pytest.raises(
        DataError, match=f"data.generate.device={device} cannot solve in float64 here"
    ):
        made(RECIPE, tmp_path, device=device)


def test_another_name_of_the_device_solves_the_same_bytes(tmp_path):
    paths = [made(RECIPE, tmp_path / name, device=name) for name in ("cpu", "cpu:0")]
    assert digest(paths[0]) == digest(paths[1])


@pytest.mark.parametrize(
    "name", [name for name in names() if isinstance(load(name, []).equation, Evolution)]
)
def test_solvers_work_where_their_states_are(name, monkeypatch):
    """Tensors without data mix with those of the CPU as little as a GPU's do."""
    monkeypatch.setattr(SpectralEquation, "check", lambda *_: None)  # reads numbers
    equation = load(name, ["scale=smoke"]).equation
    start = equation.initial(generation.generator(0, 0))[None].to("meta")
    if isinstance(equation, CompressibleNavierStokes):  # its number of steps depends on the data
        assert equation.change(equation.conserved(start)).device.type == "meta"
    else:
        got = equation.solve(start, [0.0, getattr(equation, "step", 1.0)])
        assert got.device.type == "meta"
        assert got.shape == (1, 2, len(equation.channels), *equation.shape)
