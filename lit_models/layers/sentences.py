"""Sentences of several lengths in one batch, and what must not pass from one to another.

Shapes: B sentences, N tokens of all of them, one sentence after the other and nothing in between;
T tokens of a padded sentence; C channels. Layers work on [N, C], so that padding costs nothing and
no token can see it; those that need a rectangle make one by `pad`.
"""

import functools
import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sentences:
    """Where the sentences of a batch lie.

    Attributes:
        sizes: tokens of each, at least one.
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tokens: Int[Tensor, "R T"],
        lengths: Int[Tensor, " B"] | None = None,
        ptr: Int[Tensor, " B1"] | None = None,
    ) -> "Sentences":
        """The sentences of a batch [B, T] with `lengths`, or [1, N] with offsets `ptr` [B + 1].

        Raises:
            ValueError: not one of both is given, or it does not fit the tokens.
        """
        if (lengths is None) == (ptr is None):
            raise ValueError("A batch of tokens has either lengths or ptr: give one of them.")
        rows, most = tokens.shape
        if lengths is not None:
            sizes = tuple(lengths.tolist())
            if len(sizes) != rows or min(sizes) < 1 or max(sizes) > most:
                raise ValueError(
                    f"Tokens of shape [{rows}, {most}] need {rows} lengths from 1 to {most}, got "
                    f"{list(sizes)}."
                )
            return cls(sizes)
        assert ptr is not None  # as lengths are not given
        offsets = ptr.tolist()
        sizes = tuple(last - first for first, last in itertools.pairwise(offsets))
        if rows != 1 or offsets[0] != 0 or offsets[-1] != most or not sizes or min(sizes) < 1:
            raise ValueError(
                f"Packed tokens are of shape [1, total] and ptr rises from 0 to total, got "
                f"{[rows, most]} and {offsets}."
            )
        return cls(sizes)

    @property
    def firsts(self) -> list[int]:
        """The first token of every sentence among all N."""
        return [0, *itertools.accumulate(self.sizes[:-1])]

    def pad(self, x: Shaped[Tensor, "N *C"], most: int | None = None) -> Shaped[Tensor, "B T *C"]:
        """One row a sentence, zeros behind it; T is `most` or the longest one's length."""
        most, rows = most or max(self.sizes), len(self.sizes)
        if self._are_all(most):
            return x.unflatten(0, (rows, most))
        places = _places(self.sizes, tuple(range(0, rows * most, most)), x.device)
        return (
            x.new_zeros(rows * most, *x.shape[1:])
            .index_copy(0, places, x)
            .unflatten(0, (rows, most))
        )

    def unpad(self, x: Shaped[Tensor, "B T *C"]) -> Shaped[Tensor, "N *C"]:
        """The inverse of `pad`."""
        rows, most = x.shape[:2]
        if self._are_all(most):
            return x.flatten(0, 1)
        places = _places(self.sizes, tuple(range(0, rows * most, most)), x.device)
        return x.flatten(0, 1).index_select(0, places)

    def apart(self, x: Float[Tensor, "N C"], gap: int) -> Float[Tensor, "rows more C"]:
        """Sentences as rows where all are equally long, else in one row with `gap` zeros between.

        So a convolution that sees `gap` tokens to either side sees no other sentence.
        """
        if self._are_all(self.sizes[0]):
            return x.unflatten(0, (len(self.sizes), -1))
        more = len(x) + gap * (len(self.sizes) - 1)
        return x.new_zeros(more, x.shape[1]).index_copy(0, self._apart(gap, x), x).unsqueeze(0)

    def together(self, x: Float[Tensor, "rows more C"], gap: int) -> Float[Tensor, "N C"]:
        """The inverse of `apart`."""
        if self._are_all(self.sizes[0]):
            return x.flatten(0, 1)
        return x.flatten(0, 1).index_select(0, self._apart(gap, x))

    def _are_all(self, size: int) -> bool:
        return self.sizes == (size,) * len(self.sizes)

    def _apart(self, gap: int, like: Tensor) -> Tensor:
        begins = tuple(first + gap * i for i, first in enumerate(self.firsts))
        return _places(self.sizes, begins, like.device)


@functools.lru_cache(maxsize=64)
def _places(
    sizes: tuple[int, ...], begins: tuple[int, ...], device: torch.device
) -> Int[Tensor, " N"]:
    """Where every token stands if sentence b begins at begins[b]."""
    size, begin = torch.tensor(sizes), torch.tensor(begins)
    shift = begin - (size.cumsum(0) - size)
    return (torch.arange(sum(sizes)) + shift.repeat_interleave(size)).to(device)


class DepthwiseConv(nn.Conv1d):
    """Every channel's own filter along its sentence, both ways; what lies outside is zero.

    Args:
        channels: C.
        kernel: an odd number of tokens that the filter sees.

    Raises:
        ValueError: `kernel` is even.
    """

    def __init__(self, channels: int, kernel: int = 7):
        if kernel % 2 == 0:
            raise ValueError(f"A filter that looks both ways sees an odd number, got {kernel}.")
        super().__init__(channels, channels, kernel, groups=channels)
        self.reach = kernel // 2

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] a convolution by its own rules
        self, x: Float[Tensor, "N C"], sentences: Sentences
    ) -> Float[Tensor, "N C"]:
        rows = sentences.apart(x, self.reach)
        # As an image of width 1 whose channels lie innermost, as they do in x: on a CPU four times
        # faster than conv1d, which would have them outermost.
        image = rows.unsqueeze(2).permute(0, 3, 1, 2)
        image = F.conv2d(
            image,
            self.weight.unsqueeze(-1),
            self.bias,
            padding=(self.reach, 0),
            groups=len(self.weight),
        )
        return sentences.together(image.permute(0, 2, 3, 1).flatten(1, 2), self.reach)
