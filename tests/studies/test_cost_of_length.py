"""Cost against length, on an encoder whose cost is known."""

import pytest
import torch

from studies.cost_of_length import measure


class Known(torch.nn.Module):
    """Holds length^`power` numbers."""

    vocabulary = 10

    def __init__(self, power: int):
        super().__init__()
        self.power = power
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, tokens, types, lengths):
        return self.weight * torch.rand(tokens.shape[1] ** self.power)


@pytest.mark.parametrize("power", [1, 2])
def test_the_slope_of_memory_is_the_power(power):
    lengths = [300, 600, 1200]
    test = measure(lambda: Known(power), lengths, seed=0)["test"]
    assert test["slope_mib"] == pytest.approx(power, abs=0.05)
    assert test["mib_1200"] == pytest.approx(2**power * test["mib_600"], rel=0.05)
    assert all(test[f"seconds_{length}"] > 0 for length in lengths)
