"""The Chimera graph model: parameters, orientation, modes; see also test_graph_models.py."""

import pytest
import torch
from torch_geometric.data import Batch

from kernels.resolvent import resolvent
from lit_models.graphs.chimera import ChimeraGraph, ChimeraLayer
from lit_models.graphs.tasks import MultilabelClassification
from lit_models.layers.delta import delta_bias_init
from lit_models.layers.edge_weights import Deltas, edge_weights
from lit_models.module import LitModule
from tests.graphs import batch_of_all, edge_index, graph_model, molecule_like


def make_model(**options) -> LitModule:
    sizes = {"width": 16, "layers": 2, "heads": 2, "state": 8, "dropout": 0.0} | options
    return graph_model(MultilabelClassification(10), ChimeraGraph, **sizes)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_count_at_paper_scale_part_by_part():
    """499 k on Peptides-func; every part by hand, so that a missing channel shows."""
    d, h, s = 64, 2, 64
    net = make_model(width=d, layers=8, heads=h, state=s).net
    block = net.blocks[0]
    assert count(net.encoder.nodes) == 174 * d
    assert count(net.encoder.edges) == 13 * d
    assert count(block.local) == 5 * (d * d + d) + 2 * 2 * d
    mixer = block.mixer
    # gate and values, B and C, four Δ channels per head
    assert mixer.in_proj.weight.shape == (d + d + s + s + 4 * h, d)
    assert count(mixer.edge_delta) == d * h
    assert mixer.delta_bias.shape == (4, h)
    assert mixer.D.shape == (h,)
    assert count(mixer.norm) == d
    assert count(mixer.out_proj) == d * d
    assert count(block.ffn) == 2 * d + (2 * d * d + 2 * d) + (2 * d * d + d)
    norms = count(block.local_norm) + count(block.mixer_norm)
    assert norms == 4 * d
    assert count(block) == count(block.local) + count(mixer) + count(block.ffn) + norms
    assert count(net.head) == 3 * (d * d + d + 2 * d) + (10 * d + 10)
    total = count(net)
    assert total == count(net.encoder) + 8 * count(block) + 2 * d + count(net.head)
    assert total // 1000 == 499


def test_edge_weights_by_hand():
    """0 → 1 → 2 and 0 → 2: both edges out of node 0 share its normaliser."""
    edges = torch.tensor([[0, 1, 0], [1, 2, 2]])
    source, target, self_ = (
        torch.tensor(v).reshape(3, 1) for v in ([0.3, 0.6, 9], [9, 0.9, 1.2], [0.5, 1.0, 9])
    )
    edge = torch.tensor([[0.3], [0.0], [1.5]])
    a01, a12, a02 = (
        torch.tensor(-x / 3).exp() for x in (0.3 + 0.9 + 0.3, 0.6 + 1.2, 0.3 + 1.2 + 1.5)
    )
    s0, s1 = torch.tensor([-0.5, -1.0]).exp()
    out0 = torch.clamp(a01 + a02 + s0, min=1) + 0.05
    out1 = torch.clamp(a12 + s1, min=1) + 0.05
    expected = torch.stack([a01 / out0, a12 / out1, a02 / out0]).reshape(3, 1)
    torch.testing.assert_close(edge_weights(Deltas(source, target, self_, edge), edges), expected)


def test_edge_weights_without_edge_delta_or_normaliser_by_hand():
    """0 → 1 → 2 and 0 → 2 again."""
    edges = torch.tensor([[0, 1, 0], [1, 2, 2]])
    source, target, self_, edge = (
        torch.tensor(v).reshape(3, 1)
        for v in ([0.3, 0.6, 9], [9, 0.9, 1.2], [0.5, 1.0, 9], [0.3, 0.0, 1.5])
    )
    halves = torch.tensor([0.3 + 0.9, 0.6 + 1.2, 0.3 + 1.2]).div(-2).exp()
    torch.testing.assert_close(edge_weights(Deltas(source, target), edges), halves[:, None])
    thirds = torch.tensor([0.3 + 0.9 + 0.3, 0.6 + 1.2, 0.3 + 1.2 + 1.5]).div(-3).exp()
    weights = edge_weights(Deltas(source, target, edge=edge), edges)
    torch.testing.assert_close(weights, thirds[:, None])
    out0 = max(1, float(halves[0] + halves[2] + torch.tensor(-0.5).exp())) + 0.05
    normalised = edge_weights(Deltas(source, target, self_), edges)
    torch.testing.assert_close(normalised[[0, 2], 0], halves[[0, 2]] / out0)


def test_what_the_ablations_leave_out():
    """A linear map of edges and a bias; or a projection of nodes and a bias; and nothing else."""
    width, heads, layers = 16, 2, 2
    whole = count(make_model().net)
    no_edge, no_self = make_model(edge_delta=False).net, make_model(normalise=False).net
    assert whole - count(no_edge) == layers * heads * (width + 1)
    assert whole - count(no_self) == layers * heads * (width + 1)
    assert all(block.mixer.edge_delta is None for block in no_edge.blocks)
    layer, inputs = no_self.blocks[0].mixer, (torch.randn(3, 16), torch.randn(2, 16))
    assert layer.deltas(*inputs).self is None
    assert no_edge.blocks[0].mixer.deltas(*inputs).edge is None


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"edge_delta": False}, {"normalise": False}, {"edge_delta": False, "normalise": False}],
    ids=str,
)
def test_ablated_models_equal_the_textbook_and_every_parameter_counts(monkeypatch, options, local):
    batch = Batch.from_data_list([molecule_like(n) for n in ("both ways", "hub", "cycle")] * 3)
    model = make_model(local=local, delta_range=(2.0, 4.0), **options)
    outputs = [model(batch)]
    model.task.loss(outputs[0], batch).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.abs().max() > 0 for p in trained)
    monkeypatch.setattr(
        "lit_models.graphs.chimera.resolvent",
        lambda *args, plan, **options: resolvent(*args, backend="reference", **options),
    )
    outputs.append(model(batch))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    if model.net.blocks[0].mixer.edge_delta is not None:
        assert not frozen
    elif local:
        assert frozen == {f"net.blocks.1.local.norm_edges.{n}" for n in ("weight", "bias")}
    else:
        assert frozen == {"net.encoder.edges.table.weight"}


def test_a_singular_system_says_what_to_try():
    """All Δ ≈ 0 give weights of 1, and I − A of a pair of nodes [[1, −1], [−1, 1]]."""
    layer = ChimeraLayer(16, 2, 8, (1e-4, 1e-4), normalise=False)
    with torch.no_grad():
        layer.delta_bias.fill_(-30)
    pair = (torch.zeros(2, 16), torch.zeros(2, 16), torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match=r"singular.*model\.net\.delta_range"):
        layer(*pair, torch.tensor([0, 2]))


def test_without_normaliser_a_truncated_series_needs_no_solution():
    """Of weights near 1 the infinite series diverges, 64 terms of it are finite."""
    exact = make_model(normalise=False, delta_range=(2.0, 4.0)).eval()
    batch = batch_of_all()
    truncated = make_model(normalise=False, mode="neumann", terms=64).eval()
    assert truncated(batch).isfinite().all()
    truncated.load_state_dict(exact.state_dict())
    torch.testing.assert_close(truncated(batch), exact(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 50.0])
def test_what_leaves_a_node_sums_to_less_than_one(scale):
    edges = edge_index("hub")
    deltas = Deltas(*(scale * torch.rand(n, 2) for n in (8, 8, 8, edges.shape[1])))
    leaving = torch.zeros(8, 2).index_add(0, edges[0], edge_weights(deltas, edges))
    assert (leaving < 1).all()


def test_initial_steps_lie_in_their_range():
    low, high = 5e-3, 0.1
    delta = torch.nn.functional.softplus(delta_bias_init(4, 500, (low, high)))
    assert low * 0.999 <= delta.min() < 1.2 * low
    assert high * 0.8 < delta.max() <= high * 1.001
    floor = torch.nn.functional.softplus(delta_bias_init(1, 5, (1e-6, 1e-5)))
    torch.testing.assert_close(floor, torch.full_like(floor, 1e-4), rtol=1e-3, atol=0)


def test_influence_runs_along_the_edges():
    """On 0 → 1 → 2 a change of node 0 reaches 1 and 2, a change of node 2 reaches only 2."""
    layer = ChimeraLayer(16, 2, 8, (5e-3, 0.1)).eval()
    x, e, ptr = torch.randn(3, 16), torch.randn(2, 16), torch.tensor([0, 3])
    y = layer(x, e, edge_index("path"), ptr)
    for changed, reached in ((0, [True, True, True]), (2, [False, False, True])):
        other = x.clone()
        other[changed] += 1
        moved = (layer(other, e, edge_index("path"), ptr) - y).abs().amax(dim=1) > 1e-6
        assert moved.tolist() == reached


def test_without_local_part_no_message_passing_is_left():
    model = make_model(local=False)
    assert all(block.local is None for block in model.net.blocks)
    assert count(model.net) < count(make_model().net)


def test_neumann_converges_to_exact():
    exact = make_model().eval()
    batch = batch_of_all()
    gaps = []
    for terms in (2, 16, 256):
        truncated = make_model(mode="neumann", terms=terms).eval()
        truncated.load_state_dict(exact.state_dict())
        gaps.append(float((truncated(batch) - exact(batch)).abs().max()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-4


def test_golden_output():
    """The model under a fixed seed, as first reviewed; a change here is a change of the model."""
    torch.manual_seed(0)
    model = make_model().eval()
    torch.manual_seed(1)
    y = model(Batch.from_data_list([molecule_like("both ways"), molecule_like("hub", 10)]))
    torch.testing.assert_close(y[:, :4], torch.tensor(GOLDEN), rtol=1e-4, atol=1e-4)


GOLDEN = [[1.111, 0.76922, 0.94237, -0.38167], [0.84734, 0.5437, 0.10691, -0.23169]]


def test_width_must_divide_among_heads():
    with pytest.raises(ValueError, match="multiple of heads"):
        make_model(width=16, heads=3)


def losses_of_training(model: LitModule, batch: Batch) -> torch.Tensor:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(model.task.loss(model(batch), batch))
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach()


def test_training_goes_as_with_the_textbook_resolvent(monkeypatch):
    batch = batch_of_all()
    torch.manual_seed(0)
    fast = losses_of_training(make_model(), batch)
    monkeypatch.setattr(
        "lit_models.graphs.chimera.resolvent",
        lambda *args, plan, **options: resolvent(*args, backend="reference", **options),
    )
    torch.manual_seed(0)
    textbook = losses_of_training(make_model(), batch)
    torch.testing.assert_close(fast, textbook, rtol=1e-4, atol=0)
    assert fast[-1] < 0.9 * fast[0]
