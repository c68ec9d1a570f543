"""The same encoder on chains and on graphs agrees to rounding; one that forgets a part does not."""

from functools import partial

from lit_models.layers.chain_mixer import ChainMixer
from lit_models.text.chimera import ChimeraText
from lit_models.text.line_graph import LineGraphText
from studies.agreement import measure

SIZES = {"vocabulary": 20, "width": 12, "layers": 2, "state": 8, "head_dim": 4, "dropout": 0.0}


class OneWayMixer(ChainMixer):
    def mix(self, v, chains, sizes):
        there, back = chains
        return super().mix(v, (there, back._replace(scale=0 * back.scale)), sizes)


class OneWay(ChimeraText):
    mixer = OneWayMixer


def test_it_finds_a_difference_where_there_is_one():
    chains = partial(ChimeraText, **SIZES)
    graphs, one_way = (partial(kind, **SIZES) for kind in (LineGraphText, OneWay))
    same = measure(chains, graphs, [7, 1, 70, 3], seed=0)["test"]
    assert max(same.values()) < 1e-5
    other = measure(chains, one_way, [7, 1, 70, 3], seed=0)["test"]
    assert min(other.values()) > 1e-2
