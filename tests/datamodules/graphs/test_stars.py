"""Stars: the planted targets are those of the models' edge version, and the splits are sound."""

import pytest
import torch

from datamodules.errors import DataError
from datamodules.graphs.stars import StarsDataModule, planted_network, planted_targets
from lit_models.graphs.edge_embeddings import EdgeEmbeddings, NodeEncoder
from lit_models.graphs.heads import LinearNodeHead
from lit_models.graphs.tasks import NodeRegression
from tests.graphs import graph_model


def stars(tmp_path, **options) -> StarsDataModule:
    defaults = {"leaves": 16, "generated_size": [40, 8, 8], "batch_size": 8}
    data = StarsDataModule(cache_dir=tmp_path, **(defaults | options))
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("depth", [1, 3])
def test_targets_are_those_of_the_edge_model_with_the_planted_weights(depth, tmp_path):
    data = stars(tmp_path, planted_depth=depth)
    planted = planted_network(depth, 32, 0)
    model = graph_model(
        NodeRegression(1),
        EdgeEmbeddings,
        lambda width: NodeEncoder(width, 10),
        LinearNodeHead,
        oriented=True,
        layers=depth,
    ).double()
    net = model.net
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        net.encoder.nodes.weight[:10] = torch.eye(10)
        net.initial.weight[:, :10], net.initial.weight[:, 32:42] = planted.initial.split(10, dim=1)
        for block, weight in zip(net.blocks, planted.rounds, strict=True):
            block.linear.weight.copy_(weight)
        net.head.out.weight.copy_(planted.readout)
        batch = next(iter(data.val_dataloader()))
        batch.x = batch.x.double()
        got = model(batch).view(8, 17)
    want = planted_targets(batch.x.view(8, 17, 10), planted)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    # What the data hold is an affine image of it.
    pairs = torch.stack([want.flatten(), batch.y.flatten().double()])
    assert torch.corrcoef(pairs)[0, 1] == pytest.approx(1, abs=1e-6)


def test_targets_have_unit_variance_and_features_are_gaussian(tmp_path):
    data = stars(tmp_path, generated_size=[2000, 1, 1])
    table = data.train_dataset.table.tensors
    assert table["y"].mean() == pytest.approx(0, abs=0.1)
    assert table["y"].std() == pytest.approx(1, abs=0.1)
    assert table["x"].std() == pytest.approx(1, abs=0.01)


def test_a_graph_is_a_star_with_both_directions(tmp_path):
    data = stars(tmp_path)
    graph = data.test_dataset[0]
    assert (graph.x.shape, graph.y.shape) == ((17, 10), (17, 1))
    assert graph.is_undirected()
    assert torch.bincount(graph.edge_index[0]).tolist() == [16] + [1] * 16


def test_seeds_splits_and_fingerprints(tmp_path):
    data = stars(tmp_path)
    again, other = stars(tmp_path / "again"), stars(tmp_path, seed=1)
    planted = stars(tmp_path, planted_seed=1)
    assert data.fingerprint == again.fingerprint
    assert len({data.fingerprint, other.fingerprint, planted.fingerprint}) == 3
    assert data.test_dataset[0].x.equal(planted.test_dataset[0].x)
    firsts = [d[0].x for d in (data.train_dataset, data.val_dataset, data.test_dataset)]
    firsts += [other.train_dataset[0].x]
    assert all(not a.equal(b) for i, a in enumerate(firsts) for b in firsts[:i])
    assert len(stars(tmp_path, limit=3).train_dataset) == 3
    # More training data leave the test graphs as they are.
    larger = stars(tmp_path, generated_size=[50, 8, 8])
    assert larger.test_dataset[7].x.equal(data.test_dataset[7].x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leaves": 0}, "data.leaves is 0"),
        ({"source": "official"}, "no data source 'official': set data.source to auto or generated"),
        ({"generated_size": [1, 1]}, "data.generated_size"),
        ({"limit": 0}, "data.limit is 0"),
    ],
)
def test_wrong_arguments_are_one_sentence(options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        StarsDataModule(cache_dir=tmp_path, **options)


def test_setup_before_prepare_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="call prepare_data"):
        StarsDataModule(cache_dir=tmp_path).setup()
