"""Use a run from its folder: load its model, evaluate it, predict with it, or resume it.

python runs.py eval runs/chimera_lrgb-…      (or: make eval RUN=…, make predict, make resume)
"""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import h5py
import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules.base import DataModule
from datamodules.graphs.module import GraphDataModule
from datamodules.pde.module import PDEDataModule
from errors import UserError, one_sentence_errors
from lit_models.graphs.tasks import GraphTask
from lit_models.images.tasks import ImageClassification
from lit_models.operators.tasks import FieldTask
from lit_models.text.tasks import SentenceTask
from report import number
from train import last_state, prepare_process, train


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
    cfg = OmegaConf.load(path)
    # A run that was moved is where it is now, and so is all in its folder, `${run_dir}/…`.
    cfg.run_dir = str(Path(run))
    return cfg


def load_run(run: str | Path) -> L.LightningModule:
    """The selected model of a run, in evaluation mode, whatever its class.

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


def predict(run: str | Path) -> Path:
    """Write the test predictions of a run's selected model into its folder.

    Of graphs to predictions.csv, one line per output row of the model: the index of its graph in
    the test split, its node in the graph where the task is about nodes, and the raw outputs
    (logits, values or vectors). Of fields to predictions.hdf5, in PDEBench's layout and the
    equation's units: of every window of the test split the frames that follow, and in `sample` and
    `first` its trajectory's number in the data's files and the number of its first frame there.
    Of sentences and images to predictions.csv, one line each: its number in the test split, raw
    outputs.
    They are computed on the CPU in float32.

    Raises:
        UserError: the run is of a language model, whose outputs are a number for every word.
    """
    _, model, datamodule = _prepare(run)
    writers = {
        GraphTask: _write_rows,
        FieldTask: _write_fields,
        SentenceTask: partial(_write_samples, "sentence", "idx"),
        ImageClassification: partial(_write_samples, "image", "index"),
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


def _write_rows(
    run: Path, model: L.LightningModule, datamodule: GraphDataModule
) -> tuple[Path, int]:
    loader = datamodule.test_dataloader()
    rows = []
    for graphs, batch in zip(loader.batch_sampler, loader, strict=True):
        with torch.inference_mode():
            outputs = model(batch)
        if model.task.level == "graph":
            owners = [(graph, "") for graph in graphs]
        else:
            sizes = zip(graphs, batch.ptr.diff().tolist(), strict=True)
            owners = [(graph, node) for graph, size in sizes for node in range(size)]
        pairs = zip(owners, outputs.tolist(), strict=True)
        rows += [[*owner, *output] for owner, output in pairs]
    return _write_csv(run, ["graph", "node"], rows, model, datamodule)


def _write_samples(
    owner: str, index: str, run: Path, model: L.LightningModule, datamodule: DataModule
) -> tuple[Path, int]:
    """A line for each sample, whose number in the test split batches have under `index`."""
    rows = []
    for batch in datamodule.test_dataloader():
        with torch.inference_mode():
            outputs = model(datamodule.on_after_batch_transfer(batch, 0))
        pairs = zip(batch[index].tolist(), outputs.tolist(), strict=True)
        rows += [[number, *output] for number, output in pairs]
    return _write_csv(run, [owner], rows, model, datamodule)


def _write_csv(
    run: Path, owner: list[str], rows: list[list], model: L.LightningModule, datamodule: DataModule
) -> tuple[Path, int]:
    names = datamodule.label_names
    if len(names) != model.task.num_outputs:
        names = [f"output_{i}" for i in range(model.task.num_outputs)]
    path = run / "predictions.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*owner, *names], *sorted(rows)])
    return path, len(rows)


def _write_fields(
    run: Path, model: L.LightningModule, datamodule: PDEDataModule
) -> tuple[Path, int]:
    loader, windows = datamodule.test_dataloader(), len(datamodule.test_dataset)
    if datamodule.refined:
        loader = loader[0]
    names, path = datamodule.channels, run / "predictions.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["channels"] = names
        for places, batch in zip(loader.batch_sampler, loader, strict=True):
            with torch.inference_mode():
                fields = model(batch).movedim(2, 0)
            rows = {name: batch[name] for name in ("sample", "first")}
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


def _prepare(run: str | Path) -> tuple[DictConfig, L.LightningModule, DataModule]:
    prepare_process()
    cfg = load_config(run)
    L.seed_everything(cfg.seed, verbose=False)
    model, datamodule = load_run(run), instantiate(cfg.data, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup("test")
    return cfg, model, datamodule


COMMANDS = {"eval": evaluate, "predict": predict, "resume": resume}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python runs.py {{{'|'.join(COMMANDS)}}} RUN")
    with one_sentence_errors():
        COMMANDS[sys.argv[1]](sys.argv[2])
