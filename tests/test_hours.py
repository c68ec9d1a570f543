"""What `make hours` says follows from the step that it measures."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.test_text_models import composed
from tools.hours import OWN_COUNTS, measure


def test_a_depthwise_convolution_counts_as_one():
    conv = nn.Conv1d(12, 12, 7, groups=12, padding=3)
    with FlopCounterMode(display=False, custom_mapping=OWN_COUNTS) as counter:
        conv(torch.randn(2, 12, 50, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 12 * 50 * 7


def test_a_step_and_how_many_there_are(tmp_path):
    where = ("scale=smoke", "experiment_name=x", f"data.cache_dir={tmp_path}")
    few = ("data.source=generated", "data.generated_size=[60,20,20]")
    bert = ("text_encoder@model.net.encoder=bert", "trainer.accumulate_grad_batches=2")
    cfg = composed("chimera_mlm", *where, *few, *bert)
    step, steps, samples = measure(cfg)
    assert (steps, samples) == (1, 32), "32 blocks, 16 at once"
    # 6 FLOP a weight and token, of the output layer for hidden words alone; attention is small.
    tokens, hidden, width = step.samples * 32, step.samples * 9, 16
    layer = 4 * width**2 + 2 * width * 64
    expected = 6 * (tokens * layer + hidden * (width * 30522 + width**2))
    assert step.flop == pytest.approx(expected, rel=0.05)
    cfg.trainer.max_steps = 70
    assert measure(cfg)[1] == 70


def test_a_penalty_is_differentiated_and_batches_left_out_are_no_steps(tmp_path):
    where = ("scale=smoke", "experiment_name=x", f"data.cache_dir={tmp_path}")
    few = ("data.source=generated", "data.generated_size=[96,16,16]", "data.limit=null")
    few += ("trainer.limit_train_batches=null",)
    plain, steps, _ = measure(composed("sgd_vgg11_cifar10", *where, *few))
    assert steps == 6
    cfg = composed("sgd_vgg11_cifar10", *where, *few, "sgd=gradient_norm")
    penalised, steps, samples = measure(cfg)
    assert (steps, samples) == (3, 32)
    assert 2.5 < penalised.flop / plain.flop < 3.5
    cfg.trainer.limit_train_batches = 4
    assert measure(cfg)[1] == 2
