"""Every experiment composes at every scale and trains; the paper scale's step runs."""

import math
import subprocess
import sys

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.running import ROOT, compose_model, report_of, train_here, train_outside
from tools.list_experiments import EXPERIMENTS

MEMORIES = ["none", "stacked_frames", "lstm", "mamba2"]
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
OFFICIAL_ALONE = ("edge_zinc", "node_zinc")  # trained in tests/datamodules/graphs/test_zinc.py


@pytest.mark.parametrize("experiment", [name for name in NAMES if name not in OFFICIAL_ALONE])
def test_two_steps_at_smoke_size_on_generated_data(experiment, tmp_path):
    run = train_here(tmp_path, experiment)
    report = report_of(run)
    assert report["experiment"] == experiment
    assert report["steps"] == 2
    assert report["data"]["source"] == "generated"
    assert all(math.isfinite(value) for value in report["test"].values())


@pytest.mark.parametrize("scale", ["smoke", "demo", "paper"])
@pytest.mark.parametrize("experiment", NAMES)
def test_every_scale_composes(experiment, scale):
    model, cfg = compose_model(experiment, f"scale={scale}")
    assert sum(p.numel() for p in instantiate(model).parameters()) > 0
    assert cfg.trainer.max_epochs >= 1
    batches = cfg.trainer.get("max_steps", -1) * cfg.trainer.get("accumulate_grad_batches", 1)
    if batches > 0:  # the last step is validated, though it ends no epoch
        assert batches % cfg.trainer.val_check_interval == 0
    if scale == "demo":
        cfg.experiment_name = experiment  # Hydra's own names are not there outside a job
        OmegaConf.resolve(cfg)  # in place, as `--cfg job --resolve` does


def test_a_resolved_config_is_shown():
    command = [sys.executable, "train.py", "experiment=chimera_cifar10", "--cfg", "job"]
    done = subprocess.run(
        [*command, "--resolve"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert yaml.safe_load(done.stdout)["experiment_name"] == "chimera_cifar10"


@pytest.mark.parametrize(
    ("experiment", "thousands"),
    [
        ("chimera_lrgb", 499),
        ("chimera_peptides_struct", 504),
        ("chimera_pascalvoc", 485),
        ("chimera_coco", 489),
        ("chimera_no_local_lrgb", 496),
        ("gps_lrgb", 503),
        ("gcn_lrgb", 497),
        ("gine_lrgb", 498),
        ("gated_gcn_lrgb", 499),
        ("edge_peptides", 499),
        ("node_peptides", 498),
    ],
)
def test_parameters_at_paper_scale(experiment, thousands):
    model, _ = compose_model(experiment, "scale=paper")
    assert sum(p.numel() for p in instantiate(model).parameters()) // 1000 == thousands


@pytest.mark.parametrize(("scale", "tolerance"), [("demo", 0.02), ("paper", 0.01)])
@pytest.mark.parametrize(
    "rival", ["gps_lrgb", "gcn_lrgb", "gine_lrgb", "gated_gcn_lrgb", "chimera_no_local_lrgb"]
)
def test_rivals_are_as_large_as_chimera(rival, scale, tolerance):
    models = [compose_model(name, f"scale={scale}")[0] for name in (rival, "chimera_lrgb")]
    rival_size, size = (sum(p.numel() for p in instantiate(m).parameters()) for m in models)
    assert rival_size == pytest.approx(size, rel=tolerance)


@pytest.mark.parametrize(("scale", "tolerance"), [("demo", 0.02), ("paper", 0.02)])
@pytest.mark.parametrize("data", ["peptides", "zinc"])
def test_edge_and_node_versions_are_of_one_size(data, scale, tolerance):
    models = [compose_model(f"{kind}_{data}", f"scale={scale}")[0] for kind in ("edge", "node")]
    edge, node = (sum(p.numel() for p in instantiate(m).parameters()) for m in models)
    assert edge == pytest.approx(node, rel=tolerance)


@pytest.mark.parametrize(("scale", "tolerance"), [("demo", 0.11), ("paper", 0.03)])
@pytest.mark.parametrize("data", ["burgers", "ns"])
def test_u_nets_are_as_large_as_the_fno_that_they_rival(data, scale, tolerance):
    models = [compose_model(f"{kind}_{data}", f"scale={scale}")[0] for kind in ("unet", "fno")]
    unet, fno = (sum(p.numel() for p in instantiate(m).parameters()) for m in models)
    assert unet == pytest.approx(fno, rel=tolerance)


@pytest.mark.parametrize("scale", ["demo", "paper"])
@pytest.mark.parametrize(
    ("ours", "rivals"),
    [
        ("memno_ks", ["galerkin_ks", "unet_ks"]),
        ("memno_burgers", ["galerkin_burgers_pdebench", "unet_burgers_pdebench"]),
        ("memno_ns_noise", ["galerkin_ns_noise", "unet_ns_noise"]),
    ],
)
def test_memories_and_rivals_are_as_large_as_s4d(ours, rivals, scale):
    others = [[ours, f"memory@model.net={m}"] for m in MEMORIES] + [[rival] for rival in rivals]
    models = [compose_model(*what, f"scale={scale}")[0] for what in [[ours], *others]]
    size, *sizes = (sum(p.numel() for p in instantiate(m).parameters()) for m in models)
    assert sizes == pytest.approx([size] * len(sizes), rel=0.05)


def test_a_scale_keeps_the_kind_of_model_and_the_metric():
    for experiment in NAMES:
        models = [compose_model(experiment, f"scale={s}")[0] for s in ("demo", "paper")]
        for model in models:
            model.get("task", {}).pop("vocabulary", None)  # a size
        for key in ("_target_", "task", "mode", "local"):
            assert models[0].get(key) == models[1].get(key)


def test_a_step_at_paper_scale(tmp_path):
    run = train_here(
        tmp_path,
        "chimera_lrgb",
        "scale=paper",
        "data.generated_size=[20,4,4]",
        "data.batch_size=4",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
    )
    assert report_of(run)["parameters"] // 1000 == 499


def test_ablated_chimera_trains_and_is_drawn(tmp_path):
    run = train_here(
        tmp_path,
        "chimera_lrgb",
        "model.net.edge_delta=false",
        "model.net.normalise=false",
        "model.net.delta_range=[2.0,4.0]",
    )
    assert math.isfinite(report_of(run)["test"]["ap"])
    events = [EventAccumulator(str(path)).Reload() for path in run.glob("events.out.*")]
    drawn = {tag.partition("/")[0] for found in events for tag in found.Tags()["histograms"]}
    assert drawn == {"delta_source", "delta_target"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train(tmp_path, precision):
    run = train_here(tmp_path, "chimera_lrgb", f"trainer.precision={precision}")
    assert math.isfinite(report_of(run)["test"]["ap"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_training(tmp_path):
    """In processes of their own: annotations that are checked while testing do not compile."""
    scores = []
    for compile_net in ("true", "false"):
        folder = tmp_path / compile_net
        folder.mkdir()
        done = train_outside(
            folder, "chimera_lrgb", f"model.compile={compile_net}", "model.net.dropout=0"
        )
        assert done.returncode == 0, done.stderr
        (run,) = (folder / "runs").glob("chimera_lrgb-*")
        scores.append(report_of(run)["test"]["ap"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
