"""Gaussians → raster."""

from instantgi.render.mixture import rasterize_mixture
from instantgi.render.points import mixture_at, sum_at
from instantgi.render.reference import rasterize_reference
from instantgi.render.sum import rasterize

__all__ = [
    "mixture_at",
    "rasterize",
    "rasterize_mixture",
    "rasterize_reference",
    "sum_at",
]
