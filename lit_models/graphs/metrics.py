"""The metrics of the Long Range Graph Benchmark (Dwivedi et al. 2022, arXiv:2206.08164)."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torchmetrics
from jaxtyping import Float
from torch import Tensor
from torchmetrics.classification import MulticlassF1Score
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat


class AveragePrecision(torchmetrics.Metric):
    """Average precision per label, then the mean over labels: the metric of Peptides-func.

    `update(preds [n, T], target [n, T])` takes logits or scores of any scale and targets in
    {0, 1}, NaN where a label is missing. A label counts if it has at least one positive and one
    negative, as in OGB's evaluator; `compute()` is NaN if none does. The scores are ranked once
    over the whole epoch and never squashed by a sigmoid, so large logits do not become ties.

    Raises:
        ValueError: if the shapes are not [n, num_labels], a score is NaN, or a target is not
            0, 1 or NaN.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, num_labels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [n, T] and targets [n, T] (NaN = missing)."""
        _check_same_shape(preds, target)
        if preds.ndim != 2 or preds.shape[1] != self.num_labels:
            raise ValueError(
                f"Expected scores of shape [n, {self.num_labels}], got {list(preds.shape)}; "
                f"does num_labels match the model's output?"
            )
        _check_not_nan(preds)
        target = target.float()
        if not (target.isnan() | (target == 0) | (target == 1)).all():
            raise ValueError("Expected targets of 0, 1 or NaN (missing), got other values.")
        # Flat states: torchmetrics gathers a 1-d empty float tensor from a rank without data,
        # which must have as many dimensions as the others' states.
        self.preds.append(preds.detach().float().flatten())
        self.target.append(target.flatten())

    def per_label(self) -> Float[Tensor, " labels"]:
        """Average precision [T] of each label over all processes, NaN where it is undefined."""
        # compute() has already synchronised the states when it calls this method.
        sync = self.sync_on_compute and not self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=sync, should_unsync=sync
        ):
            if not len(self.preds):
                return torch.full((self.num_labels,), torch.nan, device=self.device)
            preds = dim_zero_cat(self.preds).reshape(-1, self.num_labels)
            target = dim_zero_cat(self.target).reshape(-1, self.num_labels)
            columns = zip(preds.unbind(1), target.unbind(1), strict=True)
            return torch.stack([_average_precision(p, t) for p, t in columns])

    def compute(self) -> Float[Tensor, ""]:
        """Mean of the defined per-label average precisions, NaN if there is none."""
        return self.per_label().nanmean()


class MeanAbsoluteError(torchmetrics.MeanAbsoluteError):
    """Mean absolute error over all present entries: the metric of Peptides-struct.

    `update(preds [n, T], target [n, T])`, NaN in `target` where a value is missing; in the unit
    of the targets. NaN if no entry is present.

    Raises:
        ValueError: if the two shapes differ.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [n, T] and targets [n, T] (NaN = missing)."""
        _check_same_shape(preds, target)
        present = ~target.isnan()
        # Summing in float32 keeps bf16 predictions from rounding the sum of many errors.
        super().update(preds[present].float(), target[present].float())


class MeanSquaredError(torchmetrics.MeanSquaredError):
    """Mean squared error over all entries, or its root; in the unit of the targets, squared or not.

    `update(preds [n, T], target [n, T])`. NaN before the first update.

    Args:
        squared: False for the root.

    Raises:
        ValueError: if the two shapes differ.
    """

    def __init__(self, squared: bool = True, **kwargs: Any) -> None:
        super().__init__(squared=squared, **kwargs)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions [n, T] and targets [n, T]."""
        _check_same_shape(preds, target)
        # Summing in float32 keeps bf16 predictions from rounding the sum of many errors.
        super().update(preds.float(), target.float())


class MacroF1(MulticlassF1Score):
    """Unweighted mean F1 over the classes that occur: the metric of PascalVOC-SP and COCO-SP.

    `update(logits [n, C], labels [n])`. A class counts if it occurs in the labels or in the
    predictions of the epoch, as in scikit-learn's `f1_score(average="macro")`.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes=num_classes, average="macro", **kwargs)


class MeanReciprocalRank(torchmetrics.Metric):
    """Mean reciprocal rank of the true tails of each head: the metric of PCQM-Contact.

    For each positive pair (head, tail) of a graph, the tail is ranked by the head's row of the
    score matrix among all N nodes of the graph, the head itself included. `filtered=False` is the
    benchmark's raw metric, in which the head's other true tails count as negatives;
    `filtered=True` removes them from the candidates (Tönshoff et al. 2023, arXiv:2309.00367).

    Ties get the average ("realistic") rank: 1 + #better + #equal / 2. The benchmark's code breaks
    ties by an unstable sort, so the two agree in expectation only.

    The mean is taken per graph, then over graphs, as in the benchmark's code, whose epoch value
    moreover weights the mean of a batch by its number of labelled pairs; ours does not depend on
    the batch size. Graphs without a positive pair are skipped (PCQM-Contact has none).

    Raises:
        ValueError: if the numbers of graphs differ, a shape is wrong, or a score is NaN.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    mrr_sum: Tensor
    num_graphs: Tensor

    def __init__(self, filtered: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filtered = filtered
        self.add_state("mrr_sum", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_graphs", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        scores: Tensor | Sequence[Tensor],
        edge_label_index: Tensor | Sequence[Tensor],
        edge_label: Tensor | Sequence[Tensor],
    ) -> None:
        """Add one graph, or equally long lists of them.

        `scores` [N, N] (row = head, column = tail), `edge_label_index` [2, M] with the nodes
        numbered within the graph, `edge_label` [M], positive where it is 1.
        """
        if isinstance(scores, Tensor):
            one = cast(tuple[Tensor, Tensor, Tensor], (scores, edge_label_index, edge_label))
            scores, edge_label_index, edge_label = ([part] for part in one)
        if not len(scores) == len(edge_label_index) == len(edge_label):
            raise ValueError(
                f"Expected as many score matrices as label indices and labels, got {len(scores)}, "
                f"{len(edge_label_index)} and {len(edge_label)}."
            )
        for graph in zip(scores, edge_label_index, edge_label, strict=True):
            ranks = _tail_ranks(*graph, filtered=self.filtered)
            if ranks.numel():
                self.mrr_sum += ranks.reciprocal().mean()
                self.num_graphs += 1

    def compute(self) -> Float[Tensor, ""]:
        """Mean over the graphs that have a positive pair, NaN if there is none."""
        return self.mrr_sum / self.num_graphs


def _average_precision(preds: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> Tensor:
    present = ~target.isnan()
    preds, target = preds[present], target[present].long()
    if target.unique().numel() < 2:
        return preds.new_tensor(torch.nan)
    # torchmetrics applies a sigmoid to scores outside [0, 1], which saturates; average precision
    # depends on the order and the ties alone, so hand it the ranks, scaled to [0, 1].
    values, ranks = preds.unique(return_inverse=True)
    return binary_average_precision(ranks / len(values), target)


def _tail_ranks(
    scores: Tensor, edge_label_index: Tensor, edge_label: Tensor, filtered: bool
) -> Float[Tensor, " positives"]:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"Expected a score matrix [N, N] per graph, got {list(scores.shape)}.")
    if edge_label_index.shape != (2, edge_label.numel()):
        raise ValueError(
            f"Expected edge_label_index of shape [2, {edge_label.numel()}] for "
            f"{edge_label.numel()} labels, got {list(edge_label_index.shape)}."
        )
    _check_not_nan(scores)
    head, tail = edge_label_index[:, edge_label == 1]
    rows, own = scores[head], scores[head, tail].unsqueeze(1)
    is_candidate = torch.ones_like(rows, dtype=torch.bool)
    if filtered:
        is_true = torch.zeros_like(scores, dtype=torch.bool)
        is_true[head, tail] = True
        is_candidate = ~is_true[head]
    is_candidate.scatter_(1, tail.unsqueeze(1), False)
    better = ((rows > own) & is_candidate).sum(1)
    equal = ((rows == own) & is_candidate).sum(1)
    return 1 + better + equal / 2


def _check_same_shape(preds: Tensor, target: Tensor) -> None:
    if preds.shape != target.shape:
        raise ValueError(
            f"Expected predictions and targets of one shape, got {list(preds.shape)} and "
            f"{list(target.shape)}."
        )


def _check_not_nan(scores: Tensor) -> None:
    # Comparisons with NaN are false, so a diverged model would otherwise rank first.
    if scores.isnan().any():
        raise ValueError("Expected scores without NaN; the model has diverged, lower its rate.")
