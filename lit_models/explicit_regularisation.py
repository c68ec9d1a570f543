"""What small batches of SGD may regularise by themselves, penalised explicitly with large ones.

What the data module calls a batch is a micro-batch M, and `trainer.accumulate_grad_batches` of them
make up the large batch of a step, whose loss is the mean of L_M + λ ‖∇_θ s_M‖². The four penalties
differ in the number s_M; its gradient is differentiated once more, exactly. Batch norm has the
statistics of a micro-batch.

A penalty is a callback, so that any experiment takes one: `+callbacks.penalty=…` of
configs/penalty. Shapes: B samples of a micro-batch, K outputs.

Source: Novack et al., "Disentangling the Mechanisms Behind Implicit Regularization in SGD",
arXiv:2211.15853.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from lit_models.module import LitModule, UnfitDataError
from lit_models.tasks import in_single


class GradientPenalty(Callback, ABC):
    """Adds λ ‖∇_θ s_M‖² to the loss of every micro-batch; a subclass says what s_M is.

    Args:
        weight: λ.
        together: micro-batches in a batch of the data module, of equal sizes, whose gradients
            `torch.func.vmap` computes at once: faster where they are small, at the cost of their
            memory. Only for batches that are a dict of tensors, and networks without batch norm.

    Raises:
        UnfitDataError: in training, the micro-batches are not of equal sizes, or the model's
            predictions have no such s_M.
    """

    def __init__(self, weight: float, together: int = 1):
        self.weight, self.together = weight, together

    def setup(self, trainer: L.Trainer, module: LitModule, stage: str) -> None:
        module.penalty = self

    @abstractmethod
    def scalar(
        self, module: LitModule, loss: Tensor, predictions: Sequence[Tensor], batch: Any
    ) -> Tensor:
        """s_M, given a micro-batch's training loss and the predictions that it is made from."""

    def losses(self, module: LitModule, batch: Any) -> tuple[Tensor, Tensor]:
        """The training loss of a batch, and the mean over its micro-batches of ‖∇_θ s_M‖²."""
        if self.together == 1:
            return self.of_one(module, batch)
        return self._of_several(module, batch)

    def of_one(
        self, module: LitModule, batch: Any, *, differentiable: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The training loss of one micro-batch and ‖∇_θ s_M‖², to be differentiated or not."""
        with predictions_of(module) as predictions:
            loss = module.training_loss(batch)
        scalar = self.scalar(module, loss, predictions, batch)
        parameters = [p for p in module.parameters() if p.requires_grad]
        gradient = torch.autograd.grad(
            scalar, parameters, create_graph=differentiable, retain_graph=True, allow_unused=True
        )
        return loss, square(gradient)

    def _of_several(self, module: LitModule, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        sizes = {len(x) for x in batch.values()}
        if len(sizes) > 1 or sizes.pop() % self.together:
            raise UnfitDataError(
                f"Expected batches that divide into {self.together} micro-batches of one size, "
                "which all tensors of a batch have: set data.batch_size to a multiple, leave the "
                "last batch out, or set callbacks.penalty.together=1."
            )
        parameters = {f"module.{n}": p for n, p in module.named_parameters() if p.requires_grad}
        training_loss = TrainingLoss(module)

        def both(parameters: dict, batch: dict) -> tuple[Tensor, Tensor]:
            with predictions_of(module) as predictions:
                loss = functional_call(training_loss, parameters, (batch,))
            return self.scalar(module, loss, predictions, batch), loss

        def of_one(batch: dict) -> tuple[Tensor, Tensor]:
            gradient, (_, loss) = grad_and_value(both, has_aux=True)(parameters, batch)
            return loss, square(gradient.values())

        parts = {name: x.unflatten(0, (self.together, -1)) for name, x in batch.items()}
        loss, penalty = vmap(of_one, randomness="different")(parts)
        return loss.mean(), penalty.mean()


class GradientNorm(GradientPenalty):
    """Of the loss itself, s_M = L_M."""

    def scalar(
        self, module: LitModule, loss: Tensor, predictions: Sequence[Tensor], batch: Any
    ) -> Tensor:
        return loss


class FisherTrace(GradientPenalty):
    """Of the loss to targets that are drawn from what the model itself holds for likely.

    ‖∇_θ s_M‖² has the mean tr F / B, where F is the Fisher information matrix of a sample.
    """

    def scalar(
        self, module: LitModule, loss: Tensor, predictions: Sequence[Tensor], batch: Any
    ) -> Tensor:
        prediction = the_one(predictions)
        drawn = module.task.drawn(prediction.detach(), batch)
        if drawn is None:
            raise UnfitDataError(
                f"{type(module.task).__name__} has no distribution of targets to draw from, which "
                "FisherTrace needs: choose another penalty, such as GradientNorm."
            )
        return module.task.loss(prediction, drawn)


class AverageJacobian(GradientPenalty):
    """Of the sum over outputs of their means over the samples."""

    def scalar(
        self, module: LitModule, loss: Tensor, predictions: Sequence[Tensor], batch: Any
    ) -> Tensor:
        return by_output(the_one(predictions)).sum()


class UnitJacobian(GradientPenalty):
    """Of the outputs' means over the samples along a direction that every micro-batch draws."""

    def scalar(
        self, module: LitModule, loss: Tensor, predictions: Sequence[Tensor], batch: Any
    ) -> Tensor:
        means = by_output(the_one(predictions))
        direction = torch.randn_like(means)
        return means @ (direction / direction.norm())


class TrainingLoss(nn.Module):
    """A module's training loss as its forward pass, for `torch.func.functional_call`."""

    def __init__(self, module: LitModule):
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        return self.module.training_loss(batch)


@contextmanager
def predictions_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What calls of the module return, one after the other."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


def the_one(predictions: Sequence[Tensor]) -> Tensor:
    """The prediction of a model that makes one of a batch as it trains."""
    if len(predictions) != 1:
        raise UnfitDataError(
            f"Expected a model that makes one prediction of a training batch, got "
            f"{len(predictions)}: choose the penalty that needs none, GradientNorm."
        )
    return predictions[0]


def by_output(outputs: Float[Tensor, "B *rest"]) -> Float[Tensor, " K"]:
    """Means over the samples."""
    return in_single(outputs).mean(dim=0).flatten()


def square(gradient: Iterable[Tensor | None]) -> Tensor:
    """Squared length of all parts together."""
    return torch.stack([part.square().sum() for part in gradient if part is not None]).sum()
