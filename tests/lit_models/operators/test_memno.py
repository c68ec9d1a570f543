"""MemNO: what a memory remembers, and that a rollout never reads the past again."""

from types import SimpleNamespace

import pytest
import torch

from lit_models.module import Optimisation
from lit_models.operators.ffno import FFNO
from lit_models.operators.memno import LitMemNO, MemNO
from lit_models.operators.memory import LSTM, SelectiveChain
from lit_models.operators.s4d import S4D
from lit_models.operators.tasks import Forecast, relative_l2

MEMORIES = {
    "S4D, zoh": lambda width: S4D(width, 8, step_range=(0.1, 1.0)),
    "S4D, bilinear": lambda width: S4D(width, 8, discretisation="bilinear", poles="inv"),
    "LSTM": LSTM,
    "LSTM, narrow": lambda width: LSTM(width, 5),
    "chain": lambda width: SelectiveChain(width, 8, head_dim=4, step_range=(0.1, 1.0)),
}
memories = pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
T, N = 6, 16


def make(memory=None, **options):
    net = MemNO(2, 2, (4,), memory=memory and memory(8), width=8, before=1, after=1)
    model = LitMemNO(Forecast(), net, Optimisation(), channels=2, **options)
    model.states.adopt(SimpleNamespace(mean=torch.tensor([1.0, -3]), std=torch.tensor([2.0, 5])))
    return model


def make_batch(history=1, samples=3):
    frames = 3 * torch.randn(samples, history + T, 2, N)
    return {"input": frames[:, :history], "target": frames[:, history:]}


@memories
@pytest.mark.parametrize("piece", [1, 4])
def test_pieces_with_their_state_are_the_whole_sequence(memory, piece):
    net, frames = make(memory).net, torch.randn(3, 9, 2, N)
    whole, _ = net(frames)
    state, parts = None, []
    for part in frames.split(piece, dim=1):
        y, state = net(part, state)
        parts.append(y)
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-5 * whole.abs().max()


@memories
def test_a_memory_knows_the_past_of_its_point_and_no_future(memory):
    net = make(memory).net.memory
    x = torch.randn(2, 7, 8, 5, requires_grad=True)
    y, _ = net(x, None)
    (gradient,) = torch.autograd.grad(y[1, 4, :, 2].sum(), x)
    reach = gradient.abs().amax(dim=2)  # [B, T, points]
    assert (reach[1, :5, 2] > 0).all()
    reach[1, :5, 2] = 0
    assert (reach == 0).all()


@memories
def test_every_parameter_learns(memory):
    model = make(memory)
    model.training_loss(make_batch()).backward()
    for name, parameter in model.net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_without_memory_it_is_an_ffno_frame_by_frame():
    net = make().net
    same = FFNO(2, 2, (4,), width=8, layers=2)
    names = {"blocks.0": "before.0", "blocks.1": "after.0"}
    state = net.state_dict()
    for name in same.state_dict():
        source = name
        for old, new in names.items():
            source = source.replace(old, new)
        same.get_parameter(name).data.copy_(state[source])
    frames = torch.randn(3, 4, 2, N)
    torch.testing.assert_close(net(frames)[0].flatten(0, 1), same(frames.flatten(0, 1)))


@memories
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_a_rollout_reads_every_frame_once(memory, history, residual):
    """By hand: the whole past is read anew for every frame, without any state."""
    model, batch = make(memory, residual=residual), make_batch(history)
    seen = model.states(batch["input"])
    for _ in range(T):
        following = model.net(seen)[0][:, -1:]
        seen = torch.cat([seen, following + (seen[:, -1:] if residual else 0)], dim=1)
    want = model.states.inverse(seen[:, history:])
    torch.testing.assert_close(model(batch), want, rtol=1e-4, atol=1e-4)
    lengths = []
    model.net.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    model(batch)
    assert lengths == [history] + [1] * (T - 1)


@memories
def test_teacher_forcing_predicts_every_frame_from_all_true_ones(memory):
    model, batch = make(memory), make_batch(2)
    frames = torch.cat([batch["input"], batch["target"]], dim=1)
    singly = [
        model({"input": frames[:, : 2 + t], "target": frames[:, 2 + t : 3 + t]}) for t in range(T)
    ]
    want = relative_l2(torch.cat(singly, dim=1), batch["target"])
    torch.testing.assert_close(model.training_loss(batch), want, rtol=1e-4, atol=1e-5)


@memories
def test_pushforward_takes_the_loss_of_one_frame_after_free_ones(memory, monkeypatch):
    model, batch = make(memory, training="pushforward"), make_batch()
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(2))
    loss = model.training_loss(batch)
    want = relative_l2(model(batch)[:, 2:3], batch["target"][:, 2:3])
    torch.testing.assert_close(loss, want)


@pytest.mark.parametrize("memory", [None, LSTM])
@pytest.mark.parametrize("frames", [1, 3])
def test_stacked_frames_are_the_last_ones_oldest_first(memory, frames):
    def net(channels, frames):
        torch.manual_seed(0)
        kept = memory and memory(8)
        return MemNO(channels, 2, (4,), memory=kept, frames=frames, width=8, before=1, after=1)

    stacking, plain = net(2, frames), net(2 * frames, 1)
    seen = torch.randn(3, 5, 2, N)
    whole, _ = stacking(seen)
    padded = torch.cat([torch.zeros(3, frames - 1, 2, N), seen], dim=1)
    stacked = [padded[:, t : t + frames].flatten(1, 2) for t in range(5)]
    torch.testing.assert_close(whole, plain(torch.stack(stacked, dim=1))[0])
    state, parts = None, []
    for part in seen.split([2, 1, 2], dim=1):
        y, state = stacking(part, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_no_frame_is_no_network():
    with pytest.raises(ValueError, match=r"positive channels, frames, .* got 2, 2, 0"):
        MemNO(2, 2, (4,), frames=0)


@pytest.mark.parametrize("options", [{"inputs": 1}, {"resolution": [8]}])
def test_what_needs_no_memory_is_refused(options):
    with pytest.raises(ValueError, match="A network with memory has no"):
        make(**options)


def test_heads_must_fill_the_width():
    with pytest.raises(ValueError, match="head_dim that divides 16, got 3"):
        SelectiveChain(8, head_dim=3)
