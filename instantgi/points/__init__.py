"""A position map becomes points, triangles and ellipses: the shape of every Gaussian to come."""

from instantgi.points.delaunay import triangulate
from instantgi.points.dither import add_border_points, dither, dither_map, pool, scale_map
from instantgi.points.ellipses import fit_ellipses, fit_published_ellipses

__all__ = [
    "add_border_points",
    "dither",
    "dither_map",
    "fit_ellipses",
    "fit_published_ellipses",
    "pool",
    "scale_map",
    "triangulate",
]
