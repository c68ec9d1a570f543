"""Windows of trajectories: which points, frames, samples, and in which units."""

from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
import torch

from datamodules.base import SPLITS
from datamodules.errors import DataError
from datamodules.pde import views
from datamodules.pde.compressible import CompressibleNavierStokes
from datamodules.pde.darcy import Darcy
from datamodules.pde.generation import Generation
from datamodules.pde.kuramoto_sivashinsky import KuramotoSivashinsky
from datamodules.pde.module import PDEDataModule
from datamodules.pde.views import ObservationNoise, Sampling, Window

EQUATION = KuramotoSivashinsky(sizes=(32,), length=16.0, viscosity=0.3, step=0.02)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def grouped(**options):
    """Options of a data module, those of its groups put into these."""
    kinds = {"generate": Generation, "window": Window, "sampling": Sampling}
    for name, kind in kinds.items():
        own = {f.name: options.pop(f.name) for f in fields(kind) if f.name in options}
        options |= {name: kind(**own)} if own else {}
    return options


def make(cache, **options):
    defaults = {"samples": (6, 3, 2), "last_time": 0.5, "frames": 6, "processes": 1}
    data = PDEDataModule(EQUATION, cache_dir=cache, **grouped(**defaults | options))
    data.prepare_data()
    data.setup()
    return data


def whole(data, sample):
    return torch.from_numpy(data._files.read(sample))


def test_one_step_windows_and_rollouts(cache):
    data = make(cache, normalise=False)
    assert len(data.train_dataset) == 6 * 5
    assert len(data.val_dataset) == 3
    item = data.train_dataset[7]
    states = whole(data, item["sample"])
    assert item["first"] == 2
    assert torch.equal(item["input"], states[2:3])
    assert torch.equal(item["target"], states[3:4])
    rollout = data.test_dataset[1]
    assert torch.equal(rollout["input"], whole(data, 1)[:1])
    assert torch.equal(rollout["target"], whole(data, 1)[1:])
    long = make(cache, history=2, horizon=3, rollout=2, normalise=False)
    assert len(long.train_dataset) == 6 * 2
    assert long.train_dataset[1]["input"].shape == (2, 1, 32)
    assert torch.equal(
        long.train_dataset[1]["target"], whole(long, long.train_dataset[1]["sample"])[3:6]
    )
    assert long.val_dataset[0]["target"].shape == (2, 1, 32)
    assert len(long.val_dataset) == 3 * 3


def test_splits_share_no_trajectory_and_more_training_leaves_the_test(cache):
    data = make(cache)
    chosen = [data.train_dataset.samples, data.val_dataset.samples, data.test_dataset.samples]
    assert sorted(i for samples in chosen for i in samples) == list(range(11))
    more = make(cache, samples=(9, 3, 2), normalise=False)
    same = make(cache, normalise=False)
    for i in range(2):
        assert torch.equal(more.test_dataset[i]["target"], same.test_dataset[i]["target"])
    limited = make(cache, limit=2)
    assert list(limited.train_dataset.samples) == [5, 8]


def test_normalised_by_training_trajectories_alone(cache):
    data = make(cache)
    rows = torch.stack([whole(data, i) for i in data.train_dataset.samples]).double()
    assert data.normaliser.mean.item() == pytest.approx(rows.mean().item(), abs=1e-6)
    assert data.normaliser.std.item() == pytest.approx(rows.std(correction=0).item(), rel=1e-5)
    item = data.test_dataset[0]
    back = data.normaliser.inverse(item["target"])
    torch.testing.assert_close(back, whole(data, 0)[1:])
    everything = torch.stack([whole(data, i) for i in range(11)]).double()
    assert abs(everything.std(correction=0) - rows.std(correction=0)) > 1e-4


def test_fewer_points_and_frames(cache):
    point = make(cache, space_stride=4, time_stride=2, normalise=False)
    item = point.test_dataset[0]
    assert torch.equal(item["target"], whole(point, 0)[2::2, :, ::4])
    spectral = make(cache, space_stride=4, method="spectral", normalise=False)
    states = spectral.test_dataset[0]["target"]
    modes = torch.fft.rfft(whole(spectral, 0)[1:].double())[..., :4] / 4
    torch.testing.assert_close(torch.fft.rfft(states.double())[..., :4], modes, atol=1e-5, rtol=0)
    assert torch.fft.rfft(states.double())[..., 4].abs().max() < 1e-6
    assert [len(x) for x in point.coordinates] == [8]


def test_all_points_seen_by_modes_are_the_states_themselves(cache):
    """Also the Nyquist mode of an even number of points, which a box has."""
    spectral = make(cache, method="spectral", normalise=False)
    assert torch.equal(spectral.test_dataset[0]["target"], whole(spectral, 0)[1:])


def test_noise_is_of_the_frame_and_not_of_the_window(cache):
    clean = make(cache, history=2, normalise=False)
    noisy = make(cache, history=2, normalise=False, noise=ObservationNoise(0.1, target="always"))
    first, second = noisy.train_dataset[0], noisy.train_dataset[1]
    assert torch.equal(first["input"][1], second["input"][0])
    assert torch.equal(first["target"][0], second["input"][1])
    added = [
        noisy.train_dataset[i]["input"] - clean.train_dataset[i]["input"]
        for i in range(len(clean.train_dataset))
    ]
    assert torch.stack(added).std() == pytest.approx(0.1 * clean.normaliser.std.item(), rel=0.1)
    assert torch.equal(clean.normaliser.std, noisy.normaliser.std)


@pytest.mark.parametrize("which", ["given", "target"])
@pytest.mark.parametrize(
    ("when", "noisy"), [("never", set()), ("training", {"train"}), ("always", set(SPLITS))]
)
def test_fields_bear_noise_where_and_when_they_are_to(cache, which, when, noisy):
    noise = ObservationNoise(0.1, **{"given": "never", "target": "never"} | {which: when})
    observed, plain = make(cache, normalise=False, noise=noise), make(cache, normalise=False)
    for split in SPLITS:
        got, want = (getattr(data, f"{split}_dataset")[0] for data in (observed, plain))
        there, other = ("input", "target") if which == "given" else ("target", "input")
        assert torch.equal(got[there], want[there]) is (split not in noisy)
        assert torch.equal(got[other], want[other])


def test_of_several_strengths_every_sample_bears_one_in_turn(cache):
    strengths = [0.0, 0.01, 1.0]
    noisy = make(cache, horizon=None, normalise=False, noise=ObservationNoise(strengths))
    clean = make(cache, horizon=None, normalise=False)
    std, counts = clean.normaliser.std.item(), [0, 0, 0]
    for got, want in zip(noisy.train_dataset, clean.train_dataset, strict=True):
        of = got["sample"] % 3
        counts[of] += 1
        added = (got["input"] - want["input"]).std().item()
        assert added == pytest.approx(strengths[of] * std, rel=0.5, abs=1e-6)
    assert max(counts) - min(counts) <= 1


def test_batches_are_the_same_for_any_number_of_workers_and_resume(cache):
    def batches(**options):
        return [b["input"] for b in make(cache, batch_size=7, **options).train_dataloader()]

    first = batches()
    assert sum(map(len, first)) == 30
    for got, want in zip(batches(num_workers=1), first, strict=True):
        assert torch.equal(got, want)
    data = make(cache, batch_size=7)
    loader = iter(data.train_dataloader())
    next(loader)
    state = data.state_dict()
    resumed = make(cache, batch_size=7)
    resumed.load_state_dict(state)
    rest = [batch["input"] for batch in resumed.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(rest, first[1:], strict=True))


def test_a_pdebench_file_is_read_unchanged(cache, tmp_path):
    rng = np.random.default_rng(0)
    u = rng.standard_normal((10, 6, 8, 8)).astype(np.float32)
    with h5py.File(tmp_path / "flow.hdf5", "w") as file:
        file["tensor"] = u
    data = PDEDataModule(
        source="file", data_dir=tmp_path, file="flow.hdf5", samples=(6, 2, 2), normalise=False
    )
    data.prepare_data()
    data.setup()
    assert torch.equal(data.test_dataset[1]["target"], torch.from_numpy(u[1, 1:, None]))
    assert data.provenance["source"] == "file"
    assert data.provenance["samples"] == {"train": 30, "val": 2, "test": 2}


def test_darcy_s_inputs_are_given(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "darcy.hdf5", "w") as file:
        file["nu"] = nu = rng.standard_normal((5, 8, 8)).astype(np.float32)
        file["tensor"] = u = rng.standard_normal((5, 1, 8, 8)).astype(np.float32) + 3
    data = PDEDataModule(source="file", data_dir=tmp_path, file="darcy.hdf5", samples=(3, 1, 1))
    data.setup()
    item = data.test_dataset[0]
    assert len(data.train_dataset) == 3
    got = data.input_normaliser.inverse(item["input"]), data.normaliser.inverse(item["target"])
    torch.testing.assert_close(got[0], torch.from_numpy(nu[:1, None]))
    torch.testing.assert_close(got[1], torch.from_numpy(u[:1]))


def test_fingerprints_tell_views_apart(cache):
    views = [{}, {"space_stride": 2}, {"noise": ObservationNoise(0.1)}, {"history": 2}, {"seed": 1}]
    assert len({make(cache, **view).fingerprint for view in views}) == len(views)
    assert make(cache).fingerprint == make(cache).fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "data.window.horizon is a positive whole number or null, got 0"),
        ({"rollout": 0}, "data.window.rollout is a positive whole number or null, got 0"),
        ({"history": 1.5}, "data.window.history is a positive whole number, got 1.5"),
        ({"frames": 0}, "data.generate.frames is a positive whole number, got 0"),
        ({"first_time": 1.0, "last_time": 1.0}, "data.generate.last_time later, got 1.0 and 1.0"),
        ({"first_time": -1.0}, "data.generate.first_time is 0 or more"),
        ({"last_time": "late"}, "data.generate.last_time later, got 0.0 and late"),
        ({"seed": 0.5}, "data.generate.seed is 0 or more, got 0.5"),
        ({"time_stride": 0}, "data.sampling.time_stride is a positive whole number, got 0"),
        ({"refinements": 2}, "data.sampling.refinements are divisors .* got 2 and 1"),
        ({"window": 4}, "data.window is a group of options, got 4: set data.window.history or "),
        ({"processes": 0}, "data.generate.processes is a positive whole number or null"),
        ({"limit": 0}, "data.limit is a positive whole number or null"),
        ({"seed": -1}, "data.generate.seed is 0 or more, got -1"),
        ({"samples": 5}, "three positive numbers .* got 5"),
        ({"noise": 0.1}, "data.noise is null or a .*ObservationNoise with its std, got 0.1"),
        ({"space_stride": 5}, "data.sampling.space_stride=5 does not divide 32 points"),
        ({"space_stride": 40, "method": "spectral"}, "leaves a single point of 32"),
        ({"history": 6}, "windows need 7"),
        ({"samples": (1, 0, 1)}, "three positive numbers"),
        ({"method": "cubic"}, "point or spectral"),
        ({"source": "official"}, "data.source=official needs data.data_dir"),
        ({"source": "file"}, "data.source=file needs data.data_dir"),
        ({"source": "file", "file": "x.hdf5"}, "data.source=file needs data.data_dir"),
        ({"file": "x.hdf5"}, "generated data have none"),
        ({"source": "nowhere"}, "generated, with an equation"),
    ],
)
def test_what_does_not_fit_is_said(cache, options, message):
    with pytest.raises(DataError, match=message):
        make(cache, **options)


def test_too_few_trajectories_and_missing_files_are_said(tmp_path):
    data = PDEDataModule(source="file", data_dir=tmp_path, file="none.hdf5")
    with pytest.raises(DataError, match="There is no HDF5 file"):
        data.prepare_data()
    with h5py.File(tmp_path / "few.hdf5", "w") as file:
        file["tensor"] = np.zeros((3, 4, 8), np.float32)
    data = PDEDataModule(source="file", data_dir=tmp_path, file="few.hdf5", samples=(2, 1, 1))
    with pytest.raises(DataError, match="has 3 trajectories"):
        data.setup()


@pytest.mark.parametrize(
    "equation", [Darcy(15, 29), CompressibleNavierStokes(64, boundary="outflow")]
)
def test_fourier_modes_of_what_is_not_periodic_are_refused(equation):
    with pytest.raises(DataError, match=r"data.sampling.method=spectral is for periodic fields"):
        PDEDataModule(equation, sampling=Sampling(method="spectral"))
    stride = 7 if isinstance(equation, Darcy) else 8
    PDEDataModule(equation, sampling=Sampling(space_stride=stride))


def test_any_stride_may_leave_points_that_are_not_periodic():
    data = PDEDataModule(Darcy(15, 29), sampling=Sampling(space_stride=4))
    assert [x.tolist() for x in data.coordinates] == [[0, 4 / 14, 8 / 14, 12 / 14]] * 2


def test_spectral_points_are_where_coordinates_say(cache):
    """5 does not divide 32: 7 points, equally spaced, each with the interpolant's value."""
    data = make(cache, space_stride=5, method="spectral", normalise=False)
    (x,) = data.coordinates
    assert x.tolist() == pytest.approx([i * 16 / 7 for i in range(7)])
    v = torch.fft.rfft(whole(data, 0)[1:, 0].double()) / 32
    k = 2j * torch.pi / 16 * torch.arange(1, 4).double()
    want = v[:, :1].real + 2 * (v[:, 1:4] @ torch.exp(k[:, None] * x)).real
    torch.testing.assert_close(data.test_dataset[0]["target"][:, 0].double(), want)
    centres = PDEDataModule(
        CompressibleNavierStokes(64), sampling=Sampling(space_stride=2, method="spectral")
    )
    assert centres.coordinates[0][:2].tolist() == pytest.approx([1 / 64, 1 / 64 + 1 / 16])


def test_statistics_are_those_of_all_frames_read_some_at_a_time(cache, monkeypatch):
    want = make(cache, time_stride=2).normaliser
    monkeypatch.setattr(views, "BLOCK_VALUES", 64)
    counts, states = [], views.Sampling.states

    def read(self, files, sample, first, count):
        counts.append(count)
        return states(self, files, sample, first, count)

    monkeypatch.setattr(views.Sampling, "states", read)
    got = make(cache, time_stride=2).normaliser
    assert counts == [2, 1] * 11
    torch.testing.assert_close((got.mean, got.std), (want.mean, want.std))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("sample", "name"),
    [
        (0, "Test trajectory 0 of .*a.hdf5"),
        (1, "Validation trajectory 1 of .*a.hdf5"),
        (4, "Training trajectory 1 of .*b.hdf5"),
    ],
)
def test_trajectories_that_are_not_finite_are_named_before_training(tmp_path, sample, name, value):
    for file, first, count in (("a", 0, 3), ("b", 3, 2)):
        with h5py.File(tmp_path / f"{file}.hdf5", "w") as out:
            u = np.ones((5, 4, 8), np.float32)
            u[sample, 3, 1] = value
            out["tensor"] = u[first : first + count]
    data = PDEDataModule(source="file", data_dir=tmp_path, file=".", samples=(3, 1, 1))
    with pytest.raises(DataError, match=f"{name} has NaN or infinite values: remove"):
        data.setup()


def test_inputs_that_are_not_finite_are_named_before_training(tmp_path):
    with h5py.File(tmp_path / "darcy.hdf5", "w") as file:
        file["tensor"], nu = np.ones((3, 1, 8, 8)), np.ones((3, 8, 8))
        nu[1, 2, 2] = np.nan
        file["nu"] = nu
    data = PDEDataModule(source="file", data_dir=tmp_path, file="darcy.hdf5", samples=(1, 1, 1))
    with pytest.raises(DataError, match="Validation trajectory 1 of"):
        data.setup()


def test_points_that_only_refinements_see_are_checked(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["tensor"] = np.ones((3, 4, 16), np.float32)
        file["tensor"][0, 2, 2] = np.nan
    files = {"source": "file", "data_dir": tmp_path, "file": "a.hdf5", "samples": (1, 1, 1)}
    PDEDataModule(sampling=Sampling(4), **files).setup()
    with pytest.raises(DataError, match="Test trajectory 0 of"):
        PDEDataModule(sampling=Sampling(4, refinements=(2,)), **files).setup()


def test_windows_that_cannot_fit_are_refused_before_anything_is_solved(tmp_path):
    data = PDEDataModule(replace(EQUATION, viscosity=0.31), cache_dir=tmp_path, window=Window(9))
    with pytest.raises(DataError, match="windows need 10"):
        data.prepare_data()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": -1.0},
        {"std": float("nan")},
        {"std": 0.1, "seed": -1},
        {"std": []},
        {"std": [0.1, -1]},
    ],
)
def test_noise_without_sense_is_refused(wrong):
    with pytest.raises(DataError, match="std and a seed of 0 or more"):
        ObservationNoise(**wrong)


@pytest.mark.parametrize("which", ["given", "target"])
def test_noise_at_unknown_times_is_refused(which):
    with pytest.raises(DataError, match=f"{which} is never, training, always, got True"):
        ObservationNoise(0.1, **{which: True})


@pytest.mark.parametrize("source", ["official", "file"])
def test_files_do_not_say_where_their_points_are(tmp_path, source):
    data = PDEDataModule(source=source, data_dir=tmp_path, file="a.hdf5")
    with pytest.raises(DataError, match=f"data.source={source} does not say where points are"):
        _ = data.coordinates


def test_refinements_are_the_test_at_more_points(cache):
    data = make(cache, space_stride=4, refinements=(2, 4))
    assert list(data.refined) == ["2x", "4x"]
    base, *finer = data.test_dataloader()
    (item,) = base
    assert item["input"].shape == (2, 1, 1, 8)
    for factor, loader in zip((2, 4), finer, strict=True):
        (fine,) = loader
        assert fine["target"].shape == (2, 5, 1, 8 * factor)
        assert torch.equal(fine["target"][..., ::factor], item["target"])
        assert torch.equal(fine["sample"], item["sample"])
    assert make(cache, space_stride=4).fingerprint != data.fingerprint


@pytest.mark.parametrize("refinements", [(3,), (1,), (8,)])
def test_refinements_divide_the_stride(refinements):
    with pytest.raises(DataError, match=r"divisors of data\.sampling\.space_stride above 1"):
        Sampling(space_stride=4, refinements=refinements)
