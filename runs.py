"""Use a run from its folder: load its model, evaluate it, predict with it, or resume it.

python runs.py eval runs/chimera_lrgb-…      (or: make eval RUN=…, make predict, make resume)
"""

import csv
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import h5py
import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch_geometric.data import Data

from datamodules.base import DataModule
from datamodules.batching import BudgetLoader
from datamodules.errors import DataError
from datamodules.graphs.module import GraphDataModule
from datamodules.graphs.molecules import ATOM_FEATURE_SIZES, smiles_to_graph, smiles_to_graphs
from datamodules.pde.module import PDEDataModule
from errors import UserError, one_sentence_errors
from lit_models.graphs.tasks import GraphTask
from lit_models.images.tasks import ImageClassification
from lit_models.module import LitModule
from lit_models.operators.tasks import FieldTask
from lit_models.text.tasks import SentenceTask
from report import number
from train import last_state, prepare_process, train

if TYPE_CHECKING:
    from datamodules.images.module import ImageDataModule
    from datamodules.text.glue import GLUEDataModule

MOLECULES_AT_ONCE = 128


def load_config(run: str | Path) -> DictConfig:
    """The resolved config of a run.

    Raises:
        UserError: `run` is not the folder of a run.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{run} is not the folder of a run, it holds no config.yaml: pass one from runs/."
        )
    cfg = cast(DictConfig, OmegaConf.load(path))
    # A run that was moved is where it is now, and so is all in its folder, `${run_dir}/…`.
    cfg.run_dir = str(Path(run))
    return cfg


def load_run(run: str | Path) -> LitModule:
    """The selected model of a run, in evaluation mode, whatever its class, with its `label_names`.

    The checkpoint is read with `weights_only=True`: it can run no code.

    Args:
        run: folder of the run.

    Raises:
        UserError: no run or no checkpoint there, or a checkpoint that cannot be read.
    """
    model = instantiate(load_config(run).model, _convert_="all")
    path = Path(run) / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UserError(f"{run} has no checkpoints/best.ckpt yet: let its first epoch finish.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["state_dict"])
        model.on_load_checkpoint(checkpoint)
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as the model of its config.yaml ({type(error).__name__}): "
            "restore the file or train again."
        ) from error
    return model.eval()


def evaluate(run: str | Path) -> dict[str, float]:
    """Test metrics of a run's selected model, measured anew and set beside its report."""
    cfg, model, datamodule = _prepare(run)
    missing = cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available()
    trainer = L.Trainer(
        accelerator="auto" if missing else cfg.trainer.accelerator,
        precision=cfg.trainer.precision,
        devices=1,
        # Lightning would test what SLURM stopped at, of whatever run, where it finds that.
        default_root_dir=Path(run) / "checkpoints",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    metrics = trainer.test(model, datamodule, verbose=False)[0]
    metrics = {name.removeprefix("test/"): value for name, value in metrics.items()}
    path = Path(run) / "report.json"
    reported = json.loads(path.read_text())["test"] if path.is_file() else {}
    print(f"{run}: test split, source {datamodule.source_used}")
    for name, value in metrics.items():
        print(f"  {name:<40}{value:.6f}    reported {number(reported.get(name)):.6f}")
    return metrics


def predict(run: str | Path, smiles: str | Path | None = None) -> Path:
    """Write the test predictions of a run's selected model, or those of molecules, to its folder.

    Of graphs to predictions.csv, one line per output row of the model: the number of its graph in
    the whole test split, whatever data.limit, its node in the graph where the task is about nodes,
    and the raw outputs (logits, values or vectors). Of fields to predictions.hdf5, in PDEBench's
    layout and the equation's units: of every window of the test split the frames that are
    predicted, in `sample` its trajectory's number in the data's files, and in `first_predicted` the
    number there of the first predicted frame. The attribute `history` counts the frames that were
    given before it (0 where the problem is steady); from one frame to the next there are
    `time_stride` in the files. Of sentences and images to predictions.csv, one line each: its
    number in the whole test split, of MNLI matched genres first, and raw outputs.
    They are computed on the CPU in float32.

    Args:
        run: folder of the run.
        smiles: file of molecules to predict instead, one SMILES a line or a CSV file with a column
            `smiles`; predictions-<name>.csv then has the number of its line, the SMILES and raw
            outputs. No data are needed for that.

    Raises:
        UserError: the run is of a language model, whose outputs are a number for every word; or it
            is to predict molecules and was not trained on any, or one of them cannot be read.
    """
    if smiles is not None:
        return _predict_molecules(Path(run), Path(smiles))
    _, model, datamodule = _prepare(run)
    writers = {
        GraphTask: _write_rows,
        FieldTask: _write_fields,
        SentenceTask: partial(_write_samples, "sentence"),
        ImageClassification: partial(_write_samples, "image"),
    }
    write = next((w for kind, w in writers.items() if isinstance(model.task, kind)), None)
    if write is None:
        raise UserError(
            f"{run} predicts a number for every word, too many to write: see the words that it "
            "fills in by `make tensorboard`."
        )
    path, count = write(Path(run), model, datamodule)
    print(f"{count} predictions on the test split ({datamodule.source_used}) in {path}")
    return path


def _write_rows(run: Path, model: LitModule, datamodule: GraphDataModule) -> tuple[Path, int]:
    assert isinstance(model.task, GraphTask)
    loader, numbers = _test_loader(datamodule), datamodule.test_numbers
    rows = []
    for places, batch in zip(loader.batch_sampler, loader, strict=True):
        with torch.inference_mode():
            outputs = model(batch)
        graphs = numbers[places].tolist()
        if model.task.level == "graph":
            owners = [(graph, "") for graph in graphs]
        else:
            sizes = zip(graphs, batch.ptr.diff().tolist(), strict=True)
            owners = [(graph, node) for graph, size in sizes for node in range(size)]
        pairs = zip(owners, outputs.tolist(), strict=True)
        rows += [[*owner, *output] for owner, output in pairs]
    path = run / "predictions.csv"
    _write_csv(path, ["graph", "node"], rows, model.task.num_outputs, datamodule.label_names)
    return path, len(rows)


def _write_samples(
    owner: str, run: Path, model: LitModule, datamodule: "GLUEDataModule | ImageDataModule"
) -> tuple[Path, int]:
    assert isinstance(model.task, SentenceTask | ImageClassification)
    loader, numbers = _test_loader(datamodule), datamodule.test_numbers
    rows = []
    for places, batch in zip(loader.batch_sampler, loader, strict=True):
        with torch.inference_mode():
            outputs = model(datamodule.on_after_batch_transfer(batch, 0))
        pairs = zip(numbers[places].tolist(), outputs.tolist(), strict=True)
        rows += [[number, *output] for number, output in pairs]
    path = run / "predictions.csv"
    _write_csv(path, [owner], rows, model.task.num_outputs, datamodule.label_names)
    return path, len(rows)


def _predict_molecules(run: Path, file: Path) -> Path:
    prepare_process()
    cfg, model = load_config(run), load_run(run)
    task = model.task
    features = _values_of("node_sizes", OmegaConf.to_container(cfg.model))
    known = [*ATOM_FEATURE_SIZES] in features
    if not isinstance(task, GraphTask) or task.level != "graph" or not known:
        raise UserError(
            f"{run} was not trained to predict anything of molecules by the features of "
            "datamodules.graphs.molecules, so it can predict nothing from SMILES: name another run."
        )
    lines, smiles = zip(*read_smiles(file), strict=True)
    graphs, outputs = molecules(file, lines, smiles), []
    with torch.inference_mode():
        for first in range(0, len(graphs), MOLECULES_AT_ONCE):
            outputs += model(graphs[first : first + MOLECULES_AT_ONCE]).tolist()
    rows = [[line, text, *y] for line, text, y in zip(lines, smiles, outputs, strict=True)]
    path = run / f"predictions-{file.stem}.csv"
    _write_csv(path, ["line", "smiles"], rows, task.num_outputs, model.label_names)
    print(f"{len(rows)} predictions on {file} in {path}")
    return path


def read_smiles(file: Path) -> list[tuple[int, str]]:
    """The number of its line, from 1, and the SMILES of every molecule of a file.

    Args:
        file: one SMILES a line, what follows it ignored, or a CSV file with a column `smiles`.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read as a text file ({type(error).__name__}): name a file with one "
            "SMILES a line, or a CSV file with a column `smiles`."
        ) from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    if "smiles" in header:
        column = header.index("smiles")
        found = [(line, row[column].strip() if column < len(row) else "") for line, row in rows[1:]]
    elif len(header) > 1:
        raise UserError(
            f"{file} has the columns {', '.join(header)}, and none of them is `smiles`: rename one."
        )
    else:
        found = [(line, row[0].split()[0]) for line, row in rows]
    if not found:
        raise UserError(f"{file} holds no molecule: write one SMILES a line.")
    return found


def molecules(file: Path, lines: Sequence[int], smiles: Sequence[str]) -> list[Data]:
    """A graph of every molecule of a file.

    Raises:
        UserError: one cannot be read; its line is named.
    """
    try:
        return smiles_to_graphs(smiles)
    except DataError:
        for line, text in zip(lines, smiles, strict=True):
            try:
                smiles_to_graph(text)
            except DataError as error:
                raise UserError(f"Line {line} of {file}: {error}") from error
        raise


def _values_of(key: str, config: object) -> list:
    """What stands under a key anywhere in a config."""
    if isinstance(config, list):
        return [found for part in config for found in _values_of(key, part)]
    if not isinstance(config, dict):
        return []
    here = [config[key]] if key in config else []
    return here + [found for part in config.values() for found in _values_of(key, part)]


def _write_csv(
    path: Path, owner: list[str], rows: list[list], outputs: int, names: list[str]
) -> None:
    if len(names) != outputs:
        names = [f"output_{i}" for i in range(outputs)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*owner, *names], *sorted(rows)])


def _test_loader(datamodule: DataModule) -> BudgetLoader:
    # Where there are several, the first is like training.
    loaders = datamodule.test_dataloader()
    return loaders[0] if isinstance(loaders, list) else loaders


def _write_fields(run: Path, model: LitModule, datamodule: PDEDataModule) -> tuple[Path, int]:
    loader, windows = _test_loader(datamodule), len(datamodule.test_dataset)
    names, path = datamodule.channels, run / "predictions.hdf5"
    history = 0 if datamodule.inputs else datamodule.window.history
    stride = datamodule.sampling.time_stride
    with h5py.File(path, "w") as file:
        file.attrs.update(channels=names, history=history, time_stride=stride)
        for places, batch in zip(loader.batch_sampler, loader, strict=True):
            with torch.inference_mode():
                fields = model(batch).movedim(2, 0)
            first = (batch["first"] + history) * stride
            rows = {"sample": batch["sample"], "first_predicted": first}
            rows |= dict(zip(["tensor"] if len(names) == 1 else names, fields, strict=True))
            for name, values in rows.items():
                values = values.numpy()
                shape = (windows, *values.shape[1:])
                file.require_dataset(name, shape, values.dtype)[places] = values
    return path, windows


def resume(run: str | Path) -> dict:
    """Go on with an interrupted run from its last checkpoint, in the same folder."""
    cfg = load_config(run)
    if (Path(run) / "report.json").is_file():
        raise UserError(f"{run} is finished, it has a report.json: nothing is left to resume.")
    last = last_state(Path(run))
    if last is None:
        raise UserError(
            f"{run} was stopped before its first checkpoint: start again with "
            f"`make train EXP={cfg.experiment_name} SCALE={cfg.scale}`."
        )
    return train(cfg, resume_from=last)


def _prepare(run: str | Path) -> tuple[DictConfig, LitModule, DataModule]:
    prepare_process()
    cfg = load_config(run)
    L.seed_everything(cfg.seed, verbose=False)
    model, datamodule = load_run(run), instantiate(cfg.data, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup("test")
    return cfg, model, datamodule


COMMANDS = {"eval": evaluate, "predict": predict, "resume": resume}

if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or [""]
    if command not in COMMANDS or len(arguments) not in (1, 1 + (command == "predict")):
        sys.exit(f"usage: python runs.py {{{'|'.join(COMMANDS)}}} RUN, or: predict RUN SMILES")
    with one_sentence_errors():
        COMMANDS[command](*arguments)
