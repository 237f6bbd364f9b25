"""Seeded inputs that tests and benchmarks share."""

import torch
from torch import Tensor

from instantgi.gaussians import Gaussians


def random_gaussians(
    num: int,
    height: int,
    width: int,
    *,
    channels: int = 3,
    scales: tuple[float, float] = (0.85, 2.55),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Gaussians:
    """Uniform means (some outside by up to a pixel), standard deviations and angles, colors in [0, 1]."""
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)

    means = uniform(-1, 1, num, 2) * torch.tensor([width / 2 + 1, height / 2 + 1]) + torch.tensor([width / 2, height / 2])
    return Gaussians.from_scales_rotations(
        means, uniform(*scales, num, 2), uniform(-3.2, 3.2, num), uniform(0, 1, num, channels)
    ).to(dtype)
