"""Trajectories a second: of every data set, of MemNO's, and beside exponax.

exponax is a JAX library; it gets the same equation, scheme, step, float64 and batch.

Koehler, Niedermayr, Westermann and Thuerey, APEBench, NeurIPS 2024, arXiv:2411.00180.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from datamodules.cache_folder import ensure
from datamodules.pde.generation import Recipe, one_thread
from datamodules.pde.gray_scott import GrayScott
from datamodules.pde.kuramoto_sivashinsky import KuramotoSivashinsky
from datamodules.pde.layouts import TrajectoryFiles
from datamodules.pde.navier_stokes import NavierStokes, PeakedVorticity
from datamodules.pde.torus import Torus
from tests.benchmarks.timing import compare
from tests.kernels.comparing import DEVICE
from tools.generate import load, names

os.environ.setdefault("JAX_ENABLE_X64", "1")
try:
    import exponax as ex
    import jax
except ImportError:
    ex = jax = None

pytestmark = pytest.mark.timeout(1800)

AGREEMENT = 1e-4
"""Largest difference of the modes that are kept, over the largest value, after a turnover time.

exponax zeroes the others only before products, so that they follow the kept ones."""

STEPS = 100


@dataclass(frozen=True)
class ByAxis(KuramotoSivashinsky):
    """exponax's fourth derivative in two dimensions: ∂_x⁴ + ∂_y⁴ instead of ∇⁴."""

    def linear(self, torus: Torus) -> torch.Tensor:
        fourth = sum(k.pow(4) for k in torus.wavenumbers)
        return -torus.laplacian - self.viscosity * fourth


def kolmogorov(n: int, viscosity: float) -> NavierStokes:
    return NavierStokes(
        sizes=(n, n),
        length=2 * np.pi,
        viscosity=viscosity,
        drag=0.1,
        forcing="kolmogorov",
        amplitude=1.0,
        wavenumber=4,
        start=PeakedVorticity(peak=2.0, speed=1.0),
        step=5e-3,
    )


# Equation, exponax's stepper, batches, turnover time, and −1 where exponax's vorticity turns the
# other way: ω there is −ω here, and so is its forcing.
CASES = {
    "KS, 512 points": (
        KuramotoSivashinsky(viscosity=0.1),
        lambda e, h: ex.stepper.KuramotoSivashinskyConservative(
            1, e.length, 512, h, fourth_order_scale=e.viscosity, order=4
        ),
        (16, 256),
        2.5,
        1,
    ),
    "KS, 64² points": (
        ByAxis(sizes=(64, 64), length=30.0, viscosity=1.0, step=2e-2, band=(0, 3)),
        lambda e, h: ex.stepper.KuramotoSivashinsky(2, e.length, 64, h, order=4),
        (4, 16),
        5.0,
        1,
    ),
    **{
        f"Navier–Stokes, {n}² points": (
            kolmogorov(n, viscosity),
            lambda e, h: ex.stepper.KolmogorovFlowVorticity(
                2,
                e.length,
                e.sizes[0],
                h,
                diffusivity=e.viscosity,
                drag=-e.drag,
                injection_scale=-e.amplitude,
                order=4,
            ),
            (4, 16),
            2 * np.pi,
            -1,
        )
        for n, viscosity in ((64, 0.1), (128, 0.05))
    },
    "Gray–Scott, 128² points": (
        GrayScott(sizes=(128, 128), length=0.5, step=1.0),
        lambda e, h: ex.stepper.reaction.GrayScott(
            2,
            e.length,
            128,
            h,
            diffusivity_1=e.diffusion_u,
            diffusivity_2=e.diffusion_v,
            feed_rate=e.feed,
            kill_rate=e.kill,
            order=4,
        ),
        (4, 16),
        200.0,
        1,
    ),
}


@pytest.fixture(autouse=True)
def alone():
    """Ours solves on one thread, as in generation, where every core has a process of its own;
    exponax takes all cores."""
    with one_thread():
        yield


def peer(stepper, steps: int) -> Callable:
    """exponax's state after some steps, [B, C, *points] to the same, compiled."""

    @jax.jit
    def run(start):
        return jax.vmap(lambda u: jax.lax.fori_loop(0, steps, lambda _, v: stepper(v), u))(start)

    return run


@pytest.mark.skipif(ex is None, reason="exponax is one of the peers: make benchmark")
@pytest.mark.parametrize("name", CASES)
def test_as_fast_as_exponax_and_equal(name, record, green):
    """Trajectories a second of `STEPS` steps; fields after a turnover time."""
    green("datamodules/pde/test_etdrk4.py")
    equation, stepper_of, batches, until, sign = CASES[name]
    rows, step = [], equation.step
    steps = round(until / step)
    start = Recipe(equation, (), max(batches), 0).draw(range(max(batches)))
    ours = equation.solve(start[:2].to(DEVICE), [until])[:, 0].cpu()
    run, torus = peer(stepper_of(equation, until / steps), steps), equation.torus()
    kept = torus.inverse(torus.forward(start[:2]) * torus.kept)
    theirs = sign * torch.from_numpy(np.array(run(sign * kept.numpy())))
    gap = torus.inverse(torus.forward(ours - theirs) * torus.kept)
    difference = float(gap.abs().max() / theirs.abs().max())
    for batch in batches:
        state = start[:batch].to(DEVICE)
        again = peer(stepper_of(equation, step), STEPS)
        given = jax.numpy.asarray(start[:batch].numpy())
        times = compare(
            {
                "ours": lambda state=state: equation.solve(state, [STEPS * step]),
                "exponax": lambda again=again, given=given: again(given).block_until_ready(),
            },
            rounds=5,
        )
        rate = {who: 1e3 * batch / t["ms"][1] for who, t in times.items()}
        rows.append({"batch": batch, "times": times, "trajectories_per_second": rate})
    record(
        f"solver, {name}",
        {"steps": STEPS, "difference": difference, "until": until, "rows": rows},
    )
    assert difference <= AGREEMENT
    assert max(row["times"]["exponax"]["ratio"][1] for row in rows) >= 0.8


@pytest.mark.parametrize("name", names())
def test_trajectories_a_second(name, record, green):
    """One chunk of a data set at demo scale, in one process."""
    green("test_generate.py")
    recipe = load(name, ["scale=demo"]).recipe
    chunk = recipe.chunks[0]
    times = compare({name: lambda: recipe.solve(chunk, DEVICE)}, rounds=3)
    rate = 1e3 * len(chunk) / times[name]["ms"][1]
    points = list(recipe.equation.shape)
    record(
        f"data set, {name}",
        {"points": points, "batch": len(chunk), "trajectories_per_second": rate, "times": times},
    )


def test_memno_s_256_trajectories(record, green, tmp_path):
    """N = 512, L = 64, T = 2.5, from nothing to a file, with as many processes as cores."""
    green("datamodules/pde/test_kuramoto_sivashinsky.py")
    times = tuple(np.linspace(0, 2.5, 26).tolist())
    result = {}
    for viscosity in (0.075, 0.15):
        equation = KuramotoSivashinsky(viscosity=viscosity, band=(1, 8))
        began = time.perf_counter()
        folder = ensure(Recipe(equation, times, 256, 0).plan(tmp_path))
        seconds = time.perf_counter() - began
        half = Recipe(replace(equation, step=equation.step / 2), times, 256, 0)
        pair = [
            TrajectoryFiles([path / "data.hdf5"]) for path in (folder, ensure(half.plan(tmp_path)))
        ]
        gap = max(float(abs(pair[0].read(i) - pair[1].read(i)).max()) for i in range(256))
        result[f"viscosity {viscosity}"] = {"seconds": seconds, "half_step_difference": gap}
    record("data set, KS of MemNO, 256 trajectories", result)
    for numbers in result.values():
        assert numbers["seconds"] < 20
        assert numbers["half_step_difference"] <= 1e-5
