"""Pictures of graphs, where graphs lack what pictures show."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch_geometric.data import Data

from datamodules.graphs.module import GraphDataModule
from datamodules.graphs.molecules import smiles_to_graph
from lit_models.graphs.chimera import ChimeraGraph
from lit_models.graphs.pictures import GraphPictures, describe_class, describe_labels
from lit_models.graphs.tasks import GraphClassification, MultilabelClassification
from tests.graphs import graph_model, molecule_like
from tests.lit_models.callbacks.fitting import fit


class Graphs(GraphDataModule):
    """The same few graphs for training and validation."""

    def __init__(self, graphs: list[Data], names: list[str]):
        super().__init__(batch_size=2)
        self.graphs, self.label_names = graphs, names

    def setup(self, stage: str | None = None) -> None:
        self.train_dataset = self.val_dataset = self.graphs


def draw(folder, task, graphs: list[Data], names: list[str]) -> set[str]:
    """Names of the images and histograms that are drawn of Chimera after an epoch."""
    model = graph_model(task, ChimeraGraph, width=16, layers=1, state=4)
    fit(folder, model, Graphs(graphs, names), GraphPictures())
    tags = EventAccumulator(str(folder)).Reload().Tags()
    return {*tags["images"], *tags["histograms"]}


def test_graphs_without_any_edge_are_drawn(tmp_path):
    """A histogram of nothing would end the training."""
    drawn = draw(tmp_path, MultilabelClassification(10), [molecule_like("singleton")] * 3, [])
    assert "resolvent" in drawn
    assert "delta_edge/net.blocks.0.mixer" not in drawn
    assert "delta_source/net.blocks.0.mixer" in drawn


@pytest.mark.parametrize("names", [[], ["harmless", "toxic"]], ids=["without names", "named"])
def test_molecules_of_two_classes_are_drawn(tmp_path, names):
    graphs = [smiles_to_graph(smiles) for smiles in ("CCO", "C", "CC#N")]
    for label, graph in enumerate(graphs):
        graph.y = torch.tensor([label % 2])
    assert "molecules" in draw(tmp_path, GraphClassification(2), graphs, names)


def test_legends_name_what_is_true_and_what_is_likely():
    logits = torch.tensor([0.0, 2.0])
    told = describe_class(torch.tensor([1]), logits, ["harmless", "toxic"])
    assert told == "true: toxic\npredicted: toxic 0.88, harmless 0.12"
    told = describe_labels(torch.tensor([1.0, 0.0]), logits, ["harmless", "toxic"])
    assert told == "true: harmless\npredicted: toxic 0.88, harmless 0.50"
