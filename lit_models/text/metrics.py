"""Metrics of GLUE that are undefined for constant predictions, which are 0 here.

Source: Wang et al., "GLUE", arXiv:1804.07461.
"""

from jaxtyping import Float
from torch import Tensor
from torchmetrics import PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryConfusionMatrix


class MatthewsCorrelation(BinaryConfusionMatrix):
    """Matthews correlation of two classes: the metric of CoLA.

    `update(preds [n], target [n])` takes classes, 0 or 1. 0 if either has one class alone, as in
    scikit-learn.
    """

    def compute(self) -> Float[Tensor, ""]:
        """(TP · TN − FP · FN) / √((TP + FP)(TP + FN)(TN + FP)(TN + FN))."""
        counts = super().compute().double()
        rows, columns = counts.sum(dim=1), counts.sum(dim=0)
        product = rows.prod() * columns.prod()
        determinant = counts[0, 0] * counts[1, 1] - counts[0, 1] * counts[1, 0]
        return (determinant / product.clamp(min=1).sqrt()).float()


class Pearson(PearsonCorrCoef):
    """Pearson correlation: of a constant, 0.

    `update(preds [n], target [n])`, both float.
    """

    def compute(self) -> Float[Tensor, ""]:
        """Of everything since the last reset."""
        return super().compute().nan_to_num(0.0)


class Spearman(SpearmanCorrCoef):
    """Spearman correlation of ranks, the mean rank where values are equal: of a constant, 0.

    `update(preds [n], target [n])`, both float.
    """

    def compute(self) -> Float[Tensor, ""]:
        """Of everything since the last reset."""
        return super().compute().nan_to_num(0.0)
