"""A claim small enough to be carried out in a test."""

from pathlib import Path

import pytest

import ledger.claim
from ledger.claim import Claim, load_claim

SMALL = """\
title: A wide bag of atoms tells as much as a narrow one
paper: none
sentence: Width does not hurt.
published: nothing
protocol: Two arms on generated peptides.
metric: test.ap
maximise: true
seeds: [0, 1]
minutes: 1
overrides:
  data.source: generated
  data.generated_size: [60, 20, 20]
  data.cache_dir: CACHE
  data.limit: null
  callbacks.last.every_n_train_steps: 1
arms:
  wide: {experiment: baseline_atoms,
    overrides: {model.net.width: 16, callbacks.averaging.decay: 0.5}}
  narrow:
    experiment: baseline_atoms
    overrides: {model.net.width: 4, callbacks.averaging.decay: 0.5}
    when: {long: {model.net.dropout: 0.1}}
cases:
  training:
    short: {trainer.max_epochs: 1}
    long: {trainer.max_epochs: 2}
select:
  model.optimisation.lr: [1e-3, 1e-2]
tune:
  seeds: [7]
  case: {training: short}
  grid: {callbacks.averaging.decay: [0.5, 0.9]}
statistics:
  - {name: gain, kind: difference, ours: wide, rivals: all, at_least: -1}
"""


@pytest.fixture
def claims(tmp_path, monkeypatch) -> Path:
    """configs/claim of the test's own."""
    folder = tmp_path / "claim"
    folder.mkdir()
    monkeypatch.setattr(ledger.claim, "CLAIMS", folder)
    return folder


@pytest.fixture
def small(claims, tmp_path) -> Claim:
    """Two arms, two cases, two seeds, two values to select from: sixteen runs of a second each."""
    write_claim(claims, SMALL.replace("CACHE", str(tmp_path / "data")))
    return load_claim("small", "smoke")


def write_claim(claims: Path, text: str, name: str = "small") -> Path:
    """Put a claim's file in place."""
    path = claims / f"{name}.yaml"
    path.write_text(text)
    return path
