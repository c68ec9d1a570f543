"""The shared base: schedule, weight decay, and the random stream of a step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch

from lit_models.module import Optimisation
from tests.graphs import molecule_like
from tests.lit_models.callbacks.test_explicit_regularisation import batch_of, trained
from tests.lit_models.callbacks.test_grafting import Lengths
from tests.lit_models.graphs.test_chimera import make_model


def test_schedule_warms_up_linearly_and_decays_as_a_cosine():
    factor = [Optimisation(warmup=0.1, final_lr_ratio=0.2).factor(s, 100) for s in range(101)]
    assert factor[0] == pytest.approx(1 / 11)
    rises = torch.tensor(factor[:11]).diff()
    assert rises == pytest.approx(rises[0].item(), abs=1e-6)
    assert max(factor) == factor[10] == 1
    assert factor[55] == pytest.approx(0.6)
    assert factor[100] == pytest.approx(0.2)


def test_a_linear_decay():
    factor = [
        Optimisation(warmup=0.1, final_lr_ratio=0.2, decay="linear").factor(s, 100)
        for s in range(101)
    ]
    assert factor[10] == 1
    assert factor[55] == pytest.approx(0.6)
    assert torch.tensor(factor[10:]).diff() == pytest.approx(-0.8 / 90, abs=1e-6)
    with pytest.raises(ValueError, match="linear decay, or none, got 'step'"):
        Optimisation(decay="step")
    with pytest.raises(ValueError, match="adamw or sgd for an algorithm, got 'adam'"):
        Optimisation(algorithm="adam")


def test_a_constant_learning_rate():
    how = Optimisation(warmup=0.1, decay="none")
    factor = [how.factor(s, 100) for s in range(101)]
    assert factor[10:] == [1.0] * 91
    assert factor[0] < factor[5] < 1


def test_only_weight_matrices_decay():
    model = make_model()
    optimizer = Optimisation(weight_decay=0.1).build(model, 10)["optimizer"]
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        expected = 0.1 if name.endswith("weight") and parameter.ndim > 1 else 0.0
        assert decay[id(parameter)] == expected, name
    bias = dict(model.named_parameters())["net.blocks.0.mixer.delta_bias"]
    assert decay[id(bias)] == 0


def test_every_graph_weighs_the_same_in_training():
    """Two batches of 1 and 3 graphs weigh together as the mean over all four, times 4 / 2."""
    model = make_model().eval()
    model.log = lambda *args, **kwargs: None
    model.trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=2),
        strategy=SimpleNamespace(reduce_boolean_decision=bool),
        current_epoch=0,
    )
    graphs = [molecule_like(name) for name in ("path", "hub", "cycle", "both ways")]
    parts = [Batch.from_data_list(graphs[:1]), Batch.from_data_list(graphs[1:])]
    total = sum(model.training_step(batch, 0) for batch in parts)
    whole = Batch.from_data_list(graphs)
    torch.testing.assert_close(total, 4 / 2 * model.task.loss(model(whole), whole))


@pytest.mark.parametrize("together", [1, 2, 4])
def test_a_step_is_the_mean_over_its_batches_however_many(together):
    """Of an epoch of one, two and four batches, of which four would make up a step."""
    batch, lengths = batch_of(4), Lengths()
    trained([batch] * together, lengths, lr=0.0, accumulate=4)
    alone = Lengths()
    trained([batch], alone, lr=0.0)
    assert lengths.found == pytest.approx(alone.found)


def test_a_foreign_network_s_own_notes_are_no_state():
    class Noted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 1)

        def state_dict(self, *args, destination=None, **kwargs):
            found = super().state_dict(*args, destination=destination, **kwargs)
            found["_metadata"] = {"activation": print}
            return found

    model = make_model()
    own = set(model.state_dict())
    model.net.add_module("noted", Noted())
    assert set(model.state_dict()) == own | {"net.noted.inner.weight", "net.noted.inner.bias"}
    model.load_state_dict(model.state_dict())
