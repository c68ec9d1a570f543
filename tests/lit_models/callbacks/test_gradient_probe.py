"""Probes of gradients and curvature, against closed forms and whole matrices."""

import json
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from lit_models.callbacks.gradient_probe import QUANTITIES, GradientProbe, sharpness
from tests.lit_models.callbacks.test_explicit_regularisation import (
    CLASSES,
    Flat,
    Smooth,
    batch_of,
    classifier,
)
from tests.running import report_of, scalars, train_here


@pytest.mark.slow
def test_quantities_of_logistic_regression():
    torch.manual_seed(0)
    model, batch = classifier(Flat()), batch_of(9)
    found = GradientProbe(draws=2000).measure(model, batch)
    x = batch["image"].mean(dim=(2, 3))
    x = torch.cat([x, torch.ones(9, 1, dtype=torch.float64)], dim=1)
    p = model(batch).softmax(dim=1)
    residual = p - nn.functional.one_hot(batch["label"], CLASSES)
    expected = {
        "gradient_norm": (residual.T @ x / 9).norm(),
        "fisher_trace": (x.square().sum(dim=1) * (1 - p.square().sum(dim=1))).mean(),
        "average_jacobian": CLASSES * x.mean(dim=0).square().sum(),
        "unit_jacobian": x.mean(dim=0).square().sum(),
        # Of cross-entropy, mean of (diag p − p pᵀ) ⊗ x xᵀ.
        "sharpness": torch.linalg.eigvalsh(
            sum(
                torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(z, z))
                for q, z in zip(p, x, strict=True)
            )
            / 9
        )[-1],
    }
    assert found.keys() == expected.keys() == {*QUANTITIES}
    for name, value in expected.items():
        tolerance = 0.1 if name == "fisher_trace" else 1e-2 if name == "sharpness" else 1e-6
        assert found[name] == pytest.approx(float(value), rel=tolerance)


def test_sharpness_is_the_greatest_eigenvalue():
    model, batch = classifier(Smooth()), batch_of(6)
    names = [name for name, _ in model.net.named_parameters()]
    shapes = [p.shape for p in model.net.parameters()]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return model.task.loss(functional_call(model.net, weights, (batch,)), batch)

    flat = nn.utils.parameters_to_vector(model.net.parameters()).detach()
    values = torch.linalg.eigvalsh(hessian(loss)(flat))
    assert sharpness(model, batch, 1e-8) == pytest.approx(values[-1].item(), rel=1e-6)
    # Not the one of greatest magnitude, where that is another.
    assert values[-1] > 0 > values[0]


def test_a_measurement_leaves_no_trace():
    model, batch = classifier(Smooth(norm=True)), batch_of(6)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = GradientProbe().measure(model, batch)
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "sizes", "measured"),
    [
        # Four steps of 16 images each, two an epoch.
        (["every_n_steps=1", "samples=4"], [4] * 4, 4),
        (["every_n_steps=1", "samples=4", "micro_batches=3"], [4] * 12, 4),
        (["every_n_steps=2", "samples=6", "micro_batches=3"], [6] * 6, 2),
        (["every_n_steps=2", "samples=20", "micro_batches=2"], [16] * 4, 2),
        (["every_n_steps=2"], [16] * 2, 2),
    ],
)
def test_micro_batches_are_probed(tmp_path, monkeypatch, options, sizes, measured):
    probed = []

    def measure(self, module, batch):
        probed.append(len(batch["label"]))
        return {"gradient_norm": float(len(probed))}

    monkeypatch.setattr(GradientProbe, "measure", measure)
    words = probe_words(*options)
    run = train_here(tmp_path, "sgd_vgg11_cifar10", "trainer.max_epochs=2", *words)
    assert probed == sizes
    found = report_of(run)["probes"]["GradientProbe"]["gradient_norm"]
    per = len(sizes) // measured
    assert found == [sum(range(i * per + 1, i * per + per + 1)) / per for i in range(measured)]


def test_a_micro_batch_is_measured_before_it_is_learned_from(tmp_path):
    words = probe_words("every_n_steps=1", "quantities=[gradient_norm]")
    run = train_here(tmp_path, "sgd_vgg11_cifar10", "trainer.log_every_n_steps=1", *words)
    found = report_of(run)["probes"]["GradientProbe"]
    assert found["step"] == [0, 1]
    assert found["gradient_norm"] == pytest.approx([*scalars(run, "train/grad_norm").values()])


def test_samples_of_graphs_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="set the probe's samples to null"):
        train_here(tmp_path, "gine_lrgb", *probe_words("every_n_steps=1", "samples=4"))


def probe_words(*options: str) -> list[str]:
    target = "lit_models.callbacks.gradient_probe.GradientProbe"
    return [f"+callbacks.probe.{option}" for option in (f"_target_={target}", *options)]


def test_another_quantity_is_refused():
    with pytest.raises(ValueError, match="got entropy"):
        GradientProbe(quantities=["entropy"])


@pytest.mark.parametrize(
    ("experiment", "missing"),
    [
        ("gine_lrgb", set()),
        ("chimera_lrgb", {"sharpness"}),
        ("fno_burgers", {"fisher_trace", "average_jacobian", "unit_jacobian"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is not probed")
def test_any_run_is_probed_of_what_its_model_has(tmp_path, experiment, missing):
    run = train_here(tmp_path, experiment, *probe_words("every_n_steps=2"))
    reported = json.loads((run / "report.json").read_text())["probes"]["GradientProbe"]
    for name in QUANTITIES:
        logged = scalars(run, f"probe/{name}")
        assert bool(logged) == (name not in missing), name
        assert all(step % 2 == 0 for step in logged)
        assert reported.get(name, []) == pytest.approx([*logged.values()])
        assert not logged or reported["step"] == [*logged]
