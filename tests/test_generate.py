"""`make data`: every data set can be made, and is what its config says."""

import subprocess
import sys

import pytest
import torch

from errors import explain
from tests.running import ROOT
from tools.generate import GROUP, load, main, names


@pytest.mark.parametrize("name", names())
def test_a_data_set_at_smoke_size(name, tmp_path):
    data = load(name, ["scale=smoke", f"data.cache_dir={tmp_path}", "data.samples=[1,1,1]"])
    data.prepare_data()
    data.setup()
    item = data.train_dataset[0]
    frames = len(data.times) or 1
    assert item["target"].shape == (1, len(data.equation.channels), *data.equation.shape)
    assert len(data.train_dataset) == max(1, frames - 1)
    assert torch.isfinite(data.test_dataset[0]["target"]).all()
    assert data.provenance["source"] == "generated"


@pytest.mark.parametrize("scale", ["demo", "paper"])
@pytest.mark.parametrize("name", names())
def test_every_scale_composes(name, scale):
    data = load(name, [f"scale={scale}"])
    sample = data.recipe.draw([0])
    assert torch.isfinite(sample).all()


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "tools.generate", "advection", "scale=smoke"]
    done = subprocess.run(
        [*command, f"data.cache_dir={tmp_path}", "data.equation.speed=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "8 × 41 states of u on 64 points" in done.stdout
    assert len(list(tmp_path.glob("pde/*/data.hdf5"))) == 1


def test_windows_are_no_affair_of_the_command(tmp_path, monkeypatch, capsys):
    words = ["advection", "scale=smoke", f"data.cache_dir={tmp_path}", "data.generate.frames=1"]
    monkeypatch.setattr(sys, "argv", ["generate", *words])
    main()
    assert "8 × 1 states of u on 64 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ks"], "there is no PDE 'ks': choose one of advection"),
        (["darcy", "data.nu=1"], "data.nu"),
    ],
)
def test_what_does_not_exist_is_said_in_one_sentence(words, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.generate", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.equation.sizes=64", "Burgers needs as sizes a list"),
        ("data.equation.viscosity=low", "burgers cannot be made so"),
        ("+data.equation.speed=1", "unexpected keyword argument 'speed'"),
        ("data.source=official", "leave it generated"),
        (
            "data.generate.seed=-1",
            "data.generate.seed must be a whole number from 0 to 2**32 - 1, got -1",
        ),
    ],
)
def test_values_of_another_kind_are_said_in_one_sentence(override, message):
    with pytest.raises(Exception, match=r"\w") as caught:
        load("burgers", [override])
    assert message in explain(caught.value)


def test_every_config_says_what_it_is():
    for name in names():
        lines = (GROUP / f"{name}.yaml").read_text().splitlines()
        assert len(lines) <= 40
        assert lines[1].startswith("# ")
        assert len(lines[1]) > 20
