"""The bag of features tells mean and number of the nodes, and no edge."""

import torch
from torch_geometric.data import Batch, Data

from lit_models.graphs.bag_of_features import BagOfFeatures


def test_it_sees_mean_and_number_of_nodes_alone():
    net = BagOfFeatures(2, 3, width=8).eval()
    x = torch.randn(4, 2, dtype=torch.float64)
    edges = torch.tensor([[0, 1], [1, 2]])
    none = edges[:, :0]
    graphs = [
        Data(x=x, edge_index=edges),
        Data(x=x.flip(0), edge_index=none),
        Data(x=x.repeat(2, 1), edge_index=none),
        Data(x=2 * x, edge_index=none),
    ]
    given = torch.stack([torch.cat([m, n.log()]) for m, n in moments(graphs)])
    y = net(Batch.from_data_list(graphs))
    torch.testing.assert_close(y, net.mlp(net.enter(given.float())))
    torch.testing.assert_close(y[0], y[1])
    for other in (2, 3):
        assert (y[0] - y[other]).abs().max() > 1e-3


def moments(graphs: list[Data]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(g.x.mean(0), torch.tensor([float(g.num_nodes)])) for g in graphs]
