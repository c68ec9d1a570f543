"""How steep and how curved the loss is where training goes."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from kernels.autograd import FirstDerivativesOnlyError
from lit_models.callbacks.cadence import is_amid_step
from lit_models.explicit_regularisation import (
    AverageJacobian,
    FisherTrace,
    GradientNorm,
    UnitJacobian,
    differentiable_attention,
    require_tensors,
)
from lit_models.module import LitModule, UnfitDataError

SQUARES = {
    "gradient_norm": GradientNorm(0.0),
    "fisher_trace": FisherTrace(0.0),
    "average_jacobian": AverageJacobian(0.0),
    "unit_jacobian": UnitJacobian(0.0),
}
QUANTITIES = (*SQUARES, "sharpness")


class GradientProbe(Callback):
    """Logs quantities of a training batch, which the model has just learned from, as `probe/…`.

    The report has their lists over training, under `GradientProbe`.

    With L_M the loss of the batch, the mean over n targets, and f the predictions: `gradient_norm`
    ‖∇L_M‖; `fisher_trace` n times the mean of ‖∇L_M‖² over targets that the model itself draws, the
    trace of one target's Fisher information matrix; `average_jacobian` ‖∇ Σ_k mean f_k‖²;
    `unit_jacobian` the mean of ‖∇ mean f · u‖² over unit vectors u; `sharpness` the greatest
    eigenvalue of L_M's Hessian matrix, by Lanczos' method. Batch norm takes the batch's statistics,
    as in training, which is left as it was. What a model does not have, such as a Hessian where its
    layers cannot be differentiated twice, is left out with one warning.

    Args:
        every_n_steps: optimiser steps between two measurements.
        quantities: some of the five.
        draws: of targets and of unit vectors.
        tolerance: relative, of the sharpness.
        samples: of the batch, its first ones, such as a micro-batch; None for all.

    Raises:
        ValueError: another quantity.
        UnfitDataError: in training, some samples are asked for of a batch that is no dict of
            tensors.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        quantities: Sequence[str] = QUANTITIES,
        draws: int = 4,
        tolerance: float = 1e-2,
        samples: int | None = None,
    ):
        unknown = set(quantities) - {*QUANTITIES}
        if unknown:
            raise ValueError(
                f"Expected quantities among {', '.join(QUANTITIES)}, got {', '.join(unknown)}."
            )
        self.every_n_steps, self.quantities = every_n_steps, tuple(quantities)
        self.draws, self.tolerance, self.samples = draws, tolerance, samples
        self.measured: dict[str, list] = {}

    def probe(self) -> dict[str, list]:
        """`step` and every quantity, in the order in which they were measured."""
        return self.measured

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.measured = state_dict["measured"]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LitModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if is_amid_step(trainer) or step % self.every_n_steps:
            return
        if self.samples is not None:
            why = f"of which {self.samples} samples are probed"
            require_tensors(batch, why, "set the probe's samples to null")
            batch = {name: x[: self.samples] for name, x in batch.items()}
        found = self.measure(module, batch)
        for name, value in {"step": step, **found}.items():
            self.measured.setdefault(name, []).append(value)
        if trainer.is_global_zero:
            for name, value in found.items():
                trainer.logger.experiment.add_scalar(f"probe/{name}", value, step)

    def measure(self, module: LitModule, batch: Any) -> dict[str, float]:
        """The quantities of a batch, without those that the model does not have."""
        found = {}
        with leaving_no_trace(module):
            for name in self.quantities:
                try:
                    found[name] = self._of(name, module, batch)
                except (UnfitDataError, FirstDerivativesOnlyError) as error:
                    self.quantities = tuple(other for other in self.quantities if other != name)
                    warnings.warn(f"{name} is not probed. {error}", stacklevel=2)
        return found

    def _of(self, name: str, module: LitModule, batch: Any) -> float:
        if name == "sharpness":
            return sharpness(module, batch, self.tolerance)
        draws = self.draws if name in ("fisher_trace", "unit_jacobian") else 1
        squares = [
            float(SQUARES[name].of_one(module, batch, differentiable=False)[1])
            for _ in range(draws)
        ]
        mean = sum(squares) / draws
        if name == "gradient_norm":
            return mean**0.5
        return mean * module.task.targets(batch) if name == "fisher_trace" else mean


def sharpness(module: LitModule, batch: Any, tolerance: float) -> float:
    """The greatest eigenvalue of the Hessian matrix of a batch's training loss, NaN if not found.

    Args:
        tolerance: relative.

    Source: Lehoucq et al., "ARPACK Users' Guide", 1998, by scipy.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    with differentiable_attention():
        loss = module.training_loss(batch)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    used = [(p, g) for p, g in zip(parameters, gradient, strict=True) if g is not None]
    parameters, gradient = map(list, zip(*used, strict=True))
    flat = flattened(gradient)

    def product(vector: np.ndarray) -> np.ndarray:
        along = torch.from_numpy(vector.reshape(-1)).to(flat)
        parts = torch.autograd.grad(
            flat, parameters, along, retain_graph=True, materialize_grads=True
        )
        return flattened(parts).cpu().numpy()

    size, kind = len(flat), flat.detach().cpu().numpy().dtype
    hessian = LinearOperator((size, size), matvec=product, dtype=kind)
    begin = np.random.default_rng(0).standard_normal(size).astype(kind)
    try:
        values = eigsh(hessian, k=1, which="LA", v0=begin, tol=tolerance, return_eigenvectors=False)
    except ArpackNoConvergence:
        return float("nan")
    return float(values[0])


def flattened(parts: Sequence[Tensor]) -> Tensor:
    """One vector of them all."""
    return torch.cat([part.reshape(-1) for part in parts])


@contextmanager
def leaving_no_trace(module: nn.Module) -> Iterator[None]:
    """Buffers and random numbers are afterwards as before; nothing is logged."""
    buffers: list[tuple[Tensor, Tensor]] = [(x, x.detach().clone()) for x in module.buffers()]
    module.log = lambda *_, **__: None
    with torch.random.fork_rng(), torch.enable_grad():
        try:
            yield
        finally:
            del module.log
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
