"""What every data module offers to training and to reports."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch_geometric.loader import DataLoader

from datamodules.batching import BudgetLoader, Samples, budget_loader

SPLITS = ("train", "val", "test")


class DataModule(L.LightningDataModule, ABC):
    """Three datasets, in batches whose order a resumed run continues exactly.

    A subclass sets `source_used` in `prepare_data` and the three datasets in `setup`.

    Args:
        batch_size: mean number of samples in a batch.
        num_workers: loading processes.
        shuffle_seed: of the order of the training samples.
        size_jitter: how far training batches mix sizes of samples, see SizeBudgetSampler.
        batch_transform: of every batch, in the process that loads it.

    Attributes:
        task: what is predicted, for reports and titles.
        source_used: such as "official" or "generated", so that neither can pass for the other;
            None where it is not known yet.
        limit: cap on the samples of a split, None for all.
        counted: what reports call samples.
        repeats: times that an epoch shows each training sample it draws, see RepeatingSampler.
        collate: joins samples to a batch; None for torch-geometric's.
    """

    counted = "samples"
    collate: Callable[[list], Any] | None = None
    # Only read, so a subclass may compute it: a checker cannot be told that.
    task: str
    source_used: str | None
    limit: int | None = None
    repeats: int = 1
    train_dataset: Samples
    val_dataset: Samples
    test_dataset: Samples

    def __init__(
        self,
        batch_size: int = 16,
        num_workers: int = 0,
        shuffle_seed: int = 0,
        size_jitter: float = 0.1,
        batch_transform: Callable[[Any], Any] | None = None,
    ):
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.shuffle_seed, self.size_jitter = shuffle_seed, size_jitter
        self.batch_transform = batch_transform
        self._training: BudgetLoader | None = None
        self._position: dict[str, int] = {}

    @property
    def overfits(self) -> bool:
        """Whether the trainer is to see the same few batches in every epoch."""
        # Lightning sets what it does not declare.
        return bool(
            self.trainer and self.trainer.overfit_batches  # pyright: ignore[reportAttributeAccessIssue]
        )

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Set the three datasets."""

    def state_dict(self) -> dict[str, int]:
        """Where training stands in the data, for checkpoints."""
        if self._training is None:
            return {}
        state = self._training.state_dict()
        # An epoch may end before the loader does: trainer.limit_train_batches.
        if self.trainer and state["batch"] >= self.trainer.num_training_batches:
            state = {"epoch": state["epoch"] + 1, "batch": 0}
        return state

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader go on there."""
        # Lightning hands a loader its own state back only inside an epoch, not between two.
        self._position = state_dict

    def train_dataloader(self) -> BudgetLoader:
        """Shuffled batches of the training samples, from where a resumed run stands.

        With `trainer.overfit_batches` every epoch is the first one again.
        """
        self._training = self._loader(self.train_dataset, shuffle=True)
        if self._position:
            self._training.load_state_dict(self._position)
            self._position = {}
        return self._training

    def val_dataloader(self) -> BudgetLoader:
        """Batches of the validation samples, always in the same order."""
        return self._loader(self.val_dataset, shuffle=False)

    def test_dataloader(self) -> BudgetLoader | list[BudgetLoader]:
        """Batches of the test samples, always in the same order; a list of several test sets."""
        return self._loader(self.test_dataset, shuffle=False)

    def whole(self, dataset: Samples) -> DataLoader:
        """All batches of a split for one process, for scores that need no model."""
        # torch-geometric collates samples of any dataset, though it declares only its own.
        loader = DataLoader(
            dataset,  # pyright: ignore[reportArgumentType]
            self.batch_size,
        )
        if self.collate is not None:
            loader.collate_fn = self.collate
        return loader

    @property
    def test_numbers(self) -> Tensor:
        """int64 [samples]: of each test sample in the whole test split, which `limit` thins out."""
        return torch.arange(len(self.test_dataset))

    def sizes(self, dataset: Samples) -> Tensor:
        """int64 [samples]: what the budget of a batch counts; here all samples are alike."""
        return torch.ones(len(dataset), dtype=torch.int64)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """12 hex digits, equal for equal samples in equal splits; known after `setup()`."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What a report says of the data; equal for runs that may be compared."""
        return {
            "task": self.task,
            "source": self.source_used,
            "limit": self.limit,
            self.counted: {
                "train": len(self.train_dataset),
                "val": len(self.val_dataset),
                "test": len(self.test_dataset),
            },
            "fingerprint": self.fingerprint,
        }

    def _loader(self, dataset: Samples, shuffle: bool) -> BudgetLoader:
        return budget_loader(
            dataset,
            self.sizes(dataset),
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self.shuffle_seed,
            size_jitter=self.size_jitter,
            num_workers=self.num_workers,
            transform=self.batch_transform,
            collate=self.collate,
            repeats=self.repeats,
            same_epoch=shuffle and self.overfits,
        )
