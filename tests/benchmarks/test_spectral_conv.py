"""The spectral convolution and a whole FNO against neuraloperator's; on a GPU if any."""

from collections.abc import Callable

import pytest
import torch
from neuralop.models import FNO as NeuralOperatorFNO

from kernels.spectral_conv import spec, spectral_conv
from kernels.spectral_conv.cost import FORMS, faster_form
from kernels.spectral_conv.peers import in_their_layout
from kernels.spectral_conv.spec import DEPTHWISE, SPECTRAL_CONV
from lit_models.operators.fno import FNO
from tests.benchmarks.timing import ceilings, compare, roofline
from tests.kernels.comparing import DEVICE, on_device

pytestmark = pytest.mark.timeout(1800)

GREEN = ("kernels/spectral_conv/test_spectral_conv.py",)
if DEVICE == "cuda":
    GREEN += ("kernels/spectral_conv/test_triton.py",)
BENCHMARKS = SPECTRAL_CONV.benchmarks | DEPTHWISE.benchmarks


def forward(function: Callable, inputs: dict, **options) -> Callable[[], object]:
    """A call without gradients."""

    def run() -> object:
        with torch.no_grad():
            return function(**inputs, **options)

    return run


def forward_backward(function: Callable, inputs: dict, **options) -> Callable[[], object]:
    """A call with the gradients of all tensors."""
    tensors = {
        name: x.detach().requires_grad_() for name, x in inputs.items() if torch.is_tensor(x)
    }

    def run() -> object:
        y = function(**(inputs | tensors), **options)
        return torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))

    return run


passes = pytest.mark.parametrize("passes", [forward, forward_backward], ids=lambda f: f.__name__)


@pytest.fixture(scope="session")
def limits():
    """What this machine can do at most in float32, measured in this run."""
    return ceilings(DEVICE, torch.float32)


@passes
@pytest.mark.parametrize("case", BENCHMARKS)
def test_against_its_peers(green, record, limits, case, passes):
    """In eager mode and compiled, the peers with the same weights in their own layout."""
    green(*GREEN)
    inputs = on_device(BENCHMARKS[case](torch.float32, 0))
    theirs = inputs | {"weight": in_their_layout(inputs["weight"])}
    torch._dynamo.reset()
    functions = {
        "spectral_conv": passes(spectral_conv, inputs),
        "spectral_conv, dft form": passes(spectral_conv, inputs, form="dft", backend="torch"),
        "spectral_conv, fft form": passes(spectral_conv, inputs, form="fft", backend="torch"),
        "spectral_conv, compiled": passes(torch.compile(spectral_conv), inputs),
    }
    peers = SPECTRAL_CONV.peers if case in SPECTRAL_CONV.benchmarks else {}
    functions |= {name: passes(peer, theirs) for name, peer in peers.items()}
    functions |= {
        f"{name}, compiled": passes(torch.compile(peer), theirs) for name, peer in peers.items()
    }
    exact = spectral_conv(**inputs, backend="reference").double()
    errors = {
        name: float((forward(f, theirs)().double() - exact).abs().max() / exact.abs().max())
        for name, f in peers.items()
    }
    y = forward(spectral_conv, inputs)().double()
    errors["spectral_conv"] = float((y - exact).abs().max() / exact.abs().max())
    assert max(errors.values()) < 1e-5
    times = compare(functions)
    moved, flop = work(passes, inputs, y.numel())
    result = {"relative_errors": errors, "times": times}
    result["roofline"] = roofline(times["spectral_conv"]["ms"][1], moved, flop, limits)
    record(f"spectral_conv, {passes.__name__}, {case}", result)


def work(passes: Callable, inputs: dict, outputs: int) -> tuple[int, int]:
    """Bytes of what must be read and written once, and FLOP."""
    numbers = sum(x.nbytes for x in inputs.values() if torch.is_tensor(x)) + 4 * outputs
    flop = SPECTRAL_CONV.flop(**inputs)
    both = passes is forward_backward
    return numbers * (2 if both else 1), sum(flop[: 2 if both else 1])


@pytest.mark.parametrize(("N", "m"), [(64, 12), (64, 16), (128, 16)])
def test_a_training_step_of_a_whole_fno(green, record, N, m):
    """Four layers, width 64, batch 4: forward, backward and AdamW, against neuraloperator's."""
    green(*GREEN, "lit_models/operators/test_fno.py")
    x, target = torch.randn(2, 4, 1, N, N, device=DEVICE)
    models = {
        "FNO": FNO(1, 1, (m, m), width=64, layers=4),
        "neuraloperator": NeuralOperatorFNO((2 * m, 2 * m - 1), 1, 1, 64, n_layers=4),
    }
    models = {name: model.to(DEVICE) for name, model in models.items()}
    functions = {}
    for name, model in models.items():
        optimiser = torch.optim.AdamW(model.parameters(), foreach=True)

        def step(model=model, optimiser=optimiser) -> None:
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(x), target).backward()
            optimiser.step()

        functions[name] = step
    parameters = {
        name: sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
        for name, model in models.items()
    }
    assert parameters["FNO"] == parameters["neuraloperator"]
    result = {"parameters": parameters["FNO"], "times": compare(functions, rounds=9)}
    record(f"training step, FNO, 4 x {N}², {m} modes", result)


CHOICES = {
    "a line": (16, 32, (1024,), (16,)),
    "an odd line": (16, 32, (1023,), (64,)),
    "a plane": (4, 64, (64, 64), (12, 12)),
    "a large plane": (2, 64, (256, 256), (16, 16)),
    "Darcy's plane": (8, 32, (85, 85), (12, 12)),
    "many modes": (2, 16, (256, 256), (64, 64)),
    "a box": (2, 16, (32, 32, 32), (8, 8, 8)),
}


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has one form, that of its kernels")
@pytest.mark.parametrize("shape", CHOICES)
def test_the_form_that_is_chosen_is_the_faster_one(green, record, shape):
    green(*GREEN)
    samples, channels, points, modes = CHOICES[shape]
    inputs = spec.make((samples, channels, channels), points, modes, torch.float32, 0, parts=())
    kept = inputs["weight"].shape[: len(points)]
    chosen = faster_form(inputs["x"].shape, kept, True, "cpu")
    functions = {form: forward_backward(spectral_conv, inputs, form=form) for form in FORMS}
    times = compare(functions)
    record(f"choice of form, {shape}", {"chosen": chosen, "times": times})
    fastest = min(times[form]["ms"][1] for form in FORMS)
    assert times[chosen]["ms"][1] <= 1.25 * fastest
