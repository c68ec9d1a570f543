"""A file of trajectories: the same bytes however it came about."""

import hashlib
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
from datamodules.pde import generation
from datamodules.pde.equation import SolverError
from datamodules.pde.generation import Recipe
from datamodules.pde.kuramoto_sivashinsky import KuramotoSivashinsky
from datamodules.pde.layouts import TrajectoryFiles
from tests.running import ROOT

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


@dataclass(frozen=True)
class Slow(KuramotoSivashinsky):
    """Takes its time, so that it can be interrupted."""

    def solve(self, initial, times):
        time.sleep(0.1)
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
