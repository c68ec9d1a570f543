"""Classifiers of images: losses, scores, and what test images are also seen as."""

import lightning as L
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_models.images.classifier import LitImageClassifier, orders, resized
from lit_models.images.tasks import ImageClassification
from tests.lit_models.images.fabricated import ENCODERS, GRID, image_model, pixels

CLASSES = 7


def classifier(name: str = "vit", **options) -> LitImageClassifier:
    model = image_model(ENCODERS[name](), CLASSES, **options)
    with torch.no_grad():
        model.net.out.weight.normal_()
    return model


def batch_of(images: int, grid: tuple[int, int] = GRID) -> dict[str, torch.Tensor]:
    shape = pixels(ENCODERS["vit"](), *grid)
    return {
        "image": torch.randn(images, 3, *shape),
        "label": torch.randint(CLASSES, (images,)),
        "index": torch.arange(images),
    }


class Batches(L.LightningDataModule):
    batch_size = 4

    def __init__(self, batches: list[dict]):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def scores_of(model, batches) -> dict[str, float]:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    return trainer.test(model, Batches(batches), verbose=False)[0]


def test_a_prediction_is_linear_in_the_mean_of_all_patches():
    model, batch = classifier("chimera"), batch_of(3)
    features = model.net.encoder(batch["image"]).flatten(1, 2).mean(dim=1)
    expected = features @ model.net.out.weight.T + model.net.out.bias
    torch.testing.assert_close(model(batch), expected)


def test_a_new_classifier_holds_all_classes_for_equally_likely():
    model = image_model(ENCODERS["vit"](), CLASSES)
    assert not model(batch_of(2)).any()


class TestLoss:
    def test_of_labels_and_of_mixed_labels(self):
        model, batch = classifier(), batch_of(5)
        log_p = model(batch).log_softmax(dim=1)
        plain = -log_p[torch.arange(5), batch["label"]].mean()
        torch.testing.assert_close(model.training_loss(batch), plain)
        target = torch.rand(5, CLASSES).softmax(dim=1)
        mixed = -(target * log_p).sum(dim=1).mean()
        torch.testing.assert_close(model.training_loss(batch | {"target": target}), mixed)

    def test_smoothing_is_of_training_alone(self):
        task, batch = ImageClassification(CLASSES, label_smoothing=0.3), batch_of(5)
        prediction = torch.randn(5, CLASSES)
        log_p, true = prediction.log_softmax(dim=1), F.one_hot(batch["label"], CLASSES)
        smooth = -((0.7 * true + 0.3 / CLASSES) * log_p).sum(dim=1).mean()
        torch.testing.assert_close(task.training_loss(prediction, batch), smooth)
        plain = -(true * log_p).sum(dim=1).mean()
        torch.testing.assert_close(task.loss(prediction, batch), plain)


class TestScores:
    def test_the_share_of_right_ones_first_and_among_five(self):
        prediction = torch.arange(CLASSES, 0, -1.0).expand(7, -1)  # class 0 first, then 1, …
        task, metrics = ImageClassification(CLASSES), ImageClassification(CLASSES).metrics()
        task.update(metrics, prediction, {"label": torch.arange(7)})
        scores = task.scores(metrics)
        assert scores["accuracy"] == pytest.approx(1 / 7)
        assert scores["accuracy_top5"] == pytest.approx(5 / 7)

    def test_the_trivial_one_takes_the_commonest_training_class(self):
        train = [{"label": torch.tensor([1, 2, 2])}, {"label": torch.tensor([2, 0])}]
        test = [{"label": torch.tensor([2, 1])}, {"label": torch.tensor([0])}]
        assert ImageClassification(CLASSES).score_trivial(train, test)["accuracy"] == pytest.approx(
            1 / 3
        )


class TestViews:
    def test_places_mean_nothing_to_a_bag_of_patches(self):
        batches = [batch_of(40), batch_of(40)]
        bag = scores_of(classifier("bag of patches", test_permuted=True), batches)
        assert bag["test/accuracy_permuted"] == bag["test/accuracy"]
        assert bag["test/accuracy"] > 0

    def test_places_mean_something_to_chimera(self):
        model, batch = classifier("chimera"), batch_of(3)
        same = torch.arange(12).expand(3, -1)
        torch.testing.assert_close(model.net.permuted(batch["image"], same), model(batch))
        other = model.net.permuted(batch["image"], orders(batch["index"], 12))
        assert (other - model(batch)).abs().max() > 1e-3

    def test_every_image_has_an_order_of_its_own(self):
        index = torch.tensor([3, 5, 3])
        drawn = orders(index, 12)
        assert torch.equal(drawn.sort(dim=1).values, torch.arange(12).expand(3, -1))
        assert torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], drawn[1])

    def test_other_resolutions(self):
        """Scores of the images made larger by hand."""
        batches, side = [batch_of(30, (4, 4)), batch_of(30, (4, 4))], 12
        model = classifier("chimera", test_resolutions=[side, 8])
        scores = scores_of(model, batches)
        larger = [resized(batch["image"], side) for batch in batches]
        assert larger[0].shape == (30, 3, side, side)
        right = torch.cat(
            [
                model.net.of_images(images).argmax(1) == batch["label"]
                for images, batch in zip(larger, batches, strict=True)
            ]
        )
        assert scores[f"test/accuracy_{side}"] == pytest.approx(float(right.float().mean()))
        assert scores["test/accuracy_8"] == scores["test/accuracy"]  # their own size

    def test_an_image_made_larger_is_the_same_picture(self):
        rising = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
        larger = resized(rising, 32)
        assert (larger.diff(dim=3) >= -1e-3).all()
        assert larger.mean() == pytest.approx(0.5, abs=1e-3)
