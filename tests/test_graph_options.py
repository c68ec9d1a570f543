"""What an own data set of graphs may ask for on the command line."""

import pytest
import yaml

from runs import load_run
from tests.running import call_runs, report_of, train_here


def test_pooling_and_edges_without_features_are_options(tmp_path):
    options = ("+head.pooling=max", "encoder.edge_sizes=[]")
    run = train_here(tmp_path, "gine_lrgb", *options)
    assert call_runs("eval", run) == pytest.approx(report_of(run)["test"], rel=1e-5)
    assert load_run(run).net.encoder.edges.vector.shape == (load_run(run).net.norm.weight.shape)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["net"]["head"]["pooling"] == "max"


def test_the_bag_of_features_is_a_model(tmp_path):
    run = train_here(tmp_path, "baseline_atoms", "model=bag_of_features", "+encoder.node_size=9")
    assert load_run(run).net.enter.in_features == 10
    assert call_runs("eval", run) == pytest.approx(report_of(run)["test"], rel=1e-5)
