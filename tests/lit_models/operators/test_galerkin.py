"""The Galerkin transformer: its attention by the book, points in any order, cost, resolution."""

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lit_models.operators.coordinates import Coordinates
from lit_models.operators.galerkin import GalerkinTransformer, LinearAttention
from tests.running import compose_model

POINTS = {1: (16,), 2: (5, 6), 3: (3, 4, 2)}
KINDS = ("galerkin", "fourier")


def make(axes: int = 2, **options) -> GalerkinTransformer:
    return GalerkinTransformer(2, 3, axes, **{"width": 8, "layers": 2, "heads": 2} | options)


def disturb(net: torch.nn.Module) -> None:
    """From what all begins with to weights of ordinary size."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coordinates", ["periodic", None])
def test_attention_is_the_formula(kind, coordinates):
    attention = LinearAttention(8, 2, 2 if coordinates else 0, kind).double()
    disturb(attention)
    x = torch.randn(3, 20, 8).double()
    field = x.transpose(1, 2).unflatten(2, (4, 5))
    position = Coordinates(coordinates).of(field).flatten(2).transpose(1, 2)
    heads = []
    for head in range(2):
        projected = {}
        for name in ("queries", "keys", "values"):
            project = getattr(attention, name)
            rows = slice(4 * head, 4 * head + 4)
            value = x @ project.linear.weight[rows].T + project.linear.bias[rows]
            if name in {"galerkin": ("keys", "values"), "fourier": ("queries", "keys")}[kind]:
                scale, shift = project.norm.scale[head, 0], project.norm.shift[head, 0]
                value = F.layer_norm(value, (4,), scale, shift)
            projected[name] = torch.cat([position, value], dim=-1)
        # As a dense matrix of all pairs of points.
        scores = torch.einsum("bid,bjd->bij", projected["queries"], projected["keys"]) / 20
        heads.append(scores @ projected["values"])
    expected = torch.cat(heads, dim=-1) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x, position), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_points_does_not_matter_but_their_place_does(kind):
    net = make(attention=kind).double()
    disturb(net)
    values, position = torch.randn(2, 30, 2).double(), torch.rand(2, 30, 2).double()
    order = torch.randperm(30)
    y = net.encode(values, position)
    torch.testing.assert_close(net.encode(values[:, order], position[:, order]), y[:, order])
    assert (net.encode(values, position[:, order]) - y).abs().max() > 1e-3


@pytest.mark.parametrize("axes", POINTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spectral", [False, True])
def test_every_parameter_learns(axes, kind, spectral):
    net = make(axes, attention=kind, modes=[1] * axes if spectral else None)
    y = net(torch.randn(2, 2, *POINTS[axes]))
    assert y.shape == (2, 3, *POINTS[axes])
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("modes", [None, (2, 2)])
def test_every_part_changes_the_output(modes):
    net, x = make(modes=modes), torch.randn(1, 2, 6, 6)
    disturb(net)
    with torch.no_grad():
        before = net(x)
        for name, parameter in net.named_parameters():
            kept = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            assert (net(x) - before).abs().max() > 1e-5, name
            parameter.copy_(kept)
        assert torch.equal(net(x), before)


def test_every_point_hears_every_point():
    net, x = make(), torch.randn(1, 2, 6, 6)
    disturb(net)
    other = x.clone()
    other[..., 0, 0] += 1
    assert ((net(other) - net(x)).abs().amax(dim=1) > 1e-6).all()


@pytest.mark.parametrize(
    ("coordinates", "modes"), [("periodic", None), ("closed", None), ("periodic", (4,))]
)
def test_a_smooth_field_has_the_same_answer_at_another_resolution(coordinates, modes):
    """The mean over n points of a smooth periodic function, or a closed one's, hardly changes."""
    net = make(1, coordinates=coordinates, modes=modes).double()
    disturb(net)

    def answer(n: int) -> torch.Tensor:
        points = Coordinates(coordinates).of(torch.zeros(1, 1, n).double())
        x = torch.cat([(2 * torch.pi * points).sin(), (4 * torch.pi * points).cos()], dim=1)
        return net(x)

    last = 0 if coordinates == "periodic" else 1
    coarse, fine, finer = (answer(n + last) for n in (256, 512, 1024))
    error = (fine[..., ::2] - coarse).abs().max()
    assert error < 0.02 * coarse.std()
    # The jump of periodic coordinates, like the ends of a closed axis, leave an error of 1 / n.
    assert (finer[..., ::2] - fine).abs().max() < 0.6 * error


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_linear_in_the_points(kind):
    largest = []
    for n in (1000, 4000):
        with LargestTensor() as seen:
            make(1, attention=kind)(torch.randn(1, 2, n)).sum().backward()
        largest.append(seen.elements)
    assert largest == [16 * 1000, 16 * 4000]  # of the feed-forward network


def test_one_point_and_what_does_not_fit():
    assert make()(torch.randn(1, 2, 1, 1)).isfinite().all()
    with pytest.raises(ValueError, match="multiple of heads"):
        make(heads=3)
    with pytest.raises(ValueError, match="softmax"):
        make(attention="softmax")
    with pytest.raises(ValueError, match="2 axes"):
        make(modes=[4])


def test_its_config_builds_it():
    steady = "task._target_=lit_models.operators.tasks.SteadySolution", "model.inputs=1"
    sizes = "scale=smoke", "model.net.in_channels=1", "model.net.coordinates=closed"
    config, _ = compose_model("galerkin_ns_noise", *steady, *sizes)
    model = instantiate(config, _convert_="all")
    batch = {"input": torch.randn(2, 1, 1, 9, 9), "target": torch.randn(2, 1, 1, 9, 9)}
    assert isinstance(model.net, GalerkinTransformer)
    assert model(batch).shape == batch["target"].shape
