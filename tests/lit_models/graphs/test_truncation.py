"""The truncation probe: its errors by the textbook, and that a training never notices it."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch_geometric.data import Batch

from kernels.resolvent import AddPlan, resolvent_reference
from lit_models.callbacks.untouched import untouched
from lit_models.graphs.chimera import ChimeraLayer
from lit_models.graphs.truncation import LiveLayer, fixed_batch, fixed_noise, terms_above_diameter
from tests.graphs import TOPOLOGIES, batch_of_all, molecule_like
from tests.running import call_runs, report_of, scalars, train_here

PROBE = (
    "+callbacks.truncation={_target_: lit_models.graphs.truncation.TruncationProbe, "
    "every_n_steps: 4, graphs: 1, terms: [2, 8], repeats: 1}"
)
FIVE_STEPS = (
    "data.batch_size=4",
    "trainer.limit_train_batches=5",
    "trainer.log_every_n_steps=1",
    "model.net.dropout=0.2",
    "callbacks.last.every_n_train_steps=3",
)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A run of five steps with a probe."""
    return train_here(tmp_path_factory.mktemp("probed"), "chimera_lrgb", *FIVE_STEPS, PROBE)


def test_training_never_notices_the_probe(probed, tmp_path):
    plain = train_here(tmp_path, "chimera_lrgb", *FIVE_STEPS)
    for tag in ("train/loss", "train/grad_norm", "val/loss"):
        values = scalars(plain, tag)
        assert values, tag
        assert values == scalars(probed, tag)
    assert report_of(plain)["test"] == report_of(probed)["test"]


def test_what_a_run_reports(probed):
    report = report_of(probed)["probes"]["TruncationProbe"]
    curves, history = report["curves"], report["history"]
    terms = curves["terms"]
    assert terms == sorted({2, 8, int(report["terms_at_diameter"])})
    assert {row["layer"] for row in history} == {f"net.blocks.{i}.mixer" for i in (0, 1)}
    assert [row["step"] for row in history] == [0, 0, 4, 4, 5, 5]
    last = history[-2:]
    place = terms.index(report["terms_at_diameter"])
    for kind in ("output", "gradient"):
        worst = max(row[f"{kind}_error_at_diameter"] for row in last)
        assert report[f"{kind}_error_at_diameter"] == worst
        assert curves[f"{kind} error, end"][place] == worst
        for moment in ("start", "end"):
            errors = curves[f"{kind} error, {moment}"]
            assert len(errors) == len(terms)
            assert errors[0] > errors[1] > errors[2]
    assert report["delta_self_max"] == max(row["delta_self_max"] for row in last)
    assert report["row_sum_max"] < 1
    assert 0 < report["exact_error"] < 1e-5
    assert all(seconds > 0 for seconds in curves["seconds"])
    assert len(set(curves["exact seconds"])) == 1
    tag = "truncation/output_error_at_diameter/net.blocks.1.mixer"
    shown = [row["output_error_at_diameter"] for row in history if row["layer"].endswith("1.mixer")]
    assert list(scalars(probed, tag).values()) == pytest.approx(shown)
    events = [EventAccumulator(str(path)).Reload() for path in probed.glob("events.out.*")]
    assert "truncation" in {tag for found in events for tag in found.Tags()["images"]}


def test_a_stopped_run_resumes_the_history(probed, tmp_path):
    stop = "+callbacks.kill={_target_: tests.interruptions.KillAt, step: 3, signal_number: 15}"
    with pytest.raises(SystemExit):
        train_here(tmp_path, "chimera_lrgb", *FIVE_STEPS, PROBE, stop)
    (run,) = (tmp_path / "runs").iterdir()
    call_runs("resume", run)
    resumed, whole = (report_of(r)["probes"]["TruncationProbe"] for r in (run, probed))
    assert resumed["history"] == whole["history"]
    for name in set(whole["curves"]) - {"seconds", "exact seconds"}:
        assert resumed["curves"][name] == whole["curves"][name]


def test_nothing_to_probe(tmp_path):
    run = train_here(tmp_path, "baseline_atoms", PROBE)
    assert report_of(run)["probes"] == {"TruncationProbe": {}}


@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"edge_delta": False}], ids=str)
def test_errors_and_facts_by_the_textbook(options):
    batch = AddPlan()(batch_of_all())
    layer = ChimeraLayer(16, 2, 8, (2.0, 4.0), **options)
    inputs = (torch.randn(batch.num_nodes, 16), torch.randn(batch.num_edges, 16))
    with torch.no_grad():
        live = LiveLayer(layer, batch, (*inputs, batch.edge_index, batch.ptr))
        deltas, operands = layer.deltas(*inputs), layer.operands(*inputs, batch.edge_index)
    found = live.errors([2, 4], 1)

    def textbook(terms: int | None) -> list[torch.Tensor]:
        leaves = [x.double().requires_grad_() for x in operands]
        y = resolvent_reference(batch.edge_index, *leaves, ptr=batch.ptr, terms=terms)
        return [y.detach(), *torch.autograd.grad(y, leaves, fixed_noise(y).float().double())]

    truth = textbook(None)
    for place, terms in enumerate((2, 4)):
        truncated = textbook(terms)
        assert found["output"][place] == pytest.approx(joint(truncated[:1], truth[:1]), rel=1e-3)
        assert found["gradient"][place] == pytest.approx(joint(truncated[1:], truth[1:]), rel=1e-3)
    assert 0 < live.exact_error() < 1e-5
    facts = live.facts()
    if deltas.self is not None:
        assert facts["delta_self_mean"] == pytest.approx(float(deltas.self.mean()))
        assert facts["delta_self_max"] == pytest.approx(float(deltas.self.max()))
    leaving = [
        operands[0][batch.edge_index[0] == node].sum(0).amax() for node in range(batch.num_nodes)
    ]
    assert facts["row_sum_max"] == pytest.approx(float(max(leaving)))


def joint(values: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    squares = [((a - b) ** 2).sum() / 1 for a, b in zip(values, truth, strict=True)]
    return float((sum(squares) / sum((b**2).sum() for b in truth)).sqrt())


@pytest.mark.parametrize(("name", "terms"), [("path", 4), ("both ways", 4), ("components", 2)])
def test_terms_above_the_diameter_by_hand(name, terms):
    """Diameters 2, 3 and 1; a chain of five nodes has 4, which needs the power A⁴ too."""
    assert terms_above_diameter(Batch.from_data_list([molecule_like(name)])) == terms
    chain = molecule_like("path")
    chain.edge_index, chain.x = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), torch.zeros(5, 9)
    both = Batch.from_data_list([molecule_like(name), chain])
    assert terms_above_diameter(both) == 8


def test_the_fixed_graphs_span_the_sizes():
    graphs = [molecule_like(name) for name in TOPOLOGIES]
    assert fixed_batch(graphs, 3).ptr.diff().tolist() == [1, 4, 8]
    assert fixed_batch(graphs, 99).num_graphs == len(graphs)


def test_a_look_leaves_modes_and_random_numbers():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    before = torch.get_rng_state()
    with untouched(module):
        torch.rand(3)
        assert not module[0].training
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in module.modules()] == [True, True, False]
