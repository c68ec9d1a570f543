"""The Gray–Scott equations, reaction and diffusion of two species in two dimensions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.pde.equation import SpectralEquation
from datamodules.pde.random_fields import uniform
from datamodules.pde.torus import Torus


@dataclass(frozen=True)
class GrayScott(SpectralEquation):
    """u_t = D_u ∇²u − u v² + F (1 − u), v_t = D_v ∇²v + u v² − (F + k) v, in a periodic square.

    Initial states are (1 − b, b/2) with 1 − b = Π_i (1 − h_i G_i) of `blobs` Gaussians G at uniform
    places, h ~ U(½, 1), of standard deviations ~ U(½, 3/2) times `width`. F and k choose the
    pattern: spots that divide (.03, .062), stripes (.055, .062), chaos (.026, .051), and others.

    Args:
        sizes: saved points of both axes.
        length: of both axes.
        diffusion_u: D_u.
        diffusion_v: D_v.
        feed: F.
        kill: k.
        blobs: how many.
        width: their typical standard deviation, in units of the length.
        step: longest time step.
        oversample: see SpectralEquation.

    Source: Pearson, Science 261 (1993) 189.
    """

    channels = ("u", "v")
    factors = 3

    sizes: tuple[int, int] = (128, 128)
    length: float = 1.0
    diffusion_u: float = 2e-5
    diffusion_v: float = 1e-5
    feed: float = 0.04
    kill: float = 0.06
    blobs: int = 10
    width: float = 0.04
    step: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sizes) != 2 or min(self.diffusion_u, self.diffusion_v, self.width) <= 0:
            raise DataError(
                f"GrayScott has two axes, and positive diffusion and width, got {self.key}."
            )

    def linear(self, torus: Torus) -> Tensor:
        u = self.diffusion_u * torus.laplacian - self.feed
        v = self.diffusion_v * torus.laplacian - self.feed - self.kill
        return torch.stack([u, v])

    def nonlinear(self, torus: Torus) -> Callable[[Tensor], Tensor]:
        source = torch.zeros_like(torus.laplacian, dtype=torch.complex128)
        source[0, 0] = self.feed * torus.laplacian.new_tensor(torus.sizes).prod()

        def react(state: Tensor) -> Tensor:
            u, v = torus.inverse(state).unbind(dim=1)
            reaction = torus.forward(v.square_().mul_(u)).mul_(torus.kept)
            return torch.stack([source - reaction, reaction], dim=1)

        return react

    def initial(self, generator: torch.Generator) -> Tensor:
        torus = self.torus()
        place = uniform(generator, 0, self.length, 2, self.blobs, 1, 1)
        width = self.width * self.length * uniform(generator, 0.5, 1.5, self.blobs, 1, 1)
        height = uniform(generator, 0.5, 1.0, self.blobs, 1, 1)
        apart = [
            torch.remainder(x - centre + self.length / 2, self.length) - self.length / 2
            for x, centre in zip(torus.points, place, strict=True)
        ]
        distance = apart[0].square() + apart[1].square()
        blobs = 1 - (1 - height * torch.exp(-distance / (2 * width.square()))).prod(dim=0)
        return torch.stack([1 - blobs, blobs / 2])
