"""How steep and how curved the loss is where training goes."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from kernels.autograd import FirstDerivativesOnlyError
from lit_models.callbacks.explicit_regularisation import (
    AverageJacobian,
    FisherTrace,
    GradientNorm,
    UnitJacobian,
    differentiable_attention,
    require_tensors,
)
from lit_models.module import LitModule, UnfitDataError
from lit_models.trainer import board_of

SQUARES = {
    "gradient_norm": GradientNorm(0.0),
    "fisher_trace": FisherTrace(0.0),
    "average_jacobian": AverageJacobian(0.0),
    "unit_jacobian": UnitJacobian(0.0),
}
QUANTITIES = (*SQUARES, "sharpness")


class GradientProbe(Callback):
    """Logs quantities of training batches, which the model is about to learn from, as `probe/…`.

    The report has their lists over training, under `GradientProbe`. Each is a mean over some
    micro-batches: parts of the step's batches and, where these are too few, of the next steps'.

    With L_M the loss of a micro-batch, the mean over n targets, and f the predictions:
    `gradient_norm` ‖∇L_M‖; `fisher_trace` n times the mean of ‖∇L_M‖² over targets that the model
    itself draws, the trace of one target's Fisher information matrix; `average_jacobian` ‖∇ Σ_k
    mean f_k‖²; `unit_jacobian` the mean of ‖∇ mean f · u‖² over unit vectors u; `sharpness` the
    greatest eigenvalue of L_M's Hessian matrix, by Lanczos' method. Batch norm takes the batch's
    statistics, as in training, which is left as it was. What a model does not have, such as a
    Hessian where its layers cannot be differentiated twice, is left out with one warning.

    Args:
        every_n_steps: optimiser steps from one measurement to the next.
        quantities: some of the five.
        draws: of targets and of unit vectors.
        tolerance: relative, of the sharpness.
        samples: of a micro-batch; None for batches as they come. A smaller batch is one.
        micro_batches: that a measurement is the mean of.

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
        micro_batches: int = 1,
    ):
        unknown = set(quantities) - {*QUANTITIES}
        if unknown:
            raise ValueError(
                f"Expected quantities among {', '.join(QUANTITIES)}, got {', '.join(unknown)}."
            )
        self.every_n_steps, self.quantities = every_n_steps, tuple(quantities)
        self.draws, self.tolerance, self.samples = draws, tolerance, samples
        self.micro_batches = micro_batches
        self.measured: dict[str, list] = {}
        self.begun: int | None = None  # step of the measurement that wants more micro-batches
        self.parts: list[dict[str, float]] = []  # and what it has

    def probe(self) -> dict[str, list]:
        """`step` and every quantity, in the order in which they were measured."""
        return self.measured

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured, "begun": self.begun, "parts": self.parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        module = cast(LitModule, pl_module)
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if self.begun is None and first and trainer.global_step % self.every_n_steps == 0:
            self.begun = trainer.global_step
        if self.begun is None:
            return
        for part in self._parts_of(module, batch)[: self.micro_batches - len(self.parts)]:
            self.parts.append(self.measure(module, part))
        if len(self.parts) < self.micro_batches:
            return
        found = {name: fmean(part[name] for part in self.parts) for name in self.parts[-1]}
        for name, value in {"step": self.begun, **found}.items():
            self.measured.setdefault(name, []).append(value)
        if trainer.is_global_zero:
            for name, value in found.items():
                board_of(trainer).add_scalar(f"probe/{name}", value, self.begun)
        self.begun, self.parts = None, []

    def _parts_of(self, module: LitModule, batch: Any) -> list[Any]:
        """Its micro-batches, without the rest that would be a smaller one."""
        if self.samples is None:
            return [batch]
        why = f"to be probed by micro-batches of {self.samples} samples"
        require_tensors(batch, why, "set the probe's samples to null")
        size, count = self.samples, max(1, module.task.samples(batch) // self.samples)
        return [
            {name: x[i * size : (i + 1) * size] for name, x in batch.items()} for i in range(count)
        ]

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
    # scipy's __new__ hides the arguments that its __init__ has, and its types have an integer tol.
    hessian = LinearOperator((size, size), matvec=product, dtype=kind)  # pyright: ignore[reportCallIssue]
    begin = np.random.default_rng(0).standard_normal(size).astype(kind)
    try:
        values = eigsh(
            hessian,
            k=1,
            which="LA",
            v0=begin,
            tol=tolerance,  # pyright: ignore[reportArgumentType]
            return_eigenvectors=False,
        )
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
    module.log = lambda *_, **__: None  # pyright: ignore[reportArgumentType] torch takes any value
    with torch.random.fork_rng(), torch.enable_grad():
        try:
            yield
        finally:
            del module.log
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
