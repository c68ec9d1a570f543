"""GPS: attention reaches every node of a graph; see also test_graph_models.py."""

import pytest

from lit_models.graphs.gps import GPS
from lit_models.graphs.tasks import NodeClassification
from lit_models.module import LitModule
from tests.graphs import batch_of_all, graph_model


def make_model(**options) -> LitModule:
    sizes = {"width": 16, "layers": 1, "heads": 2} | options
    return graph_model(NodeClassification(3), GPS, **sizes)


def test_a_node_hears_its_whole_graph_and_no_other():
    """Edge or not: one graph of the batch has three components, another no edge at all."""
    model, batch = make_model().eval(), batch_of_all()
    before = model(batch)
    for first, last in zip(batch.ptr[:-1], batch.ptr[1:], strict=True):
        other = batch.clone()
        other.x[first] = (other.x[first] + 1) % 2
        moved = (model(other) - before).abs().amax(dim=1) > 1e-6
        assert moved.nonzero().flatten().tolist() == list(range(first, last))


def test_width_must_divide_among_heads():
    with pytest.raises(ValueError, match="multiple of heads"):
        make_model(heads=3)
