"""Hydra on text is a quasi-separable matrix; see layers/test_text_encoder.py."""

import torch
from torch.nn import functional as F

from lit_models.layers.gated_norm import gated_norm
from lit_models.layers.sentences import Sentences
from lit_models.text.hydra import QuasiseparableMixer


def test_mixing_is_by_a_quasiseparable_matrix():
    """M[i, j] = C_(i−1) (w_(i−1) ⋯ w_(j+1)) B̄_j for j < i, mirrored above, D + δ(x) between."""
    n, width = 6, 8
    mixer = QuasiseparableMixer(width, 4, head_dim=4, delta_range=(0.05, 0.5))
    sentences = Sentences((n,))
    x = torch.randn(n, width)
    z, v, chains = mixer._projected(x, sentences)
    logs, deltas, Bs, Cs, _ = zip(*chains, strict=True)
    weights, Vs = [log.exp() for log in logs], [v * delta.unsqueeze(-1) for delta in deltas]
    diagonal = mixer.D + F.linear(v.flatten(1), mixer.diagonal.weight)
    y = diagonal.unsqueeze(-1) * v
    for i in range(n):
        for j in range(i):
            decay = weights[0][j + 1 : i].prod(0).unsqueeze(-1)
            y[i] += Cs[0][i - 1] @ Bs[0][j] * decay * Vs[0][j]
        for j in range(i + 1, n):
            decay = weights[1][i + 1 : j].prod(0).unsqueeze(-1)
            y[i] += Cs[1][i + 1] @ Bs[1][j] * decay * Vs[1][j]
    expected = mixer.out_proj(gated_norm(y.flatten(1), z))
    torch.testing.assert_close(mixer(x, sentences), expected, rtol=1e-4, atol=1e-5)
