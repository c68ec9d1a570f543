"""Pictures in TensorBoard: molecules with their labels, the learnt resolvent, histograms of Δ."""

import io
import warnings
from functools import partial
from typing import cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor, nn
from torch_geometric.data import Data

from kernels.resolvent import resolvent_matrix
from lit_models.callbacks.cadence import is_due
from lit_models.graphs.batch import Batch
from lit_models.graphs.chimera import ChimeraLayer
from lit_models.graphs.tasks import GraphTask
from lit_models.layers.edge_weights import edge_weights
from lit_models.module import LitModule
from lit_models.trainer import board_of, data_of


class GraphPictures(Callback):
    """Draws a few fixed validation graphs, by the weights that are validated.

    Molecules (where the data carry SMILES) with true and predicted labels; for models with Chimera
    layers also the distribution of every Δ, and |L| of one graph, first and last layer, beside its
    matrix of graph distances.

    Args:
        every_n_epochs: validation epochs between two drawings; the first and the last are drawn.
        graphs: number of graphs.
        nodes: graphs of about this many nodes are taken, large enough to have distances and small
            enough to be read.
    """

    def __init__(self, every_n_epochs: int = 5, graphs: int = 4, nodes: int = 60):
        self.every_n_epochs, self.graphs, self.nodes = every_n_epochs, graphs, nodes

    @rank_zero_only
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Averaged weights are in place now; when the epoch ends, they are taken away before this
        # callback's turn.
        if not is_due(trainer, self.every_n_epochs):
            return
        module, data = cast(LitModule, pl_module), data_of(trainer)
        dataset = data.val_dataset
        sizes = torch.tensor([graph.num_nodes for graph in dataset])
        chosen = (sizes - self.nodes).abs().argsort(stable=True)[: self.graphs].sort().values
        graphs = [dataset[i] for i in chosen.tolist()]
        batch = Batch.from_data_list(graphs).to(module.device)
        seen: dict[str, tuple] = {}
        layers = {n: m for n, m in module.named_modules() if isinstance(m, ChimeraLayer)}
        hooks = [
            layer.register_forward_pre_hook(partial(keep_inputs, seen, name))
            for name, layer in layers.items()
        ]
        try:
            prediction = module(batch)
        finally:
            for hook in hooks:
                hook.remove()
        board, step = board_of(trainer), trainer.global_step
        for name, layer in layers.items():
            x, edge_attr = seen[name][:2]
            for channel, delta in layer.deltas(x, edge_attr)._asdict().items():
                if delta is not None and delta.numel():  # graphs may have no edges
                    board.add_histogram(f"delta_{channel}/{name}", delta.float().cpu(), step)
        if layers:
            matrices = {
                n: first_resolvent(layers[n], seen[n]) for n in (*layers,)[:: len(layers) - 1 or 1]
            }
            board.add_figure("resolvent", draw_resolvents(matrices, graphs[0]), step)
        if "smiles" in graphs[0] and cast(GraphTask, module.task).level == "graph":
            names = data.label_names
            names = names or [str(i) for i in range(prediction.shape[1])]
            picture = draw_molecules(graphs, prediction.float().cpu(), names, module.task.selection)
            if picture is not None:
                board.add_image("molecules", picture, step, dataformats="HWC")


def keep_inputs(seen: dict[str, tuple], name: str, _: nn.Module, inputs: tuple) -> None:
    """Note the inputs of a layer, as a hook before its forward pass."""
    seen[name] = inputs


def first_resolvent(layer: ChimeraLayer, inputs: tuple) -> Tensor:
    """|L| [N, N] of the first graph of a batch, the mean over heads, for a layer's inputs."""
    x, edge_attr, edge_index, ptr, *_ = inputs
    weights = edge_weights(layer.deltas(x, edge_attr), edge_index)
    nodes = int(ptr[1])
    inside = edge_index[0] < nodes
    L = resolvent_matrix(edge_index[:, inside].cpu(), weights[inside].cpu(), nodes)
    return L.abs().mean(dim=0)


def draw_resolvents(matrices: dict[str, Tensor], graph: Data) -> Figure:
    """|L| of each layer, on a logarithmic scale, beside the graph's shortest-path distances."""
    assert graph.edge_index is not None  # a graph that a layer has seen
    source, target = graph.edge_index.tolist()
    ends = coo_array((np.ones(len(source)), (source, target)), (graph.num_nodes,) * 2)
    distance = shortest_path(ends.tocsr(), unweighted=True)
    panels: dict[str, Tensor | np.ndarray] = {
        f"log₁₀ |L|, {name}": m.clamp(min=1e-12).log10() for name, m in matrices.items()
    }
    panels["graph distance in edges"] = np.where(np.isinf(distance), np.nan, distance)
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    for axes, (title, matrix) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        figure.colorbar(axes.imshow(matrix, interpolation="nearest"), ax=axes, shrink=0.8)
        axes.set(title=title, xlabel="source node j", ylabel="target node i")
    return figure


def draw_molecules(
    graphs: list[Data], prediction: Tensor, names: list[str], metric: str
) -> np.ndarray | None:
    """Molecules with what is true and what is predicted; [height, width, 3] of bytes.

    None, with a warning, where RDKit cannot draw, as on machines without an X11 client library.
    """
    try:
        from PIL import Image
        from rdkit import Chem
        from rdkit.Chem import Draw
    except ImportError as error:
        warnings.warn(f"No pictures of molecules: RDKit cannot draw here ({error}).", stacklevel=1)
        return None
    describe = {"ap": describe_labels, "accuracy": describe_class}.get(metric, describe_values)
    targets = [cast(Tensor, graph.y).flatten() for graph in graphs]
    legends = [describe(y, p, names) for y, p in zip(targets, prediction, strict=True)]
    options = Draw.rdMolDraw2D.MolDrawOptions()
    options.legendFontSize, options.legendFraction = 22, 0.2
    png = Draw.MolsToGridImage(
        [Chem.MolFromSmiles(graph.smiles) for graph in graphs],
        molsPerRow=2,
        subImgSize=(640, 480),
        legends=legends,
        drawOptions=options,
        returnPNG=True,
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def describe_labels(target: Tensor, logits: Tensor, names: list[str]) -> str:
    """True labels, and the three most probable ones."""
    true = [name for name, value in zip(names, target.tolist(), strict=True) if value == 1]
    return f"true: {', '.join(true) or 'none'}\npredicted: {likeliest(logits.sigmoid(), names)}"


def describe_class(target: Tensor, logits: Tensor, names: list[str]) -> str:
    """The true class, and the three most probable ones."""
    true = names[int(target)]
    return f"true: {true}\npredicted: {likeliest(logits.softmax(dim=0), names)}"


def likeliest(probabilities: Tensor, names: list[str]) -> str:
    """The three most probable names, or all where they are fewer."""
    values, order = probabilities.topk(min(3, len(names)))
    pairs = zip(order.tolist(), values.tolist(), strict=True)
    return ", ".join(f"{names[i]} {value:.2f}" for i, value in pairs)


def describe_values(target: Tensor, values: Tensor, names: list[str]) -> str:
    """The first three targets, true → predicted."""
    triples = list(zip(names, target.tolist(), values.tolist(), strict=True))[:3]
    return "\n".join(f"{name}: {true:.2f} → {value:.2f}" for name, true, value in triples)
