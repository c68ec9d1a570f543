"""kernels.spectral_conv against torch.fft, a direct convolution, single waves, and itself."""

import itertools
import math

import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from kernels.spectral_conv import spectral_conv
from kernels.spectral_conv.basis import kept
from kernels.spectral_conv.cost import faster_form

forms = pytest.mark.parametrize("form", ["dft", "fft"])
kinds = pytest.mark.parametrize("kind", ["dense", "depthwise", "factorised"])
sizes = pytest.mark.parametrize(
    ("points", "modes"),
    [
        ((16,), (5,)),
        ((15,), (7,)),
        ((2,), (1,)),
        ((12, 10), (3, 4)),
        ((9, 14), (4, 7)),
        ((6, 7, 8), (3, 2, 3)),
    ],
    ids=str,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_weight(kind: str, modes: tuple[int, ...], channels: int, outputs: int):
    """A random weight; `modes` has m of every axis."""
    if kind == "factorised":
        return [normal(m, channels, 2, outputs, seed=i) for i, m in enumerate(modes)]
    both = (*(2 * m for m in modes[:-1]), modes[-1])
    return (
        normal(*both, 2, channels) if kind == "depthwise" else normal(*both, channels, 2, outputs)
    )


def kept_modes(points: tuple[int, ...], modes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The wavenumbers of every entry of a joint weight, in its order."""
    last = len(points) - 1
    counts = [m if axis == last else 2 * m for axis, m in enumerate(modes)]
    return list(itertools.product(*(kept(K, axis == last) for axis, K in enumerate(counts))))


def by_torch_fft(x: Tensor, weight: Tensor, modes: tuple[int, ...]) -> Tensor:
    """irfftn(W · rfftn(x)), W zero where nothing is kept."""
    axes, points = tuple(range(2, x.ndim)), x.shape[2:]
    X = torch.fft.rfftn(x, dim=axes)
    full = torch.zeros(*X.shape[2:], *weight.shape[-3::2], dtype=torch.complex128)
    w = torch.complex(*weight.unbind(-2)).flatten(0, -3)
    for number, k in enumerate(kept_modes(points, modes)):
        full[tuple(i % n for i, n in zip(k, (*points[:-1], points[-1])))] = w[number]
    Y = (X.movedim(0, -1).movedim(0, -1).unsqueeze(-1) * full.unsqueeze(len(axes))).sum(-2)
    return torch.fft.irfftn(Y.movedim(-1, 0).movedim(-1, 0), s=points, dim=axes)


def by_direct_sum(x: Tensor, weight: Tensor, modes: tuple[int, ...]) -> Tensor:
    """A circular convolution, shift by shift, with the field that the weight is the spectrum of."""
    points = x.shape[2:]
    w = torch.complex(*weight.unbind(-2)).flatten(0, -3)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in points), indexing="ij"))
    kernel = torch.zeros(*points, *w.shape[1:], dtype=torch.float64)
    for k, w_k in zip(kept_modes(points, modes), w, strict=True):
        turns = sum(i * g / n for i, g, n in zip(k, grid, points))
        wave = torch.exp(2j * math.pi * turns) * (2 if k[-1] else 1) / math.prod(points)
        kernel += (wave[(...,) + (None,) * (w.ndim - 1)] * w_k).real
    total = 0
    axes = tuple(range(2, x.ndim))
    for shift in itertools.product(*map(range, points)):
        moved = x.roll(shift, axes)
        total = total + torch.einsum("bc...,cd->bd...", moved, kernel[shift])
    return total


@forms
@sizes
def test_equals_torch_fft_and_a_direct_convolution(points, modes, form):
    x, weight = normal(2, 3, *points), make_weight("dense", modes, 3, 4)
    y = spectral_conv(x, weight, form=form)
    torch.testing.assert_close(y, by_torch_fft(x, weight, modes), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y, by_direct_sum(x, weight, modes), rtol=1e-12, atol=1e-12)


@forms
@pytest.mark.parametrize("k", [(0, 0), (2, 3), (-3, 0), (-4, 2), (3, 5)], ids=str)
def test_a_single_wave_is_multiplied_by_its_weight(k, form):
    """By hand: cos(θ + φ) with weight a + bi becomes a cos(θ + φ) − b sin(θ + φ)."""
    modes, phase = (4, 6), 0.7
    weight = make_weight("dense", modes, 1, 1)
    first, second = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    theta = 2 * math.pi * (k[0] * first.double() / 8 + k[1] * second.double() / 12)
    a, b = weight[k[0] + 4, k[1], 0, :, 0]
    y = spectral_conv((theta + phase).cos()[None, None], weight, form=form)[0, 0]
    if k[1]:
        by_hand = a * (theta + phase).cos() - b * (theta + phase).sin()
    else:
        # Both k and −k are kept there, with a weight of their own; each has half of the wave, and
        # only the real part counts. At k = 0 this is one and the same.
        c, d = weight[4 - k[0], 0, 0, :, 0]
        both = (theta + phase).cos(), (theta + phase).sin()
        by_hand = (a + c) / 2 * both[0] - (b - d) / 2 * both[1]
        if k[0] == 0:
            by_hand = a * both[0].new_full((8, 12), math.cos(phase))
    torch.testing.assert_close(y, by_hand, rtol=1e-12, atol=1e-12)


@forms
def test_a_leading_axis_keeps_its_nyquist_mode(form):
    """(−1)ⁿ is its own conjugate: the wavenumber −N/2 alone has it, with the real part."""
    x = torch.tensor([1.0, -1.0]).repeat(4).double()[None, None, :, None].expand(1, 1, 8, 6)
    weight = make_weight("dense", (4, 3), 1, 1)
    y = spectral_conv(x, weight, form=form)
    torch.testing.assert_close(y, weight[0, 0, 0, 0, 0] * x, rtol=1e-12, atol=1e-12)


@forms
@kinds
@sizes
def test_a_shifted_input_gives_a_shifted_output(points, modes, kind, form):
    x, weight = normal(2, 3, *points), make_weight(kind, modes, 3, 3)
    options = {"skip": normal(3, 3), "bias": normal(3), "activation": "gelu", "form": form}
    shift, axes = tuple(n // 2 + 1 for n in points), tuple(range(2, x.ndim))
    y = spectral_conv(x, weight, **options).roll(shift, axes)
    torch.testing.assert_close(spectral_conv(x.roll(shift, axes), weight, **options), y)


@forms
@sizes
def test_parseval(points, modes, form):
    """With weights 1 the layer cuts to the kept modes, whose squares sum to the field's."""
    x = normal(2, 3, *points)
    ones = make_weight("depthwise", modes, 3, 3).zero_()
    ones[..., 0, :] = 1
    y = spectral_conv(x, ones, form=form)
    X = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="forward")
    kept_or_conjugate = torch.zeros(points)
    for k in kept_modes(points, modes):
        # With k_last = 0 the mode and its conjugate each give half, unless both are kept.
        for sign in (1, -1):
            kept_or_conjugate[tuple(sign * i % n for i, n in zip(k, points))] += 1 if k[-1] else 0.5
    power = (kept_or_conjugate.square() * X.abs().square()).sum(tuple(range(2, x.ndim)))
    torch.testing.assert_close(y.square().mean(tuple(range(2, x.ndim))), power)
    if len(points) == 1:
        torch.testing.assert_close(spectral_conv(y, ones, form=form), y)


@forms
@kinds
def test_the_operator_is_the_same_at_every_resolution(kind, form):
    """A band-limited field, at 24 × 20, 48 × 40 and 72 × 60 points."""
    weight, skip, bias = make_weight(kind, (5, 6), 3, 3), normal(3, 3), normal(3)
    coefficients = make_weight("dense", (4, 4), 3, 1)

    def at(refine: int) -> Tensor:
        points = 24 * refine, 20 * refine
        one = torch.zeros(1, 1, *points, dtype=torch.float64)
        one[..., 0, 0] = math.prod(points)  # every mode has 1
        x = spectral_conv(one.expand(1, 3, *points), coefficients).expand(1, 3, *points)
        y = spectral_conv(x, weight, skip=skip, bias=bias, activation="gelu", form=form)
        return y[..., ::refine, ::refine]

    assert at(1).std() > 0.1
    torch.testing.assert_close(at(2), at(1))
    torch.testing.assert_close(at(3), at(1))


@pytest.mark.parametrize(
    ("points", "m"), [((64,), 16), ((33,), 12), ((64, 64), 12), ((32, 47), 8), ((12, 14, 13), 4)]
)
@forms
def test_equals_neuraloperator(points, m, form):
    """Where leading axes are even: of an odd one theirs, in 2.0, moves the spectrum by one mode."""
    axes = len(points)
    theirs = SpectralConv(5, 7, (2 * m,) * (axes - 1) + (2 * m - 1,))
    w = theirs.weight.tensor.detach()
    weight = torch.view_as_real(w).movedim((0, 1), (-3, -1))
    x = normal(3, 5, *points).float()
    y = spectral_conv(x, weight, bias=theirs.bias.flatten(), form=form)
    want = theirs(x)
    assert (y - want).abs().max() <= 1e-5 * want.abs().max()


@forms
@kinds
@pytest.mark.parametrize(
    ("points", "modes"), [((7,), (3,)), ((4, 6), (2, 2)), ((3, 4, 5), (1, 2, 2))], ids=str
)
def test_gradients_of_both_orders(points, modes, kind, form):
    weight = make_weight(kind, modes, 2, 2)
    weights = [w.requires_grad_() for w in (weight if kind == "factorised" else [weight])]
    tensors = [t.requires_grad_() for t in (normal(2, 2, *points), normal(2, 2), normal(2))]

    def function(x, skip, bias, *weights):
        joint = weights[0] if kind != "factorised" else weights
        return spectral_conv(x, joint, skip=skip, bias=bias, activation="gelu", form=form)

    assert torch.autograd.gradcheck(function, (*tensors, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (*tensors, *weights), fast_mode=True)


@forms
def test_a_depthwise_weight_is_a_diagonal_one(form):
    x, weight = normal(2, 3, 12, 10), make_weight("depthwise", (3, 4), 3, 3)
    diagonal = torch.diag_embed(weight).transpose(-3, -2)
    torch.testing.assert_close(
        spectral_conv(x, weight, form=form), spectral_conv(x, diagonal, form=form)
    )


@forms
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_factor_sees_the_lines_of_its_axis_alone(axis, form):
    x = normal(2, 3, 6, 7, 8)
    weights = make_weight("factorised", (3, 3, 4), 3, 4)
    alone = [w if i == axis else torch.zeros_like(w) for i, w in enumerate(weights)]
    y = spectral_conv(x, alone, form=form)
    for places in itertools.product(*(range(n) for i, n in enumerate((6, 7, 8)) if i != axis)):
        at = [slice(None), slice(None), *places]
        at.insert(2 + axis, slice(None))
        line = spectral_conv(x[tuple(at)], weights[axis], form=form)
        torch.testing.assert_close(y[tuple(at)], line)


@forms
@kinds
def test_the_epilogue_is_what_stands_apart_from_it(kind, form):
    x, weight = normal(2, 3, 12, 10), make_weight(kind, (3, 4), 3, 3)
    skip, bias = normal(3, 3), normal(3)
    got = spectral_conv(x, weight, skip=skip, bias=bias, activation="gelu", form=form)
    apart = spectral_conv(x, weight, form=form) + torch.einsum("dc,bchw->bdhw", skip, x)
    want = torch.nn.functional.gelu(apart + bias[:, None, None])
    torch.testing.assert_close(got, want)


@forms
@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_float32(kind, form, dtype):
    def low(value):
        return [low(v) for v in value] if isinstance(value, list) else value.to(dtype)

    x, weight = normal(2, 3, 33, 20).to(dtype), low(make_weight(kind, (5, 6), 3, 3))
    options = {"skip": low(normal(3, 3)), "bias": low(normal(3)), "activation": "gelu"}
    y = spectral_conv(x, weight, form=form, **options)
    want = spectral_conv(x, weight, backend="reference", **options)
    assert y.dtype == want.dtype == dtype
    # One rounding of the result, and at most one step where float32 fell on the other side.
    torch.testing.assert_close(y, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@forms
def test_autocast_does_not_reach_inside(form):
    x, weight = normal(2, 3, 16, 16).float(), make_weight("dense", (4, 4), 3, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = spectral_conv(x, weight, skip=normal(3, 3).float(), form=form)
    assert torch.equal(y, spectral_conv(x, weight, skip=normal(3, 3).float(), form=form))


@forms
def test_inputs_need_not_be_contiguous(form):
    x, weight = normal(2, 3, 12, 10), make_weight("dense", (3, 4), 3, 4)
    strided = x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    turned = weight.permute(4, 1, 2, 3, 0).contiguous().permute(4, 1, 2, 3, 0)
    assert not strided.is_contiguous()
    torch.testing.assert_close(
        spectral_conv(strided, turned, form=form), spectral_conv(x, weight, form=form)
    )


@forms
def test_a_nan_stays_in_its_sample(form):
    x, weight = normal(3, 2, 12, 10), make_weight("dense", (3, 4), 2, 2)
    clean = spectral_conv(x, weight, form=form)
    x[1, 0, 0, 0] = torch.nan
    dirty = spectral_conv(x, weight, form=form)
    assert dirty[1].isnan().all()
    assert torch.equal(dirty[::2], clean[::2])


@pytest.mark.usefixtures("_no_shape_checks")
@forms
@kinds
def test_compiled_equals_eager_in_one_graph(kind, form):
    x, weight = normal(2, 3, 12, 10).float(), make_weight(kind, (3, 4), 3, 3)
    weight = [w.float() for w in weight] if kind == "factorised" else weight.float()

    def layer(x, weight):
        return spectral_conv(x, weight, activation="gelu", form=form)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), layer(x, weight))


@forms
def test_what_inference_mode_made_first_trains_later(form):
    x, weight = normal(1, 2, 26, 22), make_weight("dense", (3, 4), 2, 2).requires_grad_()
    with torch.inference_mode():
        y = spectral_conv(x, weight, form=form)
    trained = spectral_conv(x, weight, form=form)
    trained.sum().backward()
    assert torch.equal(trained, y)


def test_no_sample_gives_no_sample():
    y = spectral_conv(normal(0, 3, 12, 10), make_weight("dense", (3, 4), 3, 4))
    assert y.shape == (0, 4, 12, 10)


def test_the_form_is_the_cheaper_one_by_the_fitted_model():
    assert faster_form((4, 64, 4096), (4,), True, "cpu") == "dft"
    assert faster_form((4, 16, 1024, 1024), (1024, 512), True, "cpu") == "fft"


@pytest.mark.usefixtures("_no_shape_checks")
@pytest.mark.parametrize(
    ("points", "weight", "options", "says"),
    [
        ((12, 10), (6, 6, 3, 2, 4), {}, "Axis 1 of 10 points can keep m = 1 … 5"),
        ((12, 10), (14, 4, 3, 2, 4), {}, "Axis 0 of 12 points can keep m = 1 … 6"),
        ((12, 10), (5, 4, 3, 2, 4), {}, "2m of a leading axis"),
        ((12, 10), (6, 4, 2, 2, 4), {}, r"\[2 mode axes, 3, 2, D\]"),
        ((12, 10), (6, 4, 3, 1, 4), {}, r"\[2 mode axes, 3, 2, D\]"),
        ((12, 10), (6, 4, 3, 4), {}, r"\[2 mode axes, 3, 2, D\]"),
        ((12, 10), (4, 3, 2, 4), {}, r"\[2 mode axes, 3, 2, D\]"),
        ((4, 4, 4, 4), (2, 2, 2, 2, 3, 2, 4), {}, "one to three axes"),
        ((12, 10), (6, 4, 3, 2, 4), {"skip": (3, 4)}, r"skip must be \[4, 3\]"),
        ((12, 10), (6, 4, 3, 2, 4), {"bias": (3,)}, r"bias must be \[4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(points, weight, options, says):
    tensors = {name: torch.zeros(shape) for name, shape in options.items()}
    with pytest.raises(ValueError, match=says):
        spectral_conv(torch.zeros(2, 3, *points), torch.zeros(weight), **tensors)


@pytest.mark.usefixtures("_no_shape_checks")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"activation": "relu"}, "activation must be 'gelu' or None, got 'relu'"),
        ({"form": "row"}, "form must be 'auto', 'dft' or 'fft', got 'row'"),
        ({"backend": "cuda"}, "backend must be"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        spectral_conv(torch.zeros(2, 3, 8), torch.zeros(2, 3, 2, 3), **options)


def test_factors_must_be_one_an_axis_and_of_one_width():
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="sequence of 2 tensors"):
        spectral_conv(x, [torch.zeros(2, 3, 2, 3)])
    with pytest.raises(ValueError, match="as many outputs"):
        spectral_conv(x, [torch.zeros(2, 3, 2, 3), torch.zeros(2, 3, 2, 4)])
    with pytest.raises(ValueError, match="Axis 0 of 8 points can keep m = 1 … 4"):
        spectral_conv(x, [torch.zeros(5, 3, 2, 3), torch.zeros(2, 3, 2, 3)])
