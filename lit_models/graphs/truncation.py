"""How far the truncated series is from the resolvent in a network while it is being trained."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, median
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor, nn
from torch_geometric.data import Data, Dataset
from torch_geometric.data.data import BaseData

from kernels.resolvent import AddPlan, resolvent
from lit_models.callbacks.untouched import untouched
from lit_models.graphs.batch import Batch
from lit_models.graphs.chimera import ChimeraLayer, checked_resolvent
from lit_models.trainer import board_of, data_of

TOLERANCE = 1e-6


class TruncationProbe(Callback):
    """Compares the exact resolvent of every Chimera layer with the truncated one, as it trains.

    On fixed validation graphs, with the inputs that each layer gets there: before the first step,
    every so many steps, and when training ends, then with the weights that are kept, which are
    averaged ones where there is weight averaging. Errors are relative Frobenius norms over all
    graphs, of the output and of the gradients by edge weights, B, C and V of its inner product with
    a fixed random tensor, taken together. Everything is computed in float32 and leaves no trace in
    the training.

    Args:
        every_n_steps: optimiser steps between two measurements of the error at the diameter.
        graphs: number of graphs, evenly spaced in the order of sizes from smallest to largest.
        terms: powers of two, numbers of summed powers; at the start and at the end they are
            measured all, and the first power of two above the largest diameter with them.
        repeats: of every layer's forward and backward pass at the end, to measure its time.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        graphs: int = 4,
        terms: Sequence[int] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
        repeats: int = 3,
    ):
        self.every_n_steps, self.graphs = every_n_steps, graphs
        self.terms, self.repeats = tuple(terms), repeats
        self.history: list[dict] = []
        self.curves: dict[str, list] = {}
        self.summary: dict[str, float | None] = {}
        self._batch: Batch | None = None

    def state_dict(self) -> dict:
        return {"history": self.history, "curves": self.curves}

    def load_state_dict(self, state_dict: dict) -> None:
        self.history, self.curves = state_dict["history"], state_dict["curves"]

    def probe(self) -> dict:
        """What was found, for a report; {} without Chimera layers or before training has ended.

        `curves` and the errors at the diameter are the worst layer's, seconds the median of all
        layers' forward and backward passes; the exact ones are without the plan, which the data
        loader makes. `slowdown_at_diameter` is the ratio of the two there, `exact_error` float32's
        against the float64 reference, the worst of outputs and gradients, and `terms_for_1e-6` the
        least number that was tried with which no layer's output is further off than that.
        """
        return self.summary and {**self.summary, "curves": self.curves, "history": self.history}

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.history:
            self._measure(trainer, pl_module, "start")

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        done = not self.history or self.history[-1]["step"] == step
        if not done and step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.history:
            self._measure(trainer, pl_module, "end")

    def _measure(
        self, trainer: L.Trainer, module: L.LightningModule, moment: str | None = None
    ) -> None:
        """One measurement, of all terms where the moment has a name."""
        with untouched(module):
            chimera = {n: m for n, m in module.named_modules() if isinstance(m, ChimeraLayer)}
            if not chimera:
                return
            batch = self._fixed_batch(trainer, module)
            layers = live_layers(module, chimera, batch)
            at_diameter = terms_above_diameter(batch)
            terms = sorted({*self.terms, at_diameter}) if moment else [at_diameter]
            repeats = self.repeats if moment == "end" else 1
            found = {name: layer.errors(terms, repeats) for name, layer in layers.items()}
            exact_error = None
            if moment == "end":
                exact_error = max(layer.exact_error() for layer in layers.values())
        step, diameter = trainer.global_step, terms.index(at_diameter)
        rows = [
            {
                "step": step,
                "layer": name,
                **layers[name].facts(),
                "output_error_at_diameter": errors["output"][diameter],
                "gradient_error_at_diameter": errors["gradient"][diameter],
            }
            for name, errors in found.items()
        ]
        self.history = [row for row in self.history if row["step"] != step] + rows
        board = board_of(trainer)
        for row in rows:
            for key in row.keys() - {"step", "layer"}:
                board.add_scalar(f"truncation/{key}/{row['layer']}", row[key], step)
        if moment:
            self._keep_curves(found, terms, moment)
            board.add_figure("truncation", draw_errors(self.curves, at_diameter), step)
        if exact_error is not None:
            self._summarise(rows, at_diameter, exact_error)

    def _fixed_batch(self, trainer: L.Trainer, module: L.LightningModule) -> Batch:
        """The same graphs at every measurement."""
        if self._batch is None:
            graphs = data_of(trainer).val_dataset
            self._batch = fixed_batch(graphs, self.graphs).to(module.device)
        return self._batch

    def _keep_curves(self, found: dict[str, dict], terms: list[int], moment: str) -> None:
        worst = {
            kind: [max(values) for values in zip(*(e[kind] for e in found.values()), strict=True)]
            for kind in ("output", "gradient")
        }
        self.curves = {
            **self.curves,
            "terms": terms,
            f"output error, {moment}": worst["output"],
            f"gradient error, {moment}": worst["gradient"],
        }
        if moment == "end":
            seconds = zip(*(errors["seconds"] for errors in found.values()), strict=True)
            self.curves["seconds"] = [median(values) for values in seconds]
            exact = median(errors["exact seconds"] for errors in found.values())
            self.curves["exact seconds"] = [exact] * len(terms)

    def _summarise(self, rows: list[dict], at_diameter: int, exact_error: float) -> None:
        def needed(kind: str) -> float | None:
            pairs = zip(self.curves["terms"], self.curves[f"{kind} error, end"], strict=True)
            return next((float(terms) for terms, error in pairs if error <= TOLERANCE), None)

        seconds = self.curves["seconds"][self.curves["terms"].index(at_diameter)]
        self.summary = {
            "terms_at_diameter": float(at_diameter),
            "slowdown_at_diameter": seconds / self.curves["exact seconds"][0],
            "output_error_at_diameter": max(row["output_error_at_diameter"] for row in rows),
            "gradient_error_at_diameter": max(row["gradient_error_at_diameter"] for row in rows),
            "exact_error": exact_error,
            "delta_self_mean": fmean(row["delta_self_mean"] for row in rows),
            "delta_self_max": max(row["delta_self_max"] for row in rows),
            "row_sum_max": max(row["row_sum_max"] for row in rows),
            "terms_for_1e-6": needed("output"),
            "gradient_terms_for_1e-6": needed("gradient"),
        }


def live_layers(
    module: nn.Module, layers: dict[str, ChimeraLayer], batch: Batch
) -> dict[str, "LiveLayer"]:
    """Layers of a model with the inputs that they get when it is given a batch."""
    seen: dict[str, LiveLayer] = {}

    def keep(name: str, layer: ChimeraLayer, inputs: tuple) -> None:
        seen[name] = LiveLayer(layer, batch, inputs)

    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            module(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


class LiveLayer:
    """A Chimera layer's resolvent with the operands that it has on a batch.

    Args:
        layer: the layer.
        batch: of graphs with a `plan`.
        inputs: of the layer's forward pass.
    """

    def __init__(self, layer: ChimeraLayer, batch: Batch, inputs: tuple):
        x, edge_attr, self.edge_index, self.ptr, *_ = inputs
        self.plan = batch.plan
        self.operands = [
            operand.float() for operand in layer.operands(x, edge_attr, self.edge_index)
        ]
        delta_self = layer.deltas(x, edge_attr).self
        self.normalised = delta_self is not None
        self.delta_self = x.new_full((1,), math.nan) if delta_self is None else delta_self

    def facts(self) -> dict[str, float]:
        """Δself, mean and maximum over nodes and heads, and the most that leaves a node."""
        weights = self.operands[0]
        leaving = weights.new_zeros(len(self.operands[1]), weights.shape[1])
        leaving.index_add_(0, self.edge_index[0], weights)
        return {
            "delta_self_mean": float(self.delta_self.mean()),
            "delta_self_max": float(self.delta_self.max()),
            "row_sum_max": float(leaving.max()),
        }

    def errors(self, terms: Sequence[int], repeats: int) -> dict:
        """Relative errors of output and gradients, and seconds, by number of terms."""
        exact, exact_seconds = self._exact(repeats)
        found = {"output": [], "gradient": [], "seconds": []}
        for number in terms:
            sums, seconds = self._timed(partial(resolvent, mode="neumann", terms=number), repeats)
            found["output"].append(relative_error(sums[:1], exact[:1]))
            found["gradient"].append(relative_error(sums[1:], exact[1:]))
            found["seconds"].append(seconds)
        return {**found, "exact seconds": exact_seconds}

    def exact_error(self) -> float:
        """Of the exact mode against the float64 reference: the worse of output and gradients."""
        exact, _ = self._exact()
        truth, _ = self._timed(partial(resolvent, backend="reference"), dtype=torch.float64)
        return max(relative_error(exact[:1], truth[:1]), relative_error(exact[1:], truth[1:]))

    def _exact(self, repeats: int = 1) -> tuple[list[Tensor], float]:
        solve = resolvent if self.normalised else checked_resolvent
        return self._timed(partial(solve, plan=self.plan), repeats)

    def _timed(
        self, solve: Callable, repeats: int = 1, dtype: torch.dtype = torch.float32
    ) -> tuple[list[Tensor], float]:
        """Output and gradients of one of `repeats` passes forward and backward, median seconds."""
        times, results = [], []
        for _ in range(repeats):
            operands = [operand.detach().to(dtype).requires_grad_() for operand in self.operands]
            cotangent = fixed_noise(operands[-1])
            start = now(cotangent.device)
            output = solve(self.edge_index, *operands, ptr=self.ptr)
            gradients = torch.autograd.grad(output, operands, cotangent)
            times.append(now(cotangent.device) - start)
            results = [output.detach(), *gradients]
        return results, median(times)


def fixed_batch(graphs: Dataset | Sequence[Data], number: int) -> Batch:
    """So many graphs, evenly spaced in the order of their sizes, with a plan."""
    graphs = cast(Sequence[Data], graphs)
    sizes = [graphs[i].num_nodes or 0 for i in range(len(graphs))]
    order = sorted(range(len(graphs)), key=sizes.__getitem__)
    places = np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int)
    chosen: list[BaseData] = [graphs[order[place]] for place in places]
    return AddPlan()(Batch.from_data_list(chosen))


def terms_above_diameter(batch: Batch) -> int:
    """The first power of two above the largest distance in edges: any two nodes that can hear each
    other then do."""
    source, target = batch.edge_index.tolist()
    adjacency = coo_array((np.ones(len(source)), (source, target)), (batch.num_nodes,) * 2)
    distance = shortest_path(adjacency.tocsr(), unweighted=True)
    return 2 ** int(distance[np.isfinite(distance)].max()).bit_length()


def fixed_noise(like: Tensor) -> Tensor:
    """Standard normal numbers, the same for every tensor of this shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like)


def relative_error(values: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """‖values − truth‖ / ‖truth‖, all tensors of a list taken together."""
    got, true = (torch.cat([x.double().flatten() for x in xs]) for xs in (values, truth))
    return float((got - true).norm() / true.norm())


def now(device: torch.device) -> float:
    """Seconds of a clock, when the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def draw_errors(curves: dict[str, list], at_diameter: int) -> Figure:
    """Relative errors against the number of terms, both on logarithmic scales."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for moment, line in (("start", "--"), ("end", "-")):
        for kind, color in (("output", "C0"), ("gradient", "C1")):
            name = f"{kind} error, {moment}"
            if name in curves:
                axes.loglog(curves["terms"], curves[name], line, color=color, label=name)
    axes.axvline(at_diameter, color="grey", linewidth=0.8, label="diameter")
    axes.set(xlabel="summed powers of A", ylabel="relative error, worst layer")
    axes.legend()
    return figure
