"""Gated GCN: a node hears as many hops far as there are layers; see also test_graph_models.py."""

import pytest
from torch_geometric.data import Batch

from lit_models.gated_gcn import LitGatedGCN
from lit_models.module import Optimisation
from lit_models.tasks import NodeClassification
from tests.graphs import molecule_encoder, molecule_like


@pytest.mark.parametrize("layers", [1, 2])
def test_influence_runs_along_the_edges_one_hop_a_layer(layers):
    """On 0 → 1 → 2 a change of node 0 reaches node 2 with the second layer; never backwards."""
    task = NodeClassification(3)
    model = LitGatedGCN(task, molecule_encoder, Optimisation(), width=16, layers=layers).eval()
    batch = Batch.from_data_list([molecule_like("path")])
    before = model(batch)
    for changed, reached in ((0, list(range(1 + layers))), (2, [2])):
        other = batch.clone()
        other.x[changed] = (other.x[changed] + 1) % 2
        moved = (model(other) - before).abs().amax(dim=1) > 1e-6
        assert moved.nonzero().flatten().tolist() == reached
