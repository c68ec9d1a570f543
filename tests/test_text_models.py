"""The configs of encoders of text: each composes into both models, all of one size."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from train import CONFIGS

TASKS = {
    "masked_lm": "{_target_: lit_models.text_tasks.MaskedLanguageModelling, vocabulary: 30522}",
    "text_classifier": "{_target_: lit_models.text_tasks.glue_task, name: mnli}",
}
ENCODERS = sorted(path.stem for path in (CONFIGS / "text_encoder").glob("*.yaml"))


def make(model: str, encoder: str, *overrides: str):
    """A model of a config at paper scale or that of the overrides, its weights without memory."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = [f"+model={model}", f"text_encoder@model.encoder={encoder}", *overrides]
        cfg = compose(overrides=[f"+task={TASKS[model]}", "+scale=paper", *chosen])
    resolved = OmegaConf.to_container(cfg.model, resolve=True)
    with torch.device("meta"):
        return instantiate(resolved, _convert_="all")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def beside_words(module: torch.nn.Module) -> int:
    """Parameters without the embedding of words, which is most of a small model."""
    return count(module) - module.net.encoder.words.weight.numel()


@pytest.mark.parametrize(("scale", "tolerance"), [("demo", 0.03), ("paper", 0.03)])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_rivals_are_as_large_as_chimera(encoder, scale, tolerance):
    models = [make("masked_lm", name, f"scale={scale}") for name in (encoder, "chimera")]
    rival, chimera = map(beside_words, models)
    assert rival == pytest.approx(chimera, rel=tolerance)


def test_chimera_has_the_published_size():
    assert count(make("masked_lm", "chimera")) // 10**6 == 111


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("experiment", ["chimera_mlm", "chimera_glue"])
def test_a_rival_is_one_word(experiment, encoder):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = [f"experiment={experiment}", f"text_encoder@model.encoder={encoder}"]
        cfg = compose("train", [*chosen, "scale=smoke"])
    with torch.device("meta"):
        model = instantiate(cfg.model, _convert_="all")
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
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", ["experiment=chimera_glue", f"glue={task}", "scale=paper"])
    assert cfg.data.task == task
    how = cfg.model.optimisation
    if task != "wnli":
        shrinks = how.lr * how.weight_decay
        assert (how.lr, shrinks, cfg.trainer.max_epochs) == pytest.approx(PUBLISHED[task])


def test_every_task_has_a_recipe():
    assert {*RECIPES} == {*PUBLISHED, "wnli"}


def test_a_classifier_of_sentences():
    model = make("text_classifier", "bert", "+glue=mnli")
    assert model.net.out.out_features == 3
    assert model.optimisation.decay == "linear"


def test_a_rival_without_positions():
    model = make("masked_lm", "bert", "model.encoder.max_length=null")
    assert count(model) == count(make("masked_lm", "bert")) - 512 * 768
