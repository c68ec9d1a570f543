"""Penalties and grafting by one word, in experiments of other systems."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lit_models.callbacks.explicit_regularisation import GradientPenalty
from lit_models.callbacks.grafting import Grafting
from tests.running import report_of, scalars, train_here
from train import CONFIGS

KINDS = {"penalty": GradientPenalty, "grafting": Grafting}
ONE_WORD = [
    (group, path.stem)
    for group in KINDS
    for path in sorted((CONFIGS / group).glob("*.yaml"))
    if path.stem != "external"  # which needs a run, see test_grafting
]


@pytest.mark.parametrize(("group", "name"), ONE_WORD)
def test_any_experiment_takes_it_by_one_word(group, name):
    words = ["experiment=gine_lrgb", f"+{group}@callbacks.{group}={name}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", words).callbacks[group]
    assert isinstance(instantiate(config), KINDS[group])


@pytest.mark.parametrize("penalty", ["gradient_norm", "fisher_trace"])
def test_a_graph_network_is_penalised(tmp_path, penalty):
    run = train_here(
        tmp_path,
        "gine_lrgb",
        f"+penalty@callbacks.penalty={penalty}",
        "trainer.log_every_n_steps=1",
    )
    penalties = scalars(run, "train/penalty")
    assert penalties
    assert all(value > 0 for value in penalties.values())
    assert report_of(run)["steps"] > 0


def test_a_model_that_cannot_be_differentiated_twice_says_so(tmp_path):
    with pytest.raises(SystemExit, match="first derivatives only"):
        train_here(tmp_path, "chimera_lrgb", "+penalty@callbacks.penalty=gradient_norm")


@pytest.mark.parametrize("network", ["vgg11", "vgg16_bn", "resnet18"])
def test_steps_of_large_batches_are_as_long_as_they_are_told(tmp_path, network):
    run = train_here(
        tmp_path, "chimera_cifar10", "model=convolutional_classifier",
        f"convolutional_encoder@model.net.encoder={network}", "data.limit=64",
        "+penalty@callbacks.penalty=unit_jacobian", "+grafting@callbacks.grafting=constant",
        "callbacks.penalty.together=2",
        "trainer.gradient_clip_val=null", "+trainer.accumulate_grad_batches=2",
        "trainer.log_every_n_steps=1", "trainer.limit_train_batches=4",
    )  # fmt: skip
    assert scalars(run, "train/penalty")
    assert report_of(run)["steps"] == 2
    assert list(scalars(run, "train/grad_norm").values()) == pytest.approx([0.1, 0.1])
