"""Files of PDEBench and The Well, fabricated here as their papers describe them."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.pde import layouts
from datamodules.pde.layouts import TrajectoryFiles, open_layout

RNG = np.random.default_rng(0)


def fields(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_pdebench_one_field(tmp_path):
    """1-D advection and Burgers: `tensor` [S, T, X], one time more than frames."""
    u = fields(5, 4, 8)
    with h5py.File(tmp_path / "1D_Burgers.hdf5", "w") as file:
        file["tensor"] = u
        file["x-coordinate"] = np.linspace(0, 1, 8)
        file["t-coordinate"] = np.linspace(0, 2, 5)
    data = TrajectoryFiles([tmp_path / "1D_Burgers.hdf5"])
    assert (len(data), data.frames, data.channels, data.shape) == (5, 4, ["u"], (8,))
    assert data.times.tolist() == [0, 0.5, 1, 1.5]
    assert data.inputs == []
    np.testing.assert_array_equal(data.read(3, slice(1, 3), 2), u[3, 1:3, None, ::2])


def test_pdebench_compressible_flow(tmp_path):
    """2-D: one dataset a field, [S, T, X, Y], and coordinates that are no fields."""
    names = ("density", "pressure", "Vx", "Vy")
    flow = {name: fields(3, 4, 6, 5) for name in names}
    with h5py.File(tmp_path / "2D_CFD.hdf5", "w") as file:
        for name, field in flow.items():
            file[name] = field
        for axis, n in (("x", 6), ("y", 5), ("t", 5)):
            file[f"{axis}-coordinate"] = np.linspace(0, 1, n)
    data = TrajectoryFiles([tmp_path / "2D_CFD.hdf5"])
    assert data.channels == sorted(names)
    assert data.shape == (6, 5)
    want = np.stack([flow[name][2] for name in data.channels], axis=1)
    np.testing.assert_array_equal(data.read(2), want)


def test_pdebench_darcy(tmp_path):
    u, nu = fields(3, 1, 6, 6), fields(3, 6, 6)
    with h5py.File(tmp_path / "darcy.hdf5", "w") as file:
        file["tensor"], file["nu"] = u, nu
    data = TrajectoryFiles([tmp_path / "darcy.hdf5"])
    assert (len(data), data.frames, data.channels, data.inputs) == (3, 1, ["u"], ["nu"])
    np.testing.assert_array_equal(data.read(1), u[1][:, None])
    np.testing.assert_array_equal(data.read_input(1, 3), nu[1, None, ::3, ::3])


def test_pdebench_groups(tmp_path):
    """2-D diffusion–reaction: one group a sample, channels last."""
    u = fields(3, 4, 6, 5, 2)
    with h5py.File(tmp_path / "2D_diff-react.h5", "w") as file:
        for i, sample in enumerate(u):
            file[f"{i:04d}/data"] = sample
            file[f"{i:04d}/grid/t"] = np.linspace(0, 1, 4)
    data = TrajectoryFiles([tmp_path / "2D_diff-react.h5"])
    assert (len(data), data.frames, data.shape) == (3, 4, (6, 5))
    want = np.moveaxis(u[1, 2:, ::2, ::2], -1, 1)
    np.testing.assert_array_equal(data.read(1, slice(2, 4), 2), want)


def test_the_well(tmp_path):
    """Scalars, vectors and tensors; what does not vary is repeated."""
    scalar, constant, vector, tensor = (
        fields(2, 3, 6, 5),
        fields(6),
        fields(2, 3, 6, 5, 2),
        fields(2, 3, 6, 5, 2, 2),
    )
    with h5py.File(tmp_path / "well.hdf5", "w") as file:
        file.attrs["n_trajectories"] = 2
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        dimensions["time"] = np.arange(3.0)
        dimensions["x"], dimensions["y"] = np.arange(6.0), np.arange(5.0)
        groups = [file.create_group(f"t{order}_fields") for order in range(3)]
        for group, names in zip(groups, (["density", "wall"], ["velocity"], ["D"]), strict=True):
            group.attrs["field_names"] = names
        groups[0]["density"], groups[0]["wall"] = scalar, constant
        groups[0]["wall"].attrs.update(
            dim_varying=[True, False], sample_varying=False, time_varying=False
        )
        groups[1]["velocity"], groups[2]["D"] = vector, tensor
    data = TrajectoryFiles([tmp_path / "well.hdf5"])
    assert data.channels == [
        *("density", "wall", "velocity_x", "velocity_y", "D_xx", "D_xy", "D_yx", "D_yy")
    ]
    assert (len(data), data.frames, data.shape) == (2, 3, (6, 5))
    got = data.read(1, slice(0, 3, 2), 2)
    assert got.shape == (2, 8, 3, 3)
    np.testing.assert_array_equal(got[:, 0], scalar[1, ::2, ::2, ::2])
    np.testing.assert_array_equal(got[:, 1], np.broadcast_to(constant[::2, None], (2, 3, 3)))
    np.testing.assert_array_equal(got[:, 3], vector[1, ::2, ::2, ::2, 1])
    np.testing.assert_array_equal(got[:, 6], tensor[1, ::2, ::2, ::2, 1, 0])


def test_files_are_joined_and_handed_to_processes(tmp_path):
    u = fields(5, 4, 8)
    for name, part in (("a", u[:2]), ("b", u[2:])):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["tensor"] = part
    data = TrajectoryFiles(sorted(tmp_path.glob("*.hdf5")))
    assert len(data) == 5
    for copy in (data, pickle.loads(pickle.dumps(data))):
        for i in range(5):
            np.testing.assert_array_equal(copy.read(i)[:, 0], u[i])


def test_what_is_no_such_file_is_said(tmp_path):
    with pytest.raises(DataError, match="Cannot read"):
        open_layout(tmp_path / "missing.hdf5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(DataError, match="Cannot read"):
        open_layout(tmp_path / "text.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(DataError, match="weights, which is neither"):
        open_layout(tmp_path / "other.hdf5")
    for name, n in (("a", 8), ("b", 9)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["tensor"] = fields(2, 3, n)
    with pytest.raises(DataError, match="other fields, points or frames"):
        TrajectoryFiles([tmp_path / "a.h5", tmp_path / "b.h5"])


def test_a_fork_opens_the_files_for_itself(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["tensor"] = u = fields(5, 4, 8)
    data = TrajectoryFiles([tmp_path / "a.hdf5"])
    opened, queue = data.layouts, multiprocessing.get_context("fork").SimpleQueue()

    def read() -> None:
        opens = []
        original = layouts.open_layout
        monkeypatch.setattr(
            layouts, "open_layout", lambda path: (opens.append(path), original(path))[1]
        )
        queue.put((data.read(3), data.layouts is opened, len(opens)))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    states, shared, opens = queue.get()
    process.join()
    np.testing.assert_array_equal(states[:, 0], u[3])
    assert not shared
    assert opens == 1
    assert data.layouts is opened


def test_samples_of_groups_are_in_the_order_of_their_numbers(tmp_path):
    u = fields(12, 2, 6, 1)
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for i, sample in enumerate(u):
            file[f"{i}/data"], file[f"{i}/grid/t"] = sample, np.arange(2.0)
    data = TrajectoryFiles([tmp_path / "groups.h5"])
    np.testing.assert_array_equal(data.read(2)[:, 0], u[2, ..., 0])


def test_damage_that_is_found_while_reading_is_said(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("tensor", data=fields(5, 4, 64), chunks=(1, 4, 64), fletcher32=True)
        place = file["tensor"].id.get_chunk_info(3).byte_offset
    with (tmp_path / "a.hdf5").open("r+b") as file:
        file.seek(place)
        file.write(b"damage")
    data = TrajectoryFiles([tmp_path / "a.hdf5"])
    data.read(2)
    with pytest.raises(DataError, match=r"Cannot read trajectory 3 of .*a.hdf5 .*is damaged"):
        data.read(3)
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for i in range(2):
            file[f"{i}/grid/t"] = np.arange(2.0)
        file["0/data"] = fields(2, 6, 1)
    data = TrajectoryFiles([tmp_path / "groups.h5"])
    with pytest.raises(DataError, match=r"Cannot read trajectory 1 of .*groups.h5"):
        data.read(1)


def written(path, **datasets):
    """A file of datasets, "x-coordinate" written as x."""
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[f"{name}-coordinate" if name in "xyz" else name] = values
    return path


def test_components_beside_a_scalar_are_channels(tmp_path):
    density, velocity = fields(3, 4, 6, 5), fields(3, 4, 6, 5, 2)
    path = written(tmp_path / "a.h5", density=density, velocity=velocity)
    data = TrajectoryFiles([path])
    assert data.channels == ["density", "velocity_x", "velocity_y"]
    assert (data.shape, data.frames) == ((6, 5), 4)
    got = data.read(1, slice(1, 4, 2), 2)
    np.testing.assert_array_equal(got[:, 0], density[1, 1::2, ::2, ::2])
    np.testing.assert_array_equal(got[:, 1:], np.moveaxis(velocity[1, 1::2, ::2, ::2], -1, 1))


@pytest.mark.parametrize(
    ("name", "names", "channels"),
    [
        ("velocity", None, ["velocity_x", "velocity_y"]),
        ("tensor", None, ["u0", "u1"]),
        ("tensor", ["p", "q"], ["p", "q"]),
    ],
)
def test_coordinates_tell_axes_from_components(tmp_path, name, names, channels):
    flow, axes = fields(3, 4, 6, 5, 2), {"x": np.arange(6.0), "y": np.arange(5.0)}
    path = written(tmp_path / "a.h5", **{name: flow}, **axes)
    if names:
        with h5py.File(path, "a") as file:
            file.attrs["channels"] = names
    data = TrajectoryFiles([path])
    assert (data.channels, data.shape) == (channels, (6, 5))
    np.testing.assert_array_equal(data.read(2), np.moveaxis(flow[2], -1, 1))


def test_components_of_tensors_and_single_ones(tmp_path):
    stress, tracer = fields(2, 3, 6, 5, 2, 2), fields(2, 3, 6, 5, 1)
    path = written(tmp_path / "a.h5", stress=stress, tracer=tracer, x=np.arange(6), y=np.arange(5))
    data = TrajectoryFiles([path])
    assert data.channels == ["stress_xx", "stress_xy", "stress_yx", "stress_yy", "tracer"]
    np.testing.assert_array_equal(data.read(0)[:, 2], stress[0, ..., 1, 0])
    np.testing.assert_array_equal(data.read(0)[:, 4], tracer[0, ..., 0])


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"velocity": fields(3, 4, 6, 5, 2)}, "add a dataset x-coordinate"),
        ({"u": fields(3, 4, 6), "v": fields(3, 4, 7)}, "differ in shape"),
        ({"u": fields(3, 4, 6), "v": fields(3, 5, 6, 2)}, "differ in shape"),
        ({"tensor": fields(3, 1, 6, 6), "nu": fields(3, 6, 6, 1)}, "nu of .* has the shape"),
        ({"u": fields(3, 4, 6).astype(np.complex64)}, "complex numbers.*two datasets"),
        ({"tensor": fields(3, 4, 6), "nu": fields(3, 6, 6) * 1j}, "/nu of .* complex numbers"),
    ],
)
def test_fields_that_cannot_be_told_apart_or_are_not_real_are_refused(tmp_path, datasets, message):
    with pytest.raises(DataError, match=message) as caught:
        open_layout(written(tmp_path / "a.h5", **datasets))
    assert "neither" not in str(caught.value)


def test_as_many_names_as_components(tmp_path):
    path = written(tmp_path / "a.h5", tensor=fields(3, 4, 6, 5, 2), x=np.arange(6), y=np.arange(5))
    with h5py.File(path, "a") as file:
        file.attrs["channels"] = ["u", "v", "w"]
    with pytest.raises(DataError, match=r"names u, v, w, tensor has 2 components"):
        open_layout(path)


def test_complex_numbers_are_refused_in_every_layout(tmp_path):
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        file["0/data"], file["0/grid/t"] = fields(4, 6, 1) * 1j, np.arange(4.0)
    with h5py.File(tmp_path / "well.h5", "w") as file:
        file.attrs["n_trajectories"] = 2
        file.create_group("dimensions").attrs["spatial_dims"] = ["x"]
        file["dimensions/time"], file["dimensions/x"] = np.arange(3.0), np.arange(6.0)
        file["t0_fields/psi"] = fields(2, 3, 6) * 1j
    for name in ("groups", "well"):
        with pytest.raises(DataError, match="complex numbers"):
            open_layout(tmp_path / f"{name}.h5")


def test_packed_numbers_are_unpacked(tmp_path):
    packed = RNG.integers(-999, 999, (3, 4, 8), np.int16)
    packed[1, 2, 3] = -32768
    path = written(tmp_path / "a.h5", tensor=packed)
    plain = TrajectoryFiles([path]).read(0)[:, 0]
    np.testing.assert_array_equal(plain, packed[0])
    with h5py.File(path, "a") as file:
        file["tensor"].attrs.update(scale_factor=np.array([0.01]), add_offset=5.0)
        file["tensor"].attrs["_FillValue"] = np.int16(-32768)
    data = TrajectoryFiles([path])
    np.testing.assert_allclose(data.read(0)[:, 0], packed[0] * 0.01 + 5, rtol=1e-14)
    got = data.read(1)[:, 0]
    assert np.isnan(got[2, 3])
    assert np.isnan(got).sum() == 1


def test_numbers_of_another_byte_order_are_read(tmp_path):
    path = written(tmp_path / "a.h5", tensor=fields(2, 3, 8).astype(">f4"))
    assert TrajectoryFiles([path]).read(0).dtype == np.float32
