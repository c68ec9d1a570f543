"""Chimera on text against the general graph path and a loop; see layers/test_text_encoder.py."""

import pytest
import torch
from torch.nn import functional as F

from lit_models.layers.chain_mixer import ChainMixer
from lit_models.layers.sentences import Sentences
from lit_models.text.chimera import ChimeraText
from lit_models.text.line_graph import LineGraphMixer
from lit_models.text.masked_lm import MaskedLM

WIDTH, STATE, HEAD_DIM = 12, 8, 4
SIZES = (7, 1, 70, 3)


def make_mixer(**options) -> ChainMixer:
    options = {"head_dim": HEAD_DIM, "delta_range": (0.05, 0.5)} | options
    mixer = ChainMixer(WIDTH, STATE, **options)
    with torch.no_grad():  # all numbers of a head differ from those of the next
        mixer.D += torch.randn_like(mixer.D)
        mixer.norm_weight += 0.5 * torch.randn_like(mixer.norm_weight)
    return mixer


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_count_at_paper_scale_part_by_part():
    """About 111 M; every part by hand, so that a missing one shows."""
    d, inner, h, s, v = 768, 1536, 24, 64, 30522
    with torch.device("meta"):
        net = MaskedLM(ChimeraText())
    mixer = net.encoder.blocks[0].inner
    # gate, values, B and C of two directions, Δ of two directions
    assert mixer.in_proj.weight.shape == (inner + inner + 4 * s + 2 * h, d)
    assert count(mixer.conv) == (inner + 4 * s) * (7 + 1)
    assert mixer.delta_bias.shape == mixer.log_decay.shape == mixer.D.shape == (h,)
    assert mixer.norm_weight.shape == (inner,)
    assert count(mixer.out_proj) == inner * d
    own = count(mixer.in_proj) + count(mixer.conv) + 3 * h + inner + inner * d
    assert count(net.encoder.blocks[0]) == own + 2 * d
    assert count(net.encoder.embedding) == v * d + 2 * d + 2 * d
    assert count(net.head) == d * d + d + 2 * d + v  # its decoder is the embedding
    total = count(net)
    assert total == count(net.encoder.embedding) + 23 * (own + 2 * d) + count(net.head)
    assert total // 10**6 == 111


def test_a_layer_is_the_resolvent_of_the_line_graph():
    """Outputs and all gradients, to 1e-5."""
    mixer, x = make_mixer(), torch.randn(sum(SIZES), WIDTH, requires_grad=True)
    graphs = LineGraphMixer(WIDTH, STATE, head_dim=HEAD_DIM)
    graphs.load_state_dict(mixer.state_dict())
    dy = torch.randn(sum(SIZES), WIDTH)

    def run(layer):
        y = layer(x, Sentences(SIZES))
        return y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)

    for mine, theirs in zip(run(mixer), run(graphs), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)


def test_a_layer_token_by_token():
    """The recurrence written out: h ← e^(−aΔ) h + Δ B ⊗ x, y = ⟨C, h⟩, both ways, gate last."""
    mixer, n, S = make_mixer(), 9, STATE
    x = torch.randn(n, WIDTH)
    inner = 2 * WIDTH
    z, given, raw = mixer.in_proj(x).split([inner, inner + 4 * S, 2 * mixer.heads], dim=1)
    zeros = torch.zeros(3, inner + 4 * S)
    seen, filters = torch.cat([zeros, given, zeros]), mixer.conv.weight[:, 0]
    mixed = F.silu(
        torch.stack([(seen[t : t + 7] * filters.T).sum(0) for t in range(n)]) + mixer.conv.bias
    )
    v = mixed[:, :inner].view(n, mixer.heads, HEAD_DIM)
    y = mixer.D[:, None] * v
    for back in (0, 1):
        B = mixed[:, inner + back * S :][:, :S]
        C = mixed[:, inner + (2 + back) * S :][:, :S]
        delta = F.softplus(raw[:, back * mixer.heads :][:, : mixer.heads] + mixer.delta_bias)
        h = torch.zeros(mixer.heads, HEAD_DIM, S)
        for t in reversed(range(n)) if back else range(n):
            decay = torch.exp(-mixer.log_decay.exp() * delta[t])[:, None, None]
            h = decay * h + torch.einsum("h,hp,s->hps", delta[t], v[t], B[t])
            y[t] += h @ C[t]
    y = y.flatten(1)
    y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * mixer.norm_weight
    expected = mixer.out_proj(y * F.silu(z))
    torch.testing.assert_close(mixer(x, Sentences((n,))), expected, rtol=1e-4, atol=1e-5)


def test_edge_weights_are_below_one_and_initial_steps_in_their_range():
    mixer = ChainMixer(64, head_dim=1)
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        chains = mixer.operands(torch.randn(3, 64), Sentences((3,)))
    weights = [chain.log_weight for chain in chains]
    rate = -weights[0][0] / mixer.log_decay.exp()
    assert rate.min() >= 0.99e-3
    assert rate.max() <= 0.101
    assert mixer.log_decay.exp().min() >= 1
    assert mixer.log_decay.exp().max() <= 16
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"head_dim": 5}, "head_dim that divides 24, got 5"), ({"kernel": 6}, "odd number, got 6")],
)
def test_sizes_that_do_not_fit(options, told):
    with pytest.raises(ValueError, match=told):
        make_mixer(**options)
