"""How long an experiment takes at paper scale, from one training step measured here.

python -m tools.hours experiment=chimera_mlm data.source=generated      (or: make hours EXP=…)
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from checks import require_end, require_seeds
from errors import one_sentence_errors
from report import device_name
from train import CONFIGS, prepare_process

PEAK = 989e12
"""FLOP/s of dense products in bfloat16 on an H100 or H200, of NVIDIA's data sheets."""
UTILISATION = 0.3
"""Assumed, not measured: the share of the peak that a training reaches."""
MEASURED = 8
"""Samples of the step that is measured."""


def _convolution_backward(
    grad_shape: Sequence[int], x_shape: Sequence[int], weight_shape: Sequence[int], *_, **__
) -> int:
    # torch's own count takes a depthwise convolution for a dense one.
    return 2 * 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])


OWN_COUNTS = {torch.ops.aten.convolution_backward: _convolution_backward}


@dataclass(frozen=True)
class Step:
    """Forward and backward pass on some samples.

    Attributes:
        samples: how many.
        flop: of its matrix products and convolutions.
        seconds: it took.
    """

    samples: int
    flop: int
    seconds: float


def measure(cfg: DictConfig) -> tuple[Step, int, int]:
    """A step on few samples, the number of optimiser steps of the run, and samples of each."""
    datamodule = instantiate(cfg.data, batch_size=MEASURED, num_workers=0, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup("fit")
    model = instantiate(cfg.model, _convert_="all")
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    penalty = instantiate(cfg.callbacks.get("penalty"))

    def step() -> None:
        model.zero_grad()
        if penalty is None:
            model.training_loss(batch).backward()
        else:
            loss, square = penalty.of_one(model, batch)
            (loss + penalty.weight * square).backward()

    with FlopCounterMode(display=False, custom_mapping=OWN_COUNTS) as counter:
        step()
    begin = time.perf_counter()
    step()
    seconds = time.perf_counter() - begin
    measured = Step(model.task.samples(batch), counter.get_total_flops(), seconds)
    accumulated = cfg.trainer.get("accumulate_grad_batches", 1)
    steps = cfg.trainer.get("max_steps", -1)
    if steps < 0:
        batches = math.ceil(len(datamodule.train_dataset) / cfg.data.batch_size)
        batches = min(batches, cfg.trainer.limit_train_batches or batches)
        steps = cfg.trainer.max_epochs * math.ceil(batches / accumulated)
    return measured, steps, cfg.data.batch_size * accumulated


def main() -> None:
    """Print what was measured, what follows from it, and under which assumption."""
    prepare_process()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        # Hydra's own names are not there outside a job.
        cfg = compose("train", ["scale=paper", "experiment_name=hours", *sys.argv[1:]])
    require_seeds(OmegaConf.to_container(cfg, resolve=True))
    require_end(cfg.trainer)
    step, steps, samples = measure(cfg)
    flop = step.flop / step.samples * samples * steps
    seconds = step.seconds / step.samples * samples * steps
    print(f"run        {steps:,} steps of {samples:,} samples: {flop:.3g} FLOP")
    print(f"measured   {step.samples} samples: {step.flop:.3g} FLOP in {step.seconds:.2f} s")
    print(f"so here    {seconds / 3600:,.0f} h ({device_name(torch.device('cpu'))})")
    print(
        f"on a GPU   {flop / (PEAK * UTILISATION) / 3600:,.1f} h, assuming {UTILISATION:.0%} of "
        f"{PEAK / 1e12:.0f} TFLOP/s, validation and tests left out"
    )


if __name__ == "__main__":
    with one_sentence_errors():
        main()
