"""Chimera on images against the general graph path and a loop; see layers/test_image_encoder.py."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from kernels.grid import CORNERS
from kernels.resolvent import resolvent
from lit_models.images.chimera import ChimeraGridMixer, ChimeraImage, entering
from lit_models.images.undirected import UndirectedGridMixer, grids

WIDTH, STATE, HEAD_DIM = 6, 4, 3
OPTIONS = {
    "as published, but for the root": {},
    "as published": {"root_emits": False},
    "one DAG": {"roots": ["bottom left"]},
    "two DAGs": {"roots": ["top left", "bottom right"]},
    "shared B and C": {"projections": "all"},
    "separate B and C": {"projections": "each"},
    "shared Δ": {"deltas": "all"},
    "indegree": {"normalise": "indegree"},
    "no normalisation": {"normalise": "none"},
}


def make_mixer(kind=ChimeraGridMixer, **options):
    options = {"head_dim": HEAD_DIM, "delta_range": (0.05, 0.5)} | options
    mixer = kind(WIDTH, STATE, **options)
    with torch.no_grad():  # all numbers of a head differ from those of the next
        mixer.D += torch.randn_like(mixer.D)
        mixer.norm_weight += 0.5 * torch.randn_like(mixer.norm_weight)
    return mixer


class GeneralGraphMixer(ChimeraGridMixer):
    """The same by the resolvent of any graph, which is told the DAGs' edges alone."""

    def mix(self, v, B, C, delta):
        images, rows, columns = v.shape[:3]
        places = torch.arange(images * rows * columns).view(images, rows, columns)
        flat = v.flatten(0, 2)
        y = flat * self.D[:, None]
        for dag in self._dags(B, C, delta):
            down, right = (-1 if at in dag.root else 1 for at in ("bottom", "right"))
            edges, weights = [], []
            for dim, step, weight in ((2, right, dag.left), (1, down, dag.top)):
                size = places.shape[dim]
                first, second = places.narrow(dim, 0, size - 1), places.narrow(dim, 1, size - 1)
                pair = (first, second) if step == 1 else (second, first)
                edges.append(torch.stack([x.flatten() for x in pair]))
                weights.append(weight.flatten(0, 2)[edges[-1][1]])
            nodes = (x.flatten(0, 2) for x in (dag.B, dag.C))
            values = flat * dag.scale.flatten(0, 2).unsqueeze(-1)
            ptr = torch.arange(images + 1) * rows * columns
            y = y + resolvent(
                torch.cat(edges, 1), torch.cat(weights), *nodes, values, ptr=ptr, mode="dag"
            )
        return y.view_as(v)


def outputs_and_gradients(layer, x, cotangent):
    y = layer(x)
    return y, *torch.autograd.grad(y, [x, *layer.parameters()], cotangent)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_count_at_paper_scale_part_by_part():
    """About 89.5 M with a head of 1,000 classes; every part by hand."""
    d, inner, h, s = 768, 1536, 12, 64
    with torch.device("meta"):
        net = ChimeraImage(state=s)
    mixer = net.blocks[0].inner
    # gate, values, B and C of two diagonals, Δ of four DAGs and two directions
    assert mixer.in_proj.weight.shape == (inner + inner + 4 * s + 8 * h, d)
    assert count(mixer.conv) == (inner + 4 * s) * (9 + 1)
    assert mixer.delta_bias.shape == (8, h)
    assert mixer.D.shape == (h,)
    own = count(mixer.in_proj) + count(mixer.conv) + 9 * h + inner + inner * d
    assert count(net.blocks[0]) == own + 2 * d
    assert count(net.embedding) == 3 * 16 * 16 * d + d
    total = count(net)
    assert total == 23 * (own + 2 * d) + count(net.embedding) + 2 * d
    assert (total + 1000 * (d + 1)) / 1e6 == pytest.approx(89.5, rel=0.01)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (1, 4)])
def test_a_layer_is_the_resolvent_of_the_same_dags_as_graphs(options, shape):
    """Outputs and all gradients, to 1e-5."""
    mixer = make_mixer(**options)
    graphs = make_mixer(GeneralGraphMixer, **options)
    graphs.load_state_dict(mixer.state_dict())
    x = torch.randn(2, *shape, WIDTH, requires_grad=True)
    cotangent = torch.randn(2, *shape, WIDTH)
    pairs = zip(*(outputs_and_gradients(m, x, cotangent) for m in (mixer, graphs)), strict=True)
    for mine, theirs in pairs:
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("root_emits", [True, False])
def test_a_layer_patch_by_patch(root_emits):
    """The recurrence written out in an image's own orientation, gate last."""
    mixer, (R, K), S = make_mixer(root_emits=root_emits), (3, 4), STATE
    inner, H = 2 * WIDTH, mixer.heads
    x = torch.randn(1, R, K, WIDTH)
    z, given, raw = mixer.in_proj(x[0]).split([inner, inner + 4 * S, 8 * H], dim=-1)
    padded = F.pad(given, (0, 0, 1, 1, 1, 1))
    mixed = mixer.conv.bias.repeat(R, K, 1)
    for i, j in itertools.product(range(3), repeat=2):
        mixed = mixed + padded[i : i + R, j : j + K] * mixer.conv.weight[:, 0, i, j]
    mixed = F.silu(mixed)
    v = mixed[..., :inner].view(R, K, H, HEAD_DIM)
    y = mixer.D[:, None] * v
    for number, root in enumerate(CORNERS):
        pair = 0 if root in ("top left", "bottom right") else 1
        B, C = mixed[..., inner + 2 * pair * S :][..., : 2 * S].split(S, dim=-1)
        delta = raw[..., 2 * number * H :][..., : 2 * H].unflatten(-1, (2, H))
        delta = F.softplus(delta + mixer.delta_bias[2 * number : 2 * number + 2])
        rows = range(R) if "top" in root else reversed(range(R))
        columns = range(K) if "left" in root else reversed(range(K))
        h = {}
        for r, c in itertools.product(rows, list(columns)):
            before = (r, c - 1 if "left" in root else c + 1), (r - 1 if "top" in root else r + 1, c)
            entering = [place in h for place in before]
            counts = [True, True] if root_emits and not any(entering) else entering
            root_of_degree = math.sqrt(max(1, sum(counts)))
            steps = [delta[r, c, i] for i in (0, 1)]
            gift = sum(step for step, there in zip(steps, counts, strict=True) if there)
            gift = gift / root_of_degree if any(counts) else torch.zeros(H)
            state = torch.einsum("h,hp,s->hps", gift, v[r, c], B[r, c])
            for place, step in zip(before, steps, strict=True):
                if place in h:
                    state = state + (torch.exp(-step) / root_of_degree)[:, None, None] * h[place]
            h[r, c] = state
            y[r, c] = y[r, c] + state @ C[r, c] / 2
    y = y.flatten(2)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm_weight
    expected = mixer.out_proj(y * F.silu(z))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("root_emits", [True, False])
def test_whom_a_corner_reaches(root_emits):
    """As released only its own row and column, as it emits nothing into its own DAG."""
    mixer, x = make_mixer(kernel=1, root_emits=root_emits), torch.randn(1, 4, 5, WIDTH)
    x.requires_grad_()
    for corner in itertools.product((0, 3), (0, 4)):
        reached = torch.zeros(4, 5, dtype=torch.bool)
        y = mixer(x)
        for place in itertools.product(range(4), range(5)):
            (gradient,) = torch.autograd.grad(y[0][place].sum(), x, retain_graph=True)
            reached[place] = gradient[0][corner].abs().max() > 0
        of_its_own = torch.zeros_like(reached)
        of_its_own[corner[0]] = of_its_own[:, corner[1]] = True
        assert torch.equal(reached, torch.ones_like(reached) if root_emits else of_its_own)


def test_edges_enter_from_the_side_of_the_root():
    along_row, along_column = entering(2, 3, "bottom right", False, torch.device("cpu"))[..., 0]
    assert along_row.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert along_column.tolist() == [[1, 1, 1], [0, 0, 0]]
    with_root = entering(2, 3, "bottom right", True, torch.device("cpu"))[..., 0]
    assert with_root[:, 1, 2].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("normalise", "most"), [("sqrt_indegree", math.sqrt(2)), ("indegree", 1), ("none", 2)]
)
def test_how_much_enters_a_patch(normalise, most):
    mixer = make_mixer(normalise=normalise, delta_range=(1e-3, 1e-3))
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        (dag, *_) = mixer.operands(torch.randn(1, 3, 3, WIDTH))
    inside = (dag.left + dag.top)[0, 1:, 1:]
    torch.testing.assert_close(inside, torch.full_like(inside, most), rtol=3e-3, atol=0)
    torch.testing.assert_close(dag.left[0, 0, 1:], torch.full_like(dag.left[0, 0, 1:], 0.999))


def test_initial_steps_are_in_their_range():
    mixer = ChimeraGridMixer(64, head_dim=1)
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        dags = mixer.operands(torch.randn(1, 3, 3, 64))
    for dag in dags:
        delta = -(dag.left[0, 1, 1] * math.sqrt(2)).log()
        assert delta.min() >= 0.99 * 7e-3
        assert delta.max() <= 1.01 * 0.7


class TestUndirected:
    def test_edges_join_neighbours_both_ways_and_no_two_images(self):
        edges, plan = grids(2, 2, 3, torch.device("cpu"))
        pairs = {tuple(pair) for pair in edges.T.tolist()}
        one = {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}
        both = one | {(j, i) for i, j in one}
        assert pairs == both | {(i + 6, j + 6) for i, j in both}
        assert edges.shape[1] == len(pairs)
        assert plan.ptr.tolist() == [0, 6, 12]

    def test_a_layer_is_a_dense_inverse(self):
        mixer, (R, K) = make_mixer(UndirectedGridMixer), (3, 4)
        n, x = R * K, torch.randn(1, R, K, WIDTH)
        z, v, (B,), (C,), delta = mixer._projected(x)
        source, target, own, given = delta[0].flatten(0, 1).double().unbind(1)
        near = torch.zeros(n, n)
        for i, j in itertools.product(range(n), repeat=2):
            near[i, j] = abs(i // K - j // K) + abs(i % K - j % K) == 1
        a = torch.exp(-(source[:, None] + target[None]) / 2) * near[..., None]
        leaving = (a.sum(1) + torch.exp(-own)).clamp(min=1) + 0.05
        A = (a / leaving[:, None]).permute(2, 1, 0)  # [H, target, source]
        L = torch.linalg.inv(torch.eye(n) - A)
        mask = C.reshape(n, -1).double() @ B.reshape(n, -1).double().T
        values = v.reshape(n, mixer.heads, -1).double()
        y = torch.einsum("hij,jh,jhp->ihp", L * mask, given, values)
        y = (y + mixer.D[:, None] * values).flatten(1)
        y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * mixer.norm_weight
        expected = (y * F.silu(z.reshape(n, -1))).float() @ mixer.out_proj.weight.T
        torch.testing.assert_close(mixer(x).view(n, -1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"head_dim": 5}, "head_dim that divides 12, got 5"),
        ({"kernel": 2}, "odd number, got 2"),
        ({"roots": []}, "roots are different ones of top left"),
        ({"roots": ["top left", "top left"]}, "roots are different ones of"),
        ({"roots": ["centre"]}, r"got \['centre'\]"),
        ({"projections": "some"}, "one of diagonal, all, each, got 'some'"),
        ({"deltas": "diagonal"}, "one of each, all, got 'diagonal'"),
        ({"normalise": "degree"}, "one of sqrt_indegree, indegree, none, got 'degree'"),
    ],
)
def test_options_that_do_not_fit(options, told):
    with pytest.raises(ValueError, match=told):
        make_mixer(**options)
