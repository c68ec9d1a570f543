"""What small batches of SGD may regularise by themselves, penalised explicitly with large ones.

What the data module calls a batch is a micro-batch M, and `trainer.accumulate_grad_batches` of them
make up the large batch of a step, whose loss is the mean of L_M + λ ‖∇_θ s_M‖². The four penalties
differ in the number s_M; its gradient is differentiated once more, exactly. Batch norm has the
statistics of a micro-batch.

A penalty is a callback, so that any experiment takes one of configs/penalty by one word,
`+penalty@callbacks.penalty=gradient_norm`. Shapes: B samples of a micro-batch, K outputs.

Source: Novack et al., "Disentangling the Mechanisms Behind Implicit Regularization in SGD",
arXiv:2211.15853.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from lit_models.module import LitModule, UnfitDataError
from lit_models.task import in_single


class GradientPenalty(Callback, ABC):
    """Adds λ ‖∇_θ s_M‖² to the loss of every micro-batch; a subclass says what s_M is.

    Args:
        weight: λ.
        together: micro-batches in a batch of the data module. Where they are equally many samples
            and the network has no batch norm, `torch.func.vmap` computes their gradients at once,
            which is faster where they are small, at the cost of their memory; elsewhere a loop.

    Raises:
        UnfitDataError: in training, the batch is no dict of tensors and cannot be divided, or the
            model's predictions have no such s_M; before it, the precision is 16-mixed, in which
            the inner gradients would vanish, the network is compiled, or has another penalty.
    """

    def __init__(self, weight: float, together: int = 1):
        self.weight, self.together = weight, together

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module = cast(LitModule, pl_module)
        if trainer.precision == "16-mixed":
            raise UnfitDataError(
                "Expected gradients that do not vanish in half precision, of which a penalty is "
                "made: set trainer.precision to 32-true or bf16-mixed."
            )
        if module.compile_net:
            raise UnfitDataError(
                "Expected a network that can be differentiated twice, which no compiled one can: "
                "set model.compile=false."
            )
        if module.penalty not in (None, self):
            raise UnfitDataError("Expected one penalty, got two: leave out one of the callbacks.")
        module.penalty = self

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        cast(LitModule, pl_module).penalty = None

    @abstractmethod
    def scalar(
        self, module: LitModule, loss: Tensor, predictions: Sequence[Tensor], batch: Any
    ) -> Tensor:
        """s_M, given a micro-batch's training loss and the predictions that it is made from."""

    def losses(self, module: LitModule, batch: Any) -> tuple[Tensor, Tensor]:
        """The training loss of a batch, and the mean over its micro-batches of ‖∇_θ s_M‖²."""
        if self.together == 1:
            return self.of_one(module, batch)
        require_tensors(
            batch,
            f"to be divided into {self.together} micro-batches",
            "set callbacks.penalty.together=1",
        )
        samples = module.task.samples(batch)
        normed = any(isinstance(part, _BatchNorm) for part in module.modules())
        if samples % self.together == 0 and not normed:
            return self._at_once(module, batch)
        parts = zip(*(x.tensor_split(self.together) for x in batch.values()), strict=True)
        parts = [dict(zip(batch, part, strict=True)) for part in parts]
        found = [self.of_one(module, part) for part in parts]
        losses = (
            loss * module.task.samples(part) for (loss, _), part in zip(found, parts, strict=True)
        )
        loss = cast(Tensor, sum(losses)) / samples
        return loss, torch.stack([penalty for _, penalty in found]).mean()

    def of_one(
        self, module: LitModule, batch: Any, *, differentiable: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The training loss of one micro-batch and ‖∇_θ s_M‖², to be differentiated or not."""
        with predictions_of(module) as predictions, differentiable_attention():
            loss = module.training_loss(batch)
        scalar = self.scalar(module, loss, predictions, batch)
        parameters = [p for p in module.parameters() if p.requires_grad]
        gradient = torch.autograd.grad(
            scalar, parameters, create_graph=differentiable, retain_graph=True, allow_unused=True
        )
        return loss, square(gradient)

    def _at_once(self, module: LitModule, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        parameters = {f"module.{n}": p for n, p in module.named_parameters() if p.requires_grad}
        training_loss = TrainingLoss(module)

        def both(parameters: dict, batch: dict) -> tuple[Tensor, Tensor]:
            with predictions_of(module) as predictions, differentiable_attention():
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

    ‖∇_θ s_M‖² has the mean tr F / n, where F is the Fisher information matrix of one of n targets,
    which are the samples, or all labels of samples that have several.
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
        return (means * direction).sum() / direction.norm()  # a product @ would be rounded to bf16


class TrainingLoss(nn.Module):
    """A module's training loss as its forward pass, for `torch.func.functional_call`."""

    def __init__(self, module: LitModule):
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        return self.module.training_loss(batch)


def differentiable_attention() -> AbstractContextManager:
    """Attention by operations that can be differentiated twice, as the fused ones cannot."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def predictions_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What calls of the module return, one after the other."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output)

    hook = module.register_forward_hook(keep)
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


def require_tensors(batch: Any, why: str, remedy: str) -> None:
    """Refuse a batch whose samples cannot be taken apart."""
    if not isinstance(batch, dict):
        raise UnfitDataError(
            f"Expected batches that are dicts of tensors, {why}, got {type(batch).__name__}: "
            f"{remedy}."
        )


def by_output(outputs: Float[Tensor, "B *rest"]) -> Float[Tensor, " K"]:
    """Means over the samples."""
    return in_single(outputs).mean(dim=0).flatten()


def square(gradient: Iterable[Tensor | None]) -> Tensor:
    """Squared length of all parts together."""
    return torch.stack([part.square().sum() for part in gradient if part is not None]).sum()
