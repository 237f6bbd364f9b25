"""Gaussians → raster: their sum."""

from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians, check_size, kind_of
from instantgi.render.mixture import seen_from
from instantgi.render.ops import rasterize_sum
from instantgi.render.reference import published_tile_limits


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
    if not isinstance(gaussians, Gaussians):
        raise ValueError(
            f"rasterize draws Gaussians, got {kind_of(gaussians)}; instantgi.render.draw.draw "
            "draws whatever a method makes"
        )
    check_size(height, width)
    if max_per_tile is not None and max_per_tile < 1:
        raise ValueError(f"max_per_tile must be at least 1, got {max_per_tile}")
    gaussians = seen_from(gaussians, origin, step)
    limits = None
    if max_per_tile is not None:
        limits = published_tile_limits(gaussians, height, width, max_per_tile)
    fields = gaussians.means, gaussians.cholesky, gaussians.colors
    return rasterize_sum(*fields, height, width, limits)
