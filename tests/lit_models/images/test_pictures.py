"""Pictures of classifiers of images: what is drawn is what the network does."""

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kernels.grid import CORNERS
from kernels.resolvent import resolvent_matrix
from lit_models.callbacks.confusion import ConfusionMatrix, draw_confusion
from lit_models.images.pictures import (
    ImagePictures,
    dag_fields,
    draw_images,
    receptive_field,
    shown_images,
)
from tests.lit_models.callbacks.fitting import fit
from tests.lit_models.images.fabricated import ENCODERS, GRID, PATCH, pixels
from tests.lit_models.images.test_classifier import CLASSES, Batches, batch_of, classifier


class Photographs(Batches):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)

    def __init__(self, batches: list[dict]):
        super().__init__(batches)
        self.label_names = [f"kind {i}" for i in range(CLASSES)]


@pytest.mark.parametrize("name", ["chimera", "vit"])
def test_a_training_leaves_pictures_of_the_first_and_the_last_validation(name, tmp_path):
    mixed = batch_of(4) | {"target": torch.eye(CLASSES)[:4] * 0.7 + 0.3 / CLASSES}
    data = Photographs([batch_of(4), mixed])
    fit(tmp_path, classifier(name), data, ImagePictures(images=3), ConfusionMatrix(5), epochs=3)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    always = {"augmented", "receptive_field", "most_confused", "confusion"}
    assert {*events.Tags()["images"]} == always | ({"dags"} if name == "chimera" else set())
    for tag in ("receptive_field", "most_confused"):
        assert [event.step for event in events.Images(tag)] == [2, 6]
    assert [event.step for event in events.Images("augmented")] == [0]


def test_the_most_confused_are_those_whose_class_was_least_likely():
    pictures, model = ImagePictures(images=2), classifier()
    batch = batch_of(4)
    pictures.hook, pictures.confused = object(), []
    pictures.prediction = torch.zeros(4, CLASSES)
    pictures.prediction[torch.arange(4), batch["label"]] = torch.tensor([1.0, -5.0, 0.0, -2.0])
    pictures.on_validation_batch_end(L.Trainer(logger=False), model, None, batch, 0)
    assert [label for _, _, label, _ in pictures.confused] == batch["label"][[1, 3]].tolist()
    torch.testing.assert_close(pictures.confused[0][1], batch["image"][1])
    assert all(guess != label for _, _, label, guess in pictures.confused)


def test_weights_of_the_middle_are_its_row_of_the_resolvent():
    """Against the float64 matrix of the DAG's edges, by DAG, on the first layer's inputs."""
    net = ENCODERS["chimera"]()
    images = torch.randn(2, 3, *pixels(net, *GRID))
    fields = dag_fields(net, images)
    assert len(fields) == 8  # four DAGs of two layers
    layer, x = net.blocks[0].inner, net.blocks[0].norm(net.patches(images))
    R, K = GRID
    for dag in layer.operands(x):
        field = fields[f"blocks.0.inner, from {dag.root}"]
        dims = CORNERS[dag.root]
        left, top, scale = (w.flip(dims).detach() for w in (dag.left, dag.top, dag.scale))
        edges, weights = [], []
        for r in range(R):
            for c in range(K):
                here = r * K + c
                if c:
                    edges.append((here - 1, here))
                    weights.append(left[:, r, c])
                if r:
                    edges.append((here - K, here))
                    weights.append(top[:, r, c])
        rows = []
        for image in range(2):
            weight = torch.stack([w[image] for w in weights])
            L = resolvent_matrix(torch.tensor(edges).T, weight, R * K)
            places = torch.arange(R * K).view(1, R, K).flip(dims).flatten()
            middle = places == R // 2 * K + K // 2
            rows.append(L[:, middle, :][:, 0] * scale[image].flatten(0, 1).T)
        expected = torch.stack(rows).mean(dim=(0, 1)).view(1, R, K).flip(dims)[0]
        torch.testing.assert_close(field, expected.float(), rtol=1e-4, atol=1e-6)


def test_a_receptive_field_is_where_pixels_count():
    """Of the bag alone all other patches count alike; of one layer without mixing none does."""
    net = ENCODERS["bag of patches"](layers=1)
    images = torch.randn(5, 3, *pixels(net, *GRID))
    with torch.no_grad():
        net.blocks[0].inner.linear.weight.zero_()
    field = receptive_field(net, images)
    own = torch.zeros_like(field, dtype=torch.bool)
    row, column = GRID[0] // 2 * PATCH, GRID[1] // 2 * PATCH
    own[row : row + PATCH, column : column + PATCH] = True
    assert (field[own] > 0).all()
    assert not field[~own].any()
    assert field.max() == 1
    assert net.training


def test_colours_are_those_before_normalisation():
    data = Photographs([])
    true = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.mean, data.std))
    torch.testing.assert_close(shown_images((true - mean) / std, data), true.movedim(1, -1))


def test_images_stand_in_a_square_with_their_titles():
    figure = draw_images(torch.rand(7, 4, 4, 3), [f"a{i}" for i in range(7)])
    assert [axes.get_title() for axes in figure.axes][:7] == [f"a{i}" for i in range(7)]
    assert sum(len(axes.images) for axes in figure.axes) == 7


def test_a_matrix_of_many_classes_is_colours_alone():
    figure = draw_confusion(torch.ones(200, 200), [f"class {i}" for i in range(200)])
    assert figure.get_size_inches().max() < 15
    assert not figure.axes[0].texts
