"""A position map becomes a mesh: points, their triangles, and the ellipse of each triangle."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from instantgi.points.delaunay import triangulate
from instantgi.points.dither import (
    MAX_COORDINATE,
    add_border_points,
    dither,
    dither_cells,
    kept_cells,
)
from instantgi.points.ellipses import fit_ellipses

ENOUGH = 0.9  # of the triangles asked for
CLOSEST = 0.6  # of all cells filled: with a fuller map the cells are made smaller


class Mesh(NamedTuple):
    """The triangles of one picture, in reading order of 8-pixel bands: neighbors in the picture are
    neighbors in memory.

    Attributes:
        points: pixels; the hull is the picture's border.
        triangles: indices of points.
        neighbors: indices of triangles, across the edge opposite each corner; itself at the hull.
        centers: pixels.
        covariances: (xx, xy, yy) of the triangle as a uniform area, px².
    """

    points: Float[Tensor, "P 2"]
    triangles: Int64[Tensor, "T 3"]
    neighbors: Int64[Tensor, "T 3"]
    centers: Float[Tensor, "T 2"]
    covariances: Float[Tensor, "T 3"]


def make_mesh(
    position_map: Float[Tensor, "H W"], patch_size: int, num_triangles: int | None = None
) -> Mesh:
    """Dither the map, add points on the border, triangulate. Deterministic.

    P points of which b lie on the border make 2 P − b − 2 triangles.

    Args:
        position_map: with a number of triangles any values ≥ 0, else the expected points per cell,
            in [0, 1].
        patch_size: side k of a cell in pixels.
        num_triangles: scales the map so that there are about so many, at least 2; where that fills
            more than 60 % of the cells they are made smaller. A small picture has room for fewer.

    Raises:
        ValueError: if num_triangles is below 2, or a side is above 2**20 pixels.
    """
    height, width = position_map.shape
    if max(height, width) > MAX_COORDINATE:
        raise ValueError(
            f"a picture has sides of at most {MAX_COORDINATE} pixels here, got {width}x{height}"
        )
    if num_triangles is None:
        points = add_border_points(dither(position_map, patch_size), height, width)
    else:
        points = _counted_points(position_map, patch_size, num_triangles)
    triangles, neighbors = triangulate(points)
    centers, covariances = fit_ellipses(points, triangles)
    order = ((centers[:, 1] // 8) * width + centers[:, 0]).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return Mesh(
        points, triangles[order], place[neighbors[order]], centers[order], covariances[order]
    )


def _counted_points(position_map: Tensor, k: int, num_triangles: int) -> Tensor:
    if num_triangles < 2:
        raise ValueError(f"num_gaussians must be at least 2, got {num_triangles}")
    height, width = position_map.shape
    k = min(k, max(height, width))  # one cell
    while k > 1 and num_triangles / 2 > CLOSEST * (height // k) * (width // k):
        k -= 1
    wanted, room = num_triangles // 2, -(-height // k) * -(-width // k) * 9 // 10
    cells = kept_cells(position_map.detach(), k, largest=float("inf"))

    def with_border(num: int) -> tuple[Tensor, int]:
        """The points, and how many of them are new on the border."""
        inner = dither_cells(cells, min(num, room), k)
        points = add_border_points(inner, height, width)
        return points, len(points) - len(inner)

    points, border = with_border(wanted)
    # the second time the number of points on the border is known
    fewest, most = 0, wanted
    points, border = with_border(max(0, (num_triangles + 2 - border) // 2))
    # of few points many lie on the border, and how many changes with each: halve what is between
    found = 2 * len(points) - border - 2
    while found < ENOUGH * num_triangles and fewest < most - 1:
        middle = (fewest + most) // 2
        tried, border = with_border(middle)
        made = 2 * len(tried) - border - 2
        if made > num_triangles:
            most = middle
            continue
        fewest = middle
        if made > found:
            points, found = tried, made
    return points
