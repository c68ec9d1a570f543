"""The configs of encoders of text: each composes into both models, all of one size."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from train import CONFIGS

ENCODERS = sorted(path.stem for path in (CONFIGS / "text_encoder").glob("*.yaml"))


def composed(experiment: str, *overrides: str):
    """The config of an experiment, at paper scale unless an override says otherwise."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", "scale=paper", *overrides])


def make(experiment: str, encoder: str, *overrides: str):
    """A model of an experiment with another encoder, its weights without memory."""
    cfg = composed(experiment, f"text_encoder@model.net.encoder={encoder}", *overrides)
    with torch.device("meta"):
        return instantiate(cfg.model, _convert_="all")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def beside_words(module: torch.nn.Module) -> int:
    """Parameters without the embedding of words, which is most of a small model."""
    return count(module) - module.net.encoder.words.weight.numel()


@pytest.mark.parametrize("scale", ["demo", "paper"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_rivals_are_as_large_as_chimera(encoder, scale):
    models = [make("chimera_mlm", name, f"scale={scale}") for name in (encoder, "chimera")]
    rival, chimera = map(beside_words, models)
    assert rival == pytest.approx(chimera, rel=0.02)


def test_chimera_has_the_published_size():
    assert count(make("chimera_mlm", "chimera")) // 10**6 == 111


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("experiment", ["chimera_mlm", "chimera_glue"])
def test_a_rival_is_one_word(experiment, encoder):
    model = make(experiment, encoder, "scale=smoke")
    assert count(model.net.encoder) > 0


RECIPES = sorted(path.stem for path in (CONFIGS / "glue").glob("*.yaml"))
# Learning rate and learning rate × weight decay of Lahoti et al., arXiv:2510.12111.
PUBLISHED = {
    "mnli": (1e-4, 5e-6, 2),
    "qnli": (5e-5, 1e-6, 7),
    "qqp": (5e-5, 3e-6, 3),
    "rte": (1e-5, 1e-6, 3),
    "sst2": (5e-5, 3e-6, 2),
    "mrpc": (8e-5, 8e-6, 10),
    "cola": (1e-4, 5e-6, 10),
    "stsb": (3e-5, 3e-6, 10),
}


@pytest.mark.parametrize("task", RECIPES)
def test_a_task_brings_its_published_recipe(task):
    cfg = composed("chimera_glue", f"glue={task}")
    assert cfg.data.task == task
    how = cfg.model.optimisation
    if task != "wnli":
        shrinks = how.lr * how.weight_decay
        assert (how.lr, shrinks, cfg.trainer.max_epochs) == pytest.approx(PUBLISHED[task])


def test_every_task_has_a_recipe():
    assert {*RECIPES} == {*PUBLISHED, "wnli"}


def test_a_classifier_of_sentences():
    model = make("chimera_glue", "bert", "glue=mnli")
    assert model.net.out.out_features == 3
    assert model.optimisation.decay == "linear"


def test_a_rival_without_positions():
    model = make("chimera_mlm", "bert", "model.net.encoder.max_length=null")
    assert count(model) == count(make("chimera_mlm", "bert")) - 512 * 768
