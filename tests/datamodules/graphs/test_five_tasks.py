"""Each LRGB task from official files to a gradient and a metric, through the real model."""

from functools import partial

import pytest
import torch

from datamodules.graphs.lrgb import TASKS
from lit_models.graphs.chimera import ChimeraGraph
from lit_models.graphs.encoders import LinearEncoder
from lit_models.graphs.tasks import (
    ContactPrediction,
    MultilabelClassification,
    NodeClassification,
    Regression,
)
from tests.datamodules.fabricated import official, raw_graphs, write_raw
from tests.graphs import graph_model, molecule_encoder

superpixel_encoder = partial(LinearEncoder, node_size=14, edge_size=2)
ASKED = {
    "peptides-func": (MultilabelClassification(10), molecule_encoder),
    "peptides-struct": (Regression(11), molecule_encoder),
    "pascalvoc-sp": (NodeClassification(21), superpixel_encoder),
    "coco-sp": (NodeClassification(81), superpixel_encoder),
    "pcqm-contact": (ContactPrediction(16), molecule_encoder),
}


@pytest.mark.parametrize("name", TASKS)
def test_data_reach_loss_gradient_and_metric(name, tmp_path):
    task, encoder = ASKED[name]
    raw = raw_graphs(name)
    if name == "peptides-func":
        for graphs in raw.values():
            graphs[:] = [(*graph[:3], graph[3].round()) for graph in graphs]  # labels are 0 or 1
    write_raw(tmp_path / "raw" / "lrgb" / name / "raw", name, raw)
    data = official(name, tmp_path)
    assert task.level == TASKS[name].level
    if task.level != "pair":
        assert task.num_outputs == len(TASKS[name].labels)
    model = graph_model(task, ChimeraGraph, encoder, width=16, layers=2, heads=2, state=8)
    (batch,) = data.train_dataloader()
    assert batch.num_graphs == 3
    prediction = model(batch)
    rows = batch.num_graphs if task.level == "graph" else batch.num_nodes
    assert prediction.shape == (rows, task.num_outputs)
    loss = task.loss(prediction, batch)
    loss.backward()
    assert loss.isfinite()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values()), gradients.keys()
    metrics = task.metrics()
    task.update(metrics, prediction.detach(), batch)
    values = metrics.compute()
    assert task.selection in values
    assert all(torch.isfinite(value) for value in values.values())
