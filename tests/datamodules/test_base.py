"""What every data module demands of its subclasses and offers to a trainer."""

import lightning as L
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.base import DataModule
from datamodules.cached import CachedDataModule
from datamodules.graphs.module import (
    CachedGraphDataModule,
    GeneratedGraphDataModule,
    GraphDataModule,
)
from datamodules.images.module import ImageDataModule, LabelledImages
from datamodules.text.module import TextDataModule

ABSTRACT = {
    DataModule: {"fingerprint", "setup"},
    GraphDataModule: {"setup"},
    CachedDataModule: {"sources", "open_split"},
    CachedGraphDataModule: {"sources"},
    GeneratedGraphDataModule: {"key", "generate"},
    TextDataModule: {"sources", "open_split"},
    ImageDataModule: {"sources", "open_split"},
    LabelledImages: {"image", "index_select"},
}


@pytest.mark.parametrize("base", ABSTRACT, ids=lambda base: base.__name__)
def test_a_base_class_is_made_by_none_but_its_subclasses(base):
    assert base.__abstractmethods__ == ABSTRACT[base]
    with pytest.raises(TypeError, match="abstract"):
        base()


class Drawn(Dataset):
    """Numbers to which every epoch adds another one, as augmentation does."""

    def __init__(self):
        self.epoch = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index + 0.01 * self.epoch])


class DrawnDataModule(DataModule):
    task, source_used, fingerprint = "drawn", "generated", "0" * 12

    def setup(self, stage: str | None = None) -> None:
        self.train_dataset, self.val_dataset, self.test_dataset = (Drawn() for _ in range(3))


class Seen(L.LightningModule):
    """Notes the batches it was trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[float]] = []

    def training_step(self, batch, _):
        self.seen.append(batch.flatten().tolist())
        return (self.weight * batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(epochs: int, **options) -> list[list[float]]:
    model = Seen()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet, **options
    )
    trainer.fit(model, DrawnDataModule(batch_size=8))
    return model.seen


@pytest.mark.parametrize("batches", [1, 2, 0.4])
def test_overfitting_shows_the_same_batches_in_every_epoch(batches):
    seen = fit(3, overfit_batches=batches)
    count = len(seen) // 3
    assert count == (batches if isinstance(batches, int) else 2)
    assert seen[:count] == seen[count : 2 * count] == seen[2 * count :]
    assert seen[:count] == fit(1)[:count]  # the first of a plain run


def test_other_runs_see_other_batches_in_every_epoch():
    seen = fit(2, limit_train_batches=1)
    assert [int(x) for x in seen[0]] != [int(x) for x in seen[1]]
    assert all(x % 1 == pytest.approx(0.01, abs=1e-4) for x in seen[1])
