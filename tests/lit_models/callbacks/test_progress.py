"""The pace that a run reports."""

import pytest

from tests.running import report_of, train_here


@pytest.mark.parametrize(("batches", "samples"), [("small", 16), ("large", 32)])
def test_a_step_is_the_optimiser_s(tmp_path, batches, samples):
    """By the time of a step and the samples of a second, it has all the batches it adds up."""
    run = train_here(tmp_path, "sgd_vgg11_cifar10", f"sgd={batches}", "trainer.max_epochs=3")
    report = report_of(run)
    of_a_step = report["seconds_per_step"] * report["samples_per_second"]
    assert of_a_step == pytest.approx(samples, rel=0.05)
