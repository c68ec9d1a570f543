"""Wavenumbers, derivatives, dealiasing and interpolation on periodic boxes."""

import math

import pytest
import torch

from datamodules.pde.torus import Torus, resample, smooth_resample

BOXES = [((16,), (3.0,)), ((15,), (1.0,)), ((16, 9), (3.0, 2.0)), ((8, 9, 10), (1.0, 2.0, 3.0))]


def wave(torus, numbers, phase=0.3):
    angle = phase
    for x, n, length in zip(torus.points, numbers, torus.lengths, strict=True):
        angle = angle + 2 * math.pi * n / length * x
    return angle


@pytest.mark.parametrize(("sizes", "lengths"), BOXES)
def test_derivatives_of_a_wave(sizes, lengths):
    torus = Torus(sizes, lengths)
    numbers = [2, -1, 3][: len(sizes)]
    angle = wave(torus, numbers)
    v = torus.forward(torch.sin(angle))
    torch.testing.assert_close(torus.inverse(v), torch.sin(angle))
    k = [2 * math.pi * n / length for n, length in zip(numbers, lengths, strict=True)]
    for axis, factor in enumerate(k):
        got = torus.inverse(v * torus.gradient[axis])
        torch.testing.assert_close(got, factor * torch.cos(angle), atol=1e-11, rtol=0)
        torch.testing.assert_close(torus.inverse(v * torus.slopes[axis]), got)
    laplacian = -sum(x**2 for x in k) * torch.sin(angle)
    torch.testing.assert_close(torus.inverse(v * torus.laplacian), laplacian, atol=1e-9, rtol=0)


@pytest.mark.parametrize("n", [8, 98])
def test_the_nyquist_mode_has_no_slope(n):
    torus = Torus((n,), (1.0,))
    zigzag = torch.tensor([1.0, -1.0] * (n // 2), dtype=torch.float64)
    assert torus.inverse(torus.forward(zigzag) * torus.gradient[0]).abs().max() < 1e-12


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize("n", [16, 21, 24])
def test_products_of_kept_modes_are_unaliased(n, factors):
    """What a product has in kept modes is what it has on many more points."""
    coarse = Torus((n,), (1.0,), share=1 / (factors + 1))
    fine = Torus((4 * n,), (1.0,))
    u = coarse.inverse(coarse.forward(torch.randn(n, dtype=torch.float64)) * coarse.kept)
    got = coarse.inverse(coarse.forward(u**factors) * coarse.kept)
    exact = fine.forward(resample(u, (4 * n,)) ** factors)
    kept = torch.zeros_like(exact)
    kept[: len(coarse.kept)] = torch.where(coarse.kept, exact[: len(coarse.kept)], 0)
    torch.testing.assert_close(got, fine.inverse(kept)[::4])
    # one mode more and it is not
    highest = int(coarse.modes[0][coarse.kept].max()) + 1
    if (factors + 1) * highest >= n:
        u = u + torch.cos(wave(coarse, [highest]))
        got = coarse.inverse(coarse.forward(u**factors) * coarse.kept)
        exact = fine.forward(resample(u, (4 * n,)) ** factors)
        kept[: len(coarse.kept)] = torch.where(coarse.kept, exact[: len(coarse.kept)], 0)
        assert (factors + 1) * highest == n or (got - fine.inverse(kept)[::4]).abs().max() > 1e-3


def test_outer_modes_are_the_highest_kept_ones():
    torus = Torus((60, 60), (1.0, 1.0))
    assert (torus.kept | ~torus.outer).all()
    numbers = torch.maximum(*torch.broadcast_tensors(*[n.abs() for n in torus.modes]))
    assert numbers[torus.outer].min() == 18
    assert numbers[torus.kept].max() == 19


@pytest.mark.parametrize(
    ("old", "new"), [((16,), (24,)), ((15,), (10,)), ((16, 9), (7, 20)), ((8, 9, 10), (9, 7, 16))]
)
def test_resampling_keeps_the_modes_that_both_have(old, new):
    lengths = (1.0, 2.0, 3.0)[: len(old)]
    before, after = Torus(old, lengths), Torus(new, lengths)
    numbers = [(min(a, b) - 1) // 2 for a, b in zip(old, new, strict=True)]
    field = 0.7 + torch.sin(wave(before, numbers)) + torch.cos(wave(before, [1] * len(old)))
    want = 0.7 + torch.sin(wave(after, numbers)) + torch.cos(wave(after, [1] * len(old)))
    stacked = torch.stack([field, 2 * field])
    torch.testing.assert_close(resample(stacked, new), torch.stack([want, 2 * want]))


def test_resampling_drops_what_fewer_points_cannot_tell():
    torus = Torus((32,), (1.0,))
    for number in (4, 5, 12):
        assert resample(torch.sin(wave(torus, [number])), (8,)).abs().max() < 1e-14
    kept = resample(torch.sin(wave(torus, [3])), (8,))
    torch.testing.assert_close(kept, torch.sin(wave(torus, [3]))[::4])


@pytest.mark.parametrize("axis", [0, 1])
def test_no_axis_nyquist_mode_has_a_slope(axis):
    torus = Torus((8, 6), (1.0, 1.0))
    x, y = torus.points
    field = torch.cos(8 * math.pi * x) + 0 * y if axis == 0 else torch.cos(6 * math.pi * y) + 0 * x
    assert (torus.gradient[axis] * torus.forward(field)).abs().max() < 1e-12
    assert torus.laplacian.abs().gt(0).sum() == torus.laplacian.numel() - 1


def test_resampling_keeps_the_highest_negative_modes():
    for old, new in (((12, 15), (25, 11)), ((9, 9), (18, 27)), ((16, 9), (7, 20))):
        m, n = ((min(a, b) - 1) // 2 for a, b in zip(old, new, strict=True))
        before, after = (
            torch.sin(2 * math.pi * (n * torus.points[1] - m * torus.points[0]) + 0.3)
            for torus in (Torus(old, (1.0, 1.0)), Torus(new, (1.0, 1.0)))
        )
        torch.testing.assert_close(resample(before, new), after, rtol=0, atol=1e-13)


@pytest.mark.parametrize("share", [1 / 3, 1 / 4])
@pytest.mark.parametrize("n", [8, 16, 18, 24, 32, 36])
def test_every_box_has_outer_modes(n, share):
    torus = Torus((n, 64), (1.0, 1.0), share=share)
    highest = torus.modes[0][torus.kept.any(dim=1)].abs().max()
    assert torus.outer[(torus.modes[0].abs() == highest).flatten()].any(dim=1).all()
    assert Torus((n,), (1.0,), share=share).outer.any()


@pytest.mark.parametrize("sizes", [(16,), (15,), (2,), (16, 9), (8, 9, 10), (4, 4)])
def test_resampling_to_the_same_points_is_the_identity(sizes):
    field = torch.randn(3, *sizes, dtype=torch.float64)
    assert torch.equal(resample(field, sizes), field)


@pytest.mark.parametrize(
    ("old", "new", "every"),
    [
        ((8,), (16,), (2,)),
        ((8,), (24,), (3,)),
        ((6, 8), (12, 8), (2, 1)),
        ((6, 8), (6, 24), (1, 3)),
        ((4, 6, 8), (8, 12, 24), (2, 2, 3)),
        ((7, 8), (14, 16), (2, 2)),
    ],
)
def test_more_points_go_through_those_that_were_there(old, new, every):
    """Of any field, so with the Nyquist modes of even axes; the axis that stays keeps its own."""
    field = torch.randn(2, *old, dtype=torch.float64)
    there = (..., *(slice(None, None, n) for n in every))
    fine = resample(field, new)
    torch.testing.assert_close(fine[there], field, rtol=0, atol=1e-13)
    assert fine.square().mean() <= field.square().mean()


def test_more_points_of_a_zigzag_are_the_cosine_through_it():
    zigzag = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    x = torch.arange(20, dtype=torch.float64) / 20
    torch.testing.assert_close(resample(zigzag, (20,)), torch.cos(8 * math.pi * x))


def test_an_axis_that_stays_keeps_its_nyquist_mode_while_another_is_thinned():
    zigzag = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * torch.arange(16, dtype=torch.float64) / 16)
    for field, sizes, want in (
        (zigzag[:, None] * wave, (8, 4), zigzag[:, None] * wave[::4]),
        (wave[:, None] * zigzag, (4, 8), wave[::4, None] * zigzag),
    ):
        torch.testing.assert_close(resample(field, sizes), want, rtol=0, atol=1e-13)


def test_a_solver_starts_without_nyquist_modes():
    zigzag = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    for n in (8, 16):
        assert smooth_resample(zigzag, (n,)).abs().max() < 1e-14
