"""The value for the chosen scale, which is demo's where the config gives no other."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from errors import explain
from train import SCALES


def resolved(values: str, scale: str) -> object:
    cfg = OmegaConf.create({"scale": scale, "value": f"${{by_scale:{values}}}"})
    return OmegaConf.to_container(cfg, resolve=True)["value"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("{smoke:1, demo:2, paper:3}", [1, 2, 3]),
        ("{smoke:1, demo:2}", [1, 2, 2]),
        ("{demo:2, paper:3}", [2, 2, 3]),
        ("{demo:2}", [2, 2, 2]),
        ("{smoke:[1,2], demo:null}", [[1, 2], None, None]),
        ("{smoke:null, demo:2, paper:null}", [None, 2, None]),
    ],
)
def test_a_scale_that_is_left_out_has_the_value_of_demo(values, expected):
    assert [resolved(values, scale) for scale in SCALES] == expected


@pytest.mark.parametrize("values", ["{smoke:1, paper:3}", "{demo:2, papre:3}", "{demo:2, 3:4}"])
def test_a_value_for_demo_and_for_no_unknown_scale(values):
    with pytest.raises(InterpolationResolutionError) as caught:
        resolved(values, "smoke")
    text = explain(caught.value)
    assert text is not None
    assert "by_scale takes a value for demo and, where theirs differ, for smoke" in text
    assert text.endswith("correct the names of the scales in the config.")
    assert "\n" not in text
