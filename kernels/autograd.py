"""What the ops' own backward passes have in common."""

from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # pyright: ignore[reportPrivateImportUsage]


class FirstDerivativesOnlyError(RuntimeError):
    """A backward pass is to be differentiated that cannot be."""


def differentiate_by(op: CustomOpDef, backward: CustomOpDef, gradients: int) -> None:
    """Let autograd differentiate a custom op, once, by another one; both work when compiled.

    Args:
        op: takes tensors, then options; returns Y, or Y and tensors that the backward pass needs.
        backward: takes dY, op's tensors, what it kept, op's options; returns the gradients of op's
            first tensors, contiguous and in their dtypes.
        gradients: how many these are.
    """

    def save(ctx, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        kept = output[1:] if isinstance(output, tuple) else ()
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors, *kept)
        ctx.options = inputs[len(tensors) :]
        ctx.without = len(inputs) - gradients
        ctx.set_materialize_grads(False)  # nobody asks for gradients of what is kept

    def differentiate(ctx, dY: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        return *backward(dY, *ctx.saved_tensors, *ctx.options), *(None,) * ctx.without

    def shapes(dY: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(
            torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:gradients]
        )

    op.register_autograd(differentiate, setup_context=save)
    backward.register_fake(shapes)


def refuse_second_derivatives() -> None:
    """Called first in a backward pass that cannot be differentiated itself.

    Raises:
        FirstDerivativesOnlyError: its gradients are to be differentiated again.
    """
    if torch.is_grad_enabled():  # in a backward pass only with create_graph=True
        raise FirstDerivativesOnlyError(
            "This op has first derivatives only: leave out create_graph=True, which penalties of "
            "gradients ask for, or take the op's float64 reference (kernels.resolvent: "
            "backend='reference'), which is slow."
        )
