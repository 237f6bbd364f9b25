"""Gaussians → raster."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import RADIUS, Gaussians, check_size
from instantgi.render.mixture import rasterize_mixture, seen_from
from instantgi.render.ops import rasterize_sum
from instantgi.render.points import mixture_at, sum_at
from instantgi.render.reference import published_tile_limits, rasterize_reference

__all__ = [
    "draw_part",
    "mixture_at",
    "rasterize",
    "rasterize_mixture",
    "rasterize_reference",
    "sum_at",
]

MAX_SAMPLES = 150_000_000  # of a picture whose pixels are means of several
MAX_PAIRS = 2e11  # of a Gaussian and a pixel that it may reach: minutes


def rasterize(
    gaussians: Gaussians,
    height: int,
    width: int,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    step: tuple[float, float] = (1.0, 1.0),
    max_per_tile: int | None = None,
) -> Float[Tensor, "C {height} {width}"]:
    """Sum all Gaussians at every pixel; no sorting, no transmittance.

    I(p) = Σₙ cₙ exp(−½ (p − μₙ)ᵀ Σₙ⁻¹ (p − μₙ)), terms with a weight below 1/255 dropped
    (GaussianImage, 2024, eq. 7, with the cut-off of its kernels; here the extents are exact and
    nothing else is dropped). A Gaussian thinner than 1e-6 px is not drawn.

    Args:
        gaussians: N Gaussians in pixels; N = 0 gives a black picture.
        height, width: size of the picture in pixels.
        origin: (x, y) of the picture's upper left corner.
        step: distance between pixels in x and y: (0.5, 0.5) draws at twice the size. The sum is
            sampled at the pixel centers origin + (j + 0.5, i + 0.5) · step, not averaged over the
            pixel.
        max_per_tile: None draws everything. A number reproduces the published kernels, which draw
            only so many Gaussians (256) in each 16x16 tile: for comparison only.

    Returns:
        The picture, not clamped. Differentiable in every field of `gaussians`.

    Raises:
        ValueError: if the size or step is not positive, or a parameter is not finite.
    """
    check_size(height, width)
    if max_per_tile is not None and max_per_tile < 1:
        raise ValueError(f"max_per_tile must be at least 1, got {max_per_tile}")
    gaussians = seen_from(gaussians, origin, step)
    limits = None
    if max_per_tile is not None:
        limits = published_tile_limits(gaussians, height, width, max_per_tile)
    fields = gaussians.means, gaussians.cholesky, gaussians.colors
    return rasterize_sum(*fields, height, width, limits)


def draw_part(
    gaussians: Gaussians, part: tuple[int, int, int, int], height: int, width: int
) -> Float[Tensor, "C {height} {width}"]:
    """A part (x, y, width, height) of the picture, in pixels, drawn at another size.

    Where that is smaller, a pixel is the mean of several samples: one would miss what lies between.

    Raises:
        ValueError: if the samples would be more than 150 million, or what they take minutes.
    """
    left, top, part_width, part_height = part
    samples = [
        max(1, math.ceil(whole / drawn))
        for whole, drawn in ((part_width, width), (part_height, height))
    ]
    fine_width, fine_height = width * samples[0], height * samples[1]
    if fine_width * fine_height > MAX_SAMPLES:
        raise ValueError(
            f"{width}x{height} pixels would take {fine_width * fine_height} samples, more than "
            f"{MAX_SAMPLES}; choose a smaller size or part"
        )
    scale = (fine_width / part_width, fine_height / part_height)
    moved = gaussians.translated(-left, -top).scaled(*scale)
    pairs = _count_pairs(moved, fine_height, fine_width)
    if pairs > MAX_PAIRS:
        raise ValueError(
            f"{width}x{height} pixels would take {pairs:.1e} Gaussians at pixels, more than "
            f"{MAX_PAIRS:.0e}; choose a smaller size or part"
        )
    picture = rasterize(
        gaussians,
        fine_height,
        fine_width,
        origin=(left, top),
        step=(part_width / fine_width, part_height / fine_height),
    )
    if samples == [1, 1]:
        return picture
    return torch.nn.functional.avg_pool2d(picture[None], (samples[1], samples[0]))[0]


def _count_pairs(gaussians: Gaussians, height: int, width: int) -> float:
    """Pixels in the boxes around the ellipses, those of all Gaussians together."""
    means, cholesky = gaussians.means.detach().double(), gaussians.cholesky.detach().double()
    reach = RADIUS * torch.stack([cholesky[:, 0].abs(), cholesky[:, 1:].norm(dim=1)], 1)
    size = means.new_tensor([width, height])
    zero = torch.zeros_like(size)
    sides = (means + reach).minimum(size).maximum(zero) - (means - reach).maximum(zero).minimum(
        size
    )
    return float(sides.prod(1).sum())
