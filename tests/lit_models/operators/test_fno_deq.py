"""FNO-DEQ: the published sizes, one fixed point whatever the solver, and what training logs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lit_models.layers.fixed_point import FixedPoint
from lit_models.module import Optimisation
from lit_models.operators.fno_deq import FNODEQ, LitFNODEQ
from lit_models.operators.tasks import SteadySolution

SMALL = {"width": 6, "layers": 2, "gain": 0.5}
EXACT = FixedPoint(tolerance=1e-5, most=60)


def make(**options):
    return FNODEQ(1, 1, (3, 3), **SMALL | options)


@pytest.mark.parametrize(("blocks", "millions"), [(1, 2.37), (2, 4.15), (4, 7.71)])
def test_published_numbers_of_parameters(blocks, millions):
    """Marwah et al., arXiv:2312.00234: FNO++ at depth 1, which FNO-DEQ shares, 2 and 4."""
    net = FNODEQ(1, 1, (12, 12), width=32, blocks=blocks)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


def test_a_block_by_hand():
    block, z, x = make().blocks[0], torch.randn(2, 6, 9, 9), torch.randn(2, 6, 9, 9)
    got, gelu = block(z, x), torch.nn.functional.gelu
    for conv, mlp, skip in zip(block.convs, block.mlps, block.skips, strict=True):
        z = gelu(mlp(conv(z)) + skip(z) + x)
    torch.testing.assert_close(got, z)


def test_the_solution_is_a_fixed_point_whatever_the_solver():
    net, x = make(fixed_point=EXACT, padding=0.1), torch.randn(3, 1, 11, 11)
    outputs = []
    for solver in ("anderson", "broyden", "plain"):
        net.fixed_point = replace(EXACT, solver=solver)
        outputs.append(net(x))
        assert net.solution.converged.all()
        assert net.solution.residual.max() <= 1e-5
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-3, atol=1e-4)
    z = net.solution.z
    lifted = net.padding(net.lifting(net.coordinates(x)))
    assert (net.blocks[0](z, lifted) - z).norm() <= 2e-5 * z.norm()


def test_repeated_blocks_are_the_weight_tied_network():
    """FNO-WT, by hand."""
    net = make(fixed_point=FixedPoint(gradient="unroll", most=3))
    x = torch.randn(2, 1, 9, 9)
    lifted = net.lifting(net.coordinates(x))
    z = torch.zeros_like(lifted)
    for _ in range(3):
        z = net.blocks[0](z, lifted)
    torch.testing.assert_close(net(x), net.projection(net.last(z)))


def test_blocks_of_their_own_follow_each_other():
    net, x = make(blocks=3), torch.randn(2, 1, 9, 9)
    lifted = net.lifting(net.coordinates(x))
    z = torch.zeros_like(lifted)
    for block in net.blocks:
        z = block(z, lifted)
    torch.testing.assert_close(net(x), net.projection(net.last(z)))
    assert net.solution is None


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unroll"])
def test_every_parameter_learns(gradient):
    net = make(fixed_point=replace(EXACT, gradient=gradient))
    net(torch.randn(2, 1, 9, 9)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_implicit_and_unrolled_gradients_agree():
    x, grads = torch.randn(2, 1, 9, 9).double(), {}
    for gradient in ("implicit", "unroll"):
        torch.manual_seed(0)
        net = make(
            fixed_point=FixedPoint(tolerance=1e-12, most=80, gradient=gradient), gain=0.3
        ).double()
        net(x).square().sum().backward()
        grads[gradient] = torch.cat([p.grad.flatten() for p in net.parameters()])
    torch.testing.assert_close(grads["implicit"], grads["unroll"], rtol=1e-6, atol=1e-9)


def train(net, **options):
    model = LitFNODEQ(SteadySolution(), net, Optimisation(), inputs=1, **options)
    model.states.adopt(SimpleNamespace(mean=torch.zeros(1), std=torch.ones(1)))
    logged = {}
    model.log = lambda name, value, **_: logged.update({name: value})
    batch = {"input": torch.randn(3, 1, 1, 9, 9), "target": torch.randn(3, 1, 1, 9, 9)}
    return model, model.training_loss(batch), logged


def test_training_tells_residual_and_iterations():
    _, _, logged = train(make(fixed_point=EXACT))
    assert logged["train/residual"] <= 1e-5
    assert 1 < logged["train/iterations"] <= 60
    assert logged["train/converged"] == 1


def test_what_does_not_converge_is_not_hidden():
    _, loss, logged = train(make(fixed_point=replace(EXACT, most=1)))
    assert logged["train/converged"] == 0
    assert loss.isfinite()


def test_errors_at_a_depth_are_those_of_so_many_evaluations():
    torch.manual_seed(0)
    net = make(fixed_point=EXACT)
    model, *_ = train(net, depths=[1, 3])
    batch = {"input": torch.randn(3, 1, 1, 9, 9), "target": torch.randn(3, 1, 1, 9, 9)}
    model.eval()
    with torch.no_grad():
        model.test_step(batch, 0)
        assert net.fixed_point == EXACT
        for depth in (1, 3):
            net.fixed_point = replace(EXACT, most=depth, tolerance=0.0)
            want = model.task.loss(model(batch), batch)
            torch.testing.assert_close(model.at_depth[str(depth)].compute(), want)
    assert model.at_depth["1"].compute() != model.at_depth["3"].compute()
    assert model.health["converged"].compute() == 1  # of the solver as it is set, not of a depth


def test_depths_are_those_of_a_fixed_point():
    with pytest.raises(ValueError, match="Without a fixed point there are no depths"):
        train(make(), depths=[1])


def test_the_first_updates_repeat_the_block():
    """Without a trainer the update is the first."""
    model, loss, logged = train(make(fixed_point=EXACT), warm_up=1, warm_up_steps=2)
    assert logged["train/iterations"] == 2
    assert model.net.fixed_point == EXACT
    loss.backward()


def test_a_jacobian_penalty_is_part_of_the_loss_of_training():
    torch.manual_seed(0)
    net = make(fixed_point=EXACT)
    model, loss, _ = train(net, jacobian=10.0)
    assert net.penalty > 0
    loss.backward()
    assert all(p.grad is not None for p in net.blocks.parameters())
    net.penalty = None
    model.eval()
    model({"input": torch.randn(1, 1, 1, 9, 9), "target": torch.zeros(1, 1, 1, 9, 9)})
    assert net.penalty is None


def test_several_blocks_have_no_fixed_point():
    with pytest.raises(ValueError, match="A fixed point is of one block, got 2"):
        make(blocks=2, fixed_point=EXACT)
