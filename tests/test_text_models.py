"""The configs of encoders of text: each composes into both models, all of one size."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.running import ROOT

TASKS = {
    "masked_lm": "{_target_: lit_models.text_tasks.MaskedLanguageModelling, vocabulary: 30522}",
    "text_classifier": "{_target_: lit_models.text_tasks.glue_task, name: mnli}",
}
ENCODERS = sorted(path.stem for path in (ROOT / "configs/text_encoder").glob("*.yaml"))


def make(model: str, encoder: str, *overrides: str):
    """A model of a config, its weights without memory."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        chosen = [f"+model={model}", f"text_encoder@model.encoder={encoder}", *overrides]
        cfg = compose(overrides=[f"+task={TASKS[model]}", *chosen])
    resolved = OmegaConf.to_container(cfg.model, resolve=True)
    with torch.device("meta"):
        return instantiate(resolved, _convert_="all")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rivals_are_as_large_as_chimera(encoder):
    rival, chimera = (count(make("masked_lm", name)) for name in (encoder, "chimera"))
    assert rival == pytest.approx(chimera, rel=0.02)
    assert chimera // 10**6 == 111


def test_a_classifier_of_sentences():
    model = make("text_classifier", "bert")
    assert model.net.out.out_features == 3
    assert model.optimisation.decay == "linear"


def test_a_rival_without_positions():
    model = make("masked_lm", "bert", "model.encoder.max_length=null")
    assert count(model) == count(make("masked_lm", "bert")) - 512 * 768
