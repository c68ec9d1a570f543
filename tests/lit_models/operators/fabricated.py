"""What every network that maps fields to fields must do."""

import torch
from torch import Tensor, nn


def check_every_parameter_learns(net: nn.Module, x: Tensor) -> None:
    """Every parameter has a finite gradient that is nowhere all zero."""
    y = net(x)
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def check_every_block_matters(net: nn.Module, x: Tensor) -> None:
    """Perturbing any parameter changes the output."""
    with torch.no_grad():
        before = net(x)
        for name, parameter in net.named_parameters():
            kept = parameter.clone()
            parameter += 0.1 * torch.randn_like(parameter)
            assert (net(x) - before).abs().max() > 1e-6, name
            parameter.copy_(kept)
        assert torch.equal(net(x), before)


def waves(points: tuple[int, ...], channels: int) -> Tensor:
    """A field [1, channels, *points] of waves with wavenumbers up to 2, at i / N."""
    lines = [torch.arange(n, dtype=torch.float64) / n for n in points]
    grid = torch.meshgrid(*lines, indexing="ij")
    fields = []
    for c in range(channels):
        terms = [torch.sin(2 * torch.pi * (1 + (c + a) % 2) * x + c) for a, x in enumerate(grid)]
        fields.append(sum(terms) + torch.stack(terms).prod(dim=0))
    return torch.stack(fields)[None].float()


def check_resolution_transfer(net: nn.Module, points: tuple[int, ...], tolerance: float) -> None:
    """At twice the resolution the output is the same function, but for what GELU aliases."""
    with torch.no_grad():
        coarse, fine = (net(waves(size, 2)) for size in (points, tuple(2 * n for n in points)))
        every = (..., *(slice(None, None, 2) for _ in points))
        assert (fine[every] - coarse).norm() < tolerance * coarse.norm()
