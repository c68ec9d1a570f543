"""Batches that hold equal amounts of data, in an order that a resumed run continues exactly."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from torch_geometric.loader import DataLoader

from datamodules.errors import DataError


class Samples(Protocol):
    """A dataset of known length, of torch or of torch-geometric."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SizeBudgetSampler(Sampler[list[int]]):
    """Cuts an epoch into a fixed number of batches that hold samples of about the same total size.

    Samples are ordered by size, blurred by log-normal noise when shuffling, and the running size is
    cut at equal steps, so that every sample comes exactly once an epoch. The number of batches is
    that of plain batching with `batch_size` samples, rounded up to a multiple of `replicas`.

    Little noise (`size_jitter=0.1`) puts samples of similar size together, so that padding a batch
    to its largest sample wastes little. Much noise (10) mixes all sizes, as plain batching does.
    Batch norm needs mixed sizes: in batches of similar samples it subtracts what their size tells
    of the label, in training alone, and its running statistics fit no batch.

    Args:
        sizes: int64 [samples], such as the nodes of a graph.
        batch_size: mean number of samples per batch.
        shuffle: draw a new order every epoch, from (seed, epoch) alone.
        seed: of the shuffling.
        rank: this process among the `replicas` that share the batches.
        replicas: number of processes.
        size_jitter: standard deviation of that noise; from about 3 on, batches mix all sizes.

    Raises:
        DataError: no samples, or fewer samples than processes.
    """

    def __init__(
        self,
        sizes: Tensor,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        replicas: int = 1,
        size_jitter: float = 0.1,
    ):
        self.sizes = np.asarray(sizes, dtype=np.int64)
        samples = len(self.sizes)
        if samples < replicas or samples == 0 or batch_size < 1:
            raise DataError(
                f"{samples} samples cannot be cut into batches of {batch_size} for {replicas} "
                "processes: use more data, fewer devices, or a batch size of at least 1."
            )
        total = replicas * math.ceil(math.ceil(samples / batch_size) / replicas)
        self.total = min(total, replicas * (samples // replicas))
        self.shuffle, self.seed, self.size_jitter = shuffle, seed, size_jitter
        self.rank, self.replicas = rank, replicas
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.total // self.replicas

    def __iter__(self) -> Iterator[list[int]]:
        """This process's batches of `epoch`, from number `start` on."""
        yield from self.batches(self.epoch)[self.rank :: self.replicas][self.start :]

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, those of every process included."""
        blurred = self.sizes.astype(float)
        rng = np.random.default_rng([self.seed, epoch])
        if self.shuffle:
            blurred = blurred * np.exp(self.size_jitter * rng.standard_normal(len(blurred)))
        order = np.argsort(blurred, kind="stable")
        running = self.sizes[order].cumsum()
        goals = running[-1] * np.arange(1, self.total) / self.total
        cuts = np.searchsorted(running, goals, side="right")
        # No batch may be empty, even where one sample exceeds the budget.
        step = np.arange(1, self.total)
        cuts = np.maximum.accumulate(np.maximum(cuts, step) - step) + step
        cuts = np.minimum(cuts, len(order) - self.total + step)
        batches = [part.tolist() for part in np.split(order, cuts)]
        return [batches[i] for i in rng.permutation(self.total)] if self.shuffle else batches


class RepeatingSampler(SizeBudgetSampler):
    """Repeated augmentation: an epoch shows few samples often instead of all of them once.

    An epoch draws 1 / `repeats` of the samples and shows each of them `repeats` times, in batches
    as many and as large as those of plain shuffling. The copies of a sample are dealt out among the
    processes, so that they meet in one step of the optimiser; where processes are fewer than
    copies, some lie in one batch. Copy c of sample i has the number i + c · samples.

    Args:
        samples: number of samples, all of one size.
        batch_size, seed, rank, replicas: see SizeBudgetSampler.
        repeats: of a sample in an epoch.

    Raises:
        DataError: no samples, or fewer samples than processes.

    Source: Hoffer et al., "Augment your batch", arXiv:1901.09335, sampled as by RASampler of
    Touvron et al., arXiv:2012.12877.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        repeats: int,
        seed: int = 0,
        rank: int = 0,
        replicas: int = 1,
    ):
        alike = torch.ones(samples, dtype=torch.int64)
        super().__init__(alike, batch_size, True, seed, rank, replicas)
        self.repeats = repeats

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, those of every process included."""
        samples = len(self.sizes)
        drawn = np.random.default_rng([self.seed, epoch]).permutation(samples)
        first = drawn[: math.ceil(samples / self.repeats), None]
        shown = (first + samples * np.arange(self.repeats)).flatten()[:samples]
        steps = np.array_split(shown, len(self))
        return [step[i :: self.replicas].tolist() for step in steps for i in range(self.replicas)]


@dataclass
class _Then:
    """One function after another, in a form that processes can be handed."""

    first: Callable
    second: Callable

    def __call__(self, value: object) -> object:
        return self.second(self.first(value))


class BudgetLoader(DataLoader):
    """A DataLoader of a SizeBudgetSampler that knows which batch of which epoch comes next.

    Lightning stores `state_dict` in checkpoints; a loader that loads it goes on with the next
    batch of the same epoch, in the same order. A dataset with an `epoch` is told the one that is
    read, before the processes that load it begin.

    Args:
        dataset: samples by index.
        sampler: which of them make a batch.
        num_workers: loading processes.
        transform: of every batch, in the process that loads it.
        collate: joins samples to a batch; None for torch-geometric's.
        same_epoch: every epoch is read as the first, to overfit its batches.
    """

    batch_sampler: SizeBudgetSampler

    def __init__(
        self,
        dataset: Samples,
        sampler: SizeBudgetSampler,
        num_workers: int,
        transform: Callable[[Any], Any] | None = None,
        collate: Callable[[list], Any] | None = None,
        same_epoch: bool = False,
    ):
        super().__init__(
            # torch-geometric collates samples of any dataset, though it declares only its own.
            dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=sampler,
            num_workers=num_workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            # Worker seeds come from here, so that the model's random stream stays its own.
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        if collate is not None:
            self.collate_fn = collate
        if transform is not None:
            self.collate_fn = _Then(self.collate_fn, transform)
        self.same_epoch = same_epoch
        self.epoch, self.batch, self._begun = 0, 0, False

    # torch declares a class of its own, of which nothing but iteration is used.
    def __iter__(self) -> Iterator:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._begun:
            self.epoch, self.batch = self.epoch + 1, 0
        self._begun = True
        read = 0 if self.same_epoch else self.epoch
        self.batch_sampler.epoch, self.batch_sampler.start = read, self.batch
        dataset: Any = self.dataset
        if hasattr(dataset, "epoch"):
            dataset.epoch = read
        for batch in super().__iter__():
            self.batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._begun = self.batch >= len(self.batch_sampler)


def budget_loader(
    dataset: Samples,
    sizes: Tensor,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    size_jitter: float = 0.1,
    num_workers: int = 0,
    transform: Callable[[Any], Any] | None = None,
    collate: Callable[[list], Any] | None = None,
    repeats: int = 1,
    same_epoch: bool = False,
) -> BudgetLoader:
    """Batches of `dataset` for this process, see SizeBudgetSampler and BudgetLoader.

    Args:
        dataset, num_workers, transform, collate, same_epoch: see BudgetLoader.
        sizes, batch_size, shuffle, seed, size_jitter: see SizeBudgetSampler.
        repeats: of shuffled samples in an epoch, for samples of one size; see RepeatingSampler.
    """
    rank, replicas = _process_group()
    if shuffle and repeats > 1:
        sampler = RepeatingSampler(len(sizes), batch_size, repeats, seed, rank, replicas)
    else:
        sampler = SizeBudgetSampler(sizes, batch_size, shuffle, seed, rank, replicas, size_jitter)
    return BudgetLoader(dataset, sampler, num_workers, transform, collate, same_epoch)


def _process_group() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
