"""Batches by node budget: every graph once, little padding, resumable, shared among processes."""

import os

import numpy as np
import pytest
import torch

from datamodules.batching import BudgetLoader, SizeBudgetSampler
from datamodules.errors import DataError
from tests.graphs import TOPOLOGIES, molecule_like

SIZES = np.clip(np.random.default_rng(0).gamma(3, 50, 2000).astype(int), 8, 444)


@pytest.mark.parametrize(
    "sizes", [SIZES, [1000, 1, 1, 1], [1, 1, 1, 1000], [5], [7, 7, 7]], ids=len
)
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_graph_comes_once_an_epoch(sizes, replicas):
    if len(sizes) < replicas:
        pytest.skip("fewer graphs than processes is an error, tested below")
    samplers = [SizeBudgetSampler(sizes, 2, True, 3, rank, replicas) for rank in range(replicas)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(share) for share in batches} == {len(samplers[0])}
    assert all(batch for share in batches for batch in share)
    assert sorted(i for share in batches for batch in share for i in batch) == list(
        range(len(sizes))
    )


def test_batches_hold_equal_numbers_of_nodes_and_little_padding():
    batches = SizeBudgetSampler(SIZES, 16, True).batches(0)
    assert len(batches) == 125
    nodes = np.array([SIZES[batch].sum() for batch in batches])
    assert nodes.std() < 0.1 * nodes.mean()
    padded = sum(SIZES[batch].max() * len(batch) for batch in batches)
    assert padded < 1.3 * SIZES.sum()


@pytest.mark.parametrize("shuffle", [True, False])
def test_samples_of_one_size_make_batches_of_one_size(shuffle):
    batches = SizeBudgetSampler(np.full(1000, 3), 100, shuffle).batches(0)
    assert [len(batch) for batch in batches] == [100] * 10


def test_a_large_jitter_mixes_all_sizes():
    batches = SizeBudgetSampler(SIZES, 16, True, size_jitter=10.0).batches(0)
    spread = np.mean([np.log(SIZES[batch]).std() for batch in batches])
    assert spread == pytest.approx(np.log(SIZES).std(), rel=0.1)


def test_epochs_differ_and_are_functions_of_the_seed():
    sampler = SizeBudgetSampler(SIZES, 16, True, seed=1)
    assert sampler.batches(0) != sampler.batches(1)
    assert sampler.batches(1) == SizeBudgetSampler(SIZES, 16, True, seed=1).batches(1)
    assert sampler.batches(0) != SizeBudgetSampler(SIZES, 16, True, seed=2).batches(0)


def test_without_shuffling_the_order_is_fixed():
    sampler = SizeBudgetSampler(SIZES, 16, False)
    assert sampler.batches(0) == sampler.batches(1)


def make_loader() -> BudgetLoader:
    torch.manual_seed(0)
    graphs = [molecule_like(name) for name in TOPOLOGIES] * 3
    sizes = torch.tensor([graph.num_nodes for graph in graphs])
    return BudgetLoader(graphs, SizeBudgetSampler(sizes, 4, True), num_workers=0)


@pytest.mark.parametrize("stopped_after", [1, 6, 7, 10])
def test_a_loader_goes_on_where_its_state_says(stopped_after):
    """7 batches an epoch: in the first epoch, before and at its end, and in the second."""

    def epochs(loader):
        while True:
            yield from loader

    whole = epochs(make_loader())
    expected = [next(whole).x for _ in range(14)]
    first = make_loader()
    batches = epochs(first)
    for _ in range(stopped_after):
        next(batches)
    resumed = make_loader()
    resumed.load_state_dict(first.state_dict())
    rest = epochs(resumed)
    for x in expected[stopped_after:]:
        assert torch.equal(next(rest).x, x)


def test_an_epoch_that_was_cut_short_is_followed_by_a_whole_one():
    """As under trainer.limit_train_batches."""
    loader = make_loader()
    next(iter(loader))
    assert len(list(loader)) == len(loader)
    assert loader.state_dict() == {"epoch": 1, "batch": len(loader)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_transformed_where_they_are_loaded(num_workers):
    def transform(batch):
        batch.loaded_by, batch.twice = os.getpid(), 2 * batch.num_graphs
        return batch

    graphs = [molecule_like("path") for _ in range(3)]
    sampler = SizeBudgetSampler(torch.full((3,), 3), 3, True)
    (batch,) = BudgetLoader(graphs, sampler, num_workers, transform)
    assert batch.twice == 6
    assert (batch.loaded_by == os.getpid()) == (num_workers == 0)


@pytest.mark.parametrize(("sizes", "replicas"), [([], 1), ([4], 2)])
def test_too_few_graphs_are_an_error(sizes, replicas):
    with pytest.raises(DataError, match="cannot be cut into batches"):
        SizeBudgetSampler(sizes, 2, True, 0, 0, replicas)
