"""A position map becomes points, triangles and ellipses: the shape of every Gaussian to come."""

from instantgi.points.delaunay import triangulate
from instantgi.points.dither import add_border_points, dither, dither_map, pool, scale_map
from instantgi.points.ellipses import fit_ellipses, fit_published_ellipses
from instantgi.points.mesh import Mesh, make_mesh

__all__ = [
    "Mesh",
    "add_border_points",
    "dither",
    "dither_map",
    "fit_ellipses",
    "fit_published_ellipses",
    "make_mesh",
    "pool",
    "scale_map",
    "triangulate",
]
