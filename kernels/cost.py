"""Cost models: seconds of units such as launches, bytes and FLOP; `fitting` fits them."""

Amounts = dict[str, int]
"""How much of each unit a computation takes."""


def seconds(amounts: Amounts, unit: dict[str, float]) -> float:
    """What the amounts are expected to take."""
    return sum(unit[term] * number for term, number in amounts.items())
