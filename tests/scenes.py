"""Seeded inputs that tests and benchmarks share."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from instantgi.context import LEVEL_ZERO, PER_NODE, Context, num_nodes, to_grid
from instantgi.gaussians import Gaussians
from instantgi.points.seeds import SeedGrid
from instantgi.representations import Seeds
from instantgi.seeds import Perceptron


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
    """Uniform means (up to a pixel outside), standard deviations and angles, colors in [0, 1]."""
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)

    means = uniform(-1, 1, num, 2) * torch.tensor([width / 2 + 1, height / 2 + 1]) + torch.tensor(
        [width / 2, height / 2]
    )
    return Gaussians.from_scales_rotations(
        means, uniform(*scales, num, 2), uniform(-3.2, 3.2, num), uniform(0, 1, num, channels)
    ).to(dtype)


def on_cutoff(
    gaussians: Gaussians, height: int, width: int, rtol: float
) -> Bool[Tensor, "{height} {width}"]:
    """Pixels where a weight is within `rtol` of 1/255: rounding decides whether it counts."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    l11, l21, l22 = gaussians.cholesky.double().unbind(-1)  # [N]
    mean_x, mean_y = gaussians.means.double().unbind(-1)
    z1 = (x[..., None] + 0.5 - mean_x) / l11  # [H, W, N]
    z2 = (y[..., None] + 0.5 - mean_y - l21 * z1) / l22
    # d w / w = −½ d(z²), so a relative change of the weight is this absolute one of the exponent
    return ((0.5 * (z1**2 + z2**2) - math.log(255)).abs() < rtol).any(-1)


def one_gaussian(
    mean: tuple[float, float],
    cholesky: tuple[float, float, float],
    color: tuple[float, ...] = (1.0,),
    dtype: torch.dtype = torch.float32,
) -> Gaussians:
    return Gaussians(*(torch.tensor([row], dtype=dtype) for row in (mean, cholesky, color)))


# name: (mean, cholesky); each either draws what the reference draws or nothing, and stays finite
HOSTILE = {
    "tiny, on a pixel center": ((20.5, 10.5), (0.05, 0, 0.05)),
    "tiny, beside it": ((20.4, 10.4), (0.05, 0, 0.05)),
    "tiny, between pixels": ((20, 10), (0.05, 0, 0.05)),
    "200 px": ((20, 10), (200, 0, 200)),
    "1e6 px": ((20, 10), (1e6, 3e5, 1e6)),
    "1e25 px": ((20, 10), (1e25, 3e5, 1e25)),
    "largest float": ((20, 10), (1e38, 1e38, 1e38)),
    "1e30 px away": ((1e30, -1e30), (1, 0, 1)),
    "3e38 px away": ((-3e38, 2e38), (1, 0, 1)),
    "wide enough to come back": ((1e6, 20), (1e6, 0, 3)),
    "wide and beyond 2**31": ((2.0**31, 3), (2.0**30, 0, 5)),
    "thin, flat": ((20, 18.4), (300, 0, 0.3)),
    "thin, upright": ((20.4, 18), (0.3, 0, 300)),
    "thin, diagonal": ((20, 18), (10, 10, 0.01)),
    "thin, long, diagonal": ((20, 18), (1000, 1000, 0.1)),
    "1000 px away along its axis": ((1020, 1018), (1000, 1000, 0.1)),
    "denormal mean and shear": ((1e-40, 1e-42), (1, 1e-42, 1)),
    "denormal width": ((1e-40, 1e-42), (1e-40, 0, 1)),
    "no width": ((20, 20), (0, 0, 1)),
    "no height": ((20.5, 20.5), (1, 0, 0)),
    "negative factor": ((20, 20), (-2, 1, 3)),
    "other negative factor": ((20, 20), (2, 1, -3)),
    "sheared beyond sight": ((20.25, 20), (1, 1e30, 1)),
    "sheared to the limit": ((20.25, 20), (1e-5, 1e38, 1e-5)),
}


def random_seeds(
    num: int,
    height: int,
    width: int,
    *,
    features: int = 6,
    per_seed: int = 3,
    channels: int = 3,
    resolutions: tuple[int, ...] = (8, 16, 32),
    seed: int = 0,
) -> Seeds:
    """Numbers drawn from what their context says of them."""
    random = torch.Generator().manual_seed(seed)
    grid = SeedGrid(num, height, width, seed)
    counts = (features, 4, 2 * per_seed)

    def network(inputs: int, hidden: int, outputs: int) -> Perceptron:
        shapes = [(inputs, hidden), (hidden,), (hidden, outputs), (outputs,)]
        values = (0.3 * torch.randn(shape, generator=random) for shape in shapes)
        return Perceptron(*(to_grid(value) for value in values))

    signs = torch.randint(2, (num_nodes(grid, resolutions, 256), PER_NODE), generator=random)
    context = Context(
        counts,
        resolutions,
        256,
        2.0 * signs - 1,
        network(PER_NODE * len(resolutions), 10 if resolutions else 0, 2 * sum(counts) + 3),
    )
    means, levels, _ = context.integers(grid)
    uniform = torch.rand(means.shape, generator=random).clamp(1e-5, 1 - 1e-5)
    symbols = (means / 8 + 2 ** ((levels - LEVEL_ZERO) / 4) * uniform.logit()).round().long()
    colors = network(features, features, channels * per_seed)
    shapes = network(features, features, 3 * per_seed)
    return Seeds.from_symbols(grid, symbols, colors, shapes, (1.0, 0.125, 0.1875), context)
