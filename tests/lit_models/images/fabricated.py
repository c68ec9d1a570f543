"""Small encoders of images, one of each kind."""

from torch import nn

from lit_models.images.bag_of_patches import BagOfPatches
from lit_models.images.chimera import ChimeraImage
from lit_models.images.classifier import ImageClassifier, LitImageClassifier
from lit_models.images.encoder import ImageEncoder
from lit_models.images.scan import ScanImage
from lit_models.images.tasks import ImageClassification
from lit_models.images.undirected import UndirectedImage
from lit_models.images.vit import ViT
from lit_models.module import Optimisation

WIDTH, PATCH, GRID = 8, 2, (3, 4)
MIXING = {"state": 4, "head_dim": 4, "delta_range": (0.05, 0.5)}
ENCODERS = {
    "chimera": lambda **o: ChimeraImage(**_small(MIXING | o)),
    "undirected": lambda **o: UndirectedImage(**_small(MIXING | o)),
    "scan": lambda **o: ScanImage(**_small(MIXING | o)),
    "vit": lambda **o: ViT(**_small({"heads": 2, "hidden": 16, "grid": GRID} | o)),
    "vit, no positions": lambda **o: ViT(**_small({"heads": 2, "hidden": 16, "grid": None} | o)),
    "bag of patches": lambda **o: BagOfPatches(**_small({"hidden": 16} | o)),
}
BLIND_TO_PLACES = ("vit, no positions", "bag of patches")


def _small(options: dict) -> dict:
    return {"width": WIDTH, "layers": 2, "patch": PATCH} | options


def pixels(encoder: ImageEncoder, rows: int, columns: int) -> tuple[int, int]:
    """Height and width of images with so many patches."""
    return rows * encoder.patch, columns * encoder.patch


def image_model(
    encoder: nn.Module, classes: int, optimisation: Optimisation | None = None, **options
) -> LitImageClassifier:
    """A classifier of images, ready to be trained."""
    net = ImageClassifier(encoder, classes)
    task = ImageClassification(classes)
    return LitImageClassifier(task, net, optimisation or Optimisation(), **options)
