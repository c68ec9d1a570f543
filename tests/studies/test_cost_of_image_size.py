"""What a step on an image costs."""

from functools import partial

from lit_models.images.vit import ViT
from studies.cost_of_image_size import measure


def test_a_step_is_timed_at_every_size():
    net = partial(ViT, width=8, heads=2, hidden=16, layers=1, grid=None)
    found = measure(net, [2, 4, 8], seed=0)["test"]
    names = {f"{what}_{side}" for what in ("seconds", "mib") for side in (2, 4, 8)}
    assert found.keys() == names | {"slope_seconds", "slope_mib"}
    assert all(found[name] > 0 for name in names)


def test_attention_without_tiles_is_quadratic_in_patches(monkeypatch):
    """A stand-in whose steps take 16 and 256 times as long: slope 2 against the patches."""
    times = iter([1.0, 16.0, 256.0])
    monkeypatch.setattr("timeit.repeat", lambda *_, **__: [next(times)])
    net = partial(ViT, width=8, heads=2, hidden=16, layers=1, grid=None)
    assert abs(measure(net, [2, 4, 8], seed=0)["test"]["slope_seconds"] - 2) < 1e-9
