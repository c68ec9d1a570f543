"""Graphs of a user's own, as they enter a batch."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from datamodules.errors import DataError
from datamodules.graphs.module import GraphDataModule, join_graphs


def path(nodes: int, dtype: torch.dtype) -> Data:
    step = torch.arange(nodes - 1)
    edge_index = torch.stack([step, step + 1]).to(dtype)
    return Data(x=torch.rand(nodes, 2), edge_index=edge_index, pair_index=edge_index, y=step[:1])


class Own(GraphDataModule):
    task, source_used = "own", "generated"

    def __init__(self, graphs: list[Data], **loading):
        super().__init__(**loading)
        self.train_dataset = self.val_dataset = self.test_dataset = graphs

    def setup(self, stage: str | None = None) -> None:
        pass


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_narrow_indices_become_int64_before_graphs_are_joined(dtype):
    graphs = [path(200, dtype), path(150, torch.int64)]
    want = Batch.from_data_list([path(200, torch.int64), path(150, torch.int64)])
    data = Own(graphs, batch_size=2)
    for batch in (*data.val_dataloader(), *data.train_dataloader(), *data.whole(graphs)):
        for name in ("edge_index", "pair_index"):
            assert batch[name].dtype == torch.int64
            assert batch[name].max() == want[name].max() == 349
    assert graphs[0].edge_index.dtype == dtype  # the graphs themselves are left alone


def test_graphs_with_int64_indices_are_joined_as_they_are():
    graphs = [path(5, torch.int64), path(7, torch.int64)]
    got, want = join_graphs(graphs), Batch.from_data_list(graphs)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want.to_dict() if name != "num_nodes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_indices_that_are_no_integers_are_one_sentence(dtype):
    data = Own([path(5, dtype)], batch_size=1)
    sentence = rf"int64, in edge_index of a graph, got {dtype}: convert it by edge_index\.long\(\)"
    with pytest.raises(DataError, match=sentence):
        next(iter(data.train_dataloader()))


def test_training_batches_mix_all_sizes_unless_told_otherwise():
    sizes = torch.arange(2, 402)
    graphs = [path(int(n), torch.int64) for n in sizes]
    spread = {}
    for name, options in {"default": {}, "alike": {"size_jitter": 0.1}}.items():
        loader = Own(graphs, batch_size=20, **options).train_dataloader()
        parts = [sizes[chosen].double().log().std() for chosen in loader.batch_sampler.batches(0)]
        spread[name] = torch.stack(parts).mean()
    assert spread["default"] == pytest.approx(sizes.double().log().std().item(), rel=0.15)
    assert spread["alike"] < spread["default"] / 4


@pytest.mark.parametrize("planned", [False, True])
def test_graphs_that_are_not_cached_are_transformed_as_they_are_loaded(planned):
    """As models ask for in their configs, and before what is done to the batch."""
    graphs = [path(5, torch.int64), path(7, torch.int64)]

    def number(batch: Batch) -> Batch:
        batch.number = torch.arange(batch.num_nodes)
        return batch

    def double(batch: Batch) -> Batch:
        batch.number = 2 * batch.number
        return batch

    options = {"pre_transform": number} | ({"batch_transform": double} if planned else {})
    data = Own(graphs, batch_size=2, **options)
    (batch,) = data.val_dataloader()
    assert batch.number.tolist() == [(1 + planned) * i for i in range(12)]
    assert data.fingerprint == Own(graphs).fingerprint  # runs of other models may be compared
