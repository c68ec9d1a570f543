"""What the ops' own backward passes have in common."""

import torch


def refuse_second_derivatives() -> None:
    """Called first in a backward pass that cannot be differentiated itself.

    Raises:
        RuntimeError: its gradients are to be differentiated again.
    """
    if torch.is_grad_enabled():  # in a backward pass only with create_graph=True
        raise RuntimeError(
            "This op has first derivatives only: leave out create_graph=True, or take the op's "
            "float64 reference (kernels.resolvent: backend='reference'), which is slow."
        )
