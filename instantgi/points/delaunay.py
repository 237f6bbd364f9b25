"""Points become triangles: the exact Delaunay triangulation, and the neighbors of each triangle."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from instantgi import native
from instantgi.points.dither import doubled


def triangulate(
    points: Float[Tensor, "P 2"],
) -> tuple[Int64[Tensor, "T 3"], Int64[Tensor, "T 3"]]:
    """Triangles [T, 3] with no point inside any circumcircle, and their neighbors [T, 3].

    Computed in integers, so exact (Guibas and Stolfi, 1985: divide and conquer). Points on a common
    circle, the rule on a lattice, leave a choice: each such polygon becomes a fan around its first
    point in reading order, of smallest y and then smallest x. So the set of triangles depends on
    the points alone, not on their order nor on the number of threads.

    Args:
        points: pixels, distinct multiples of 0.5 with |coordinate| ≤ 2**20.

    Returns:
        triangles: indices into `points`, positively oriented, (b - a) × (c - a) > 0: clockwise on
            a screen, where y points down. Each starts at its smallest index and they are sorted.
            T = 2 P - 2 - (points on the hull); T = 0 for points that are fewer than three or on
            one line.
        neighbors: neighbors[t, q] is the triangle across the edge opposite corner q, or t itself
            where that edge is on the hull.

    Raises:
        ValueError: if points are equal, off the lattice, or too far out.
    """
    triangles, neighbors, info = torch.ops.instantgi.triangulate(doubled(points).int())
    if (equal := info.tolist())[0] < 0:
        x, y = points[equal[1]].tolist()
        raise ValueError(
            f"points must be distinct, but {equal[1]} and {equal[2]} are both at ({x:g}, {y:g})"
        )
    return triangles, neighbors


torch.library.define("instantgi::triangulate", "(Tensor lattice) -> (Tensor, Tensor, Tensor)")


@torch.library.impl("instantgi::triangulate", "cpu")
def _(lattice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    triangles = torch.empty([2 * len(lattice), 3], dtype=torch.int64)
    neighbors = torch.empty_like(triangles)
    info = torch.zeros(3, dtype=torch.int64)
    native.call_cpu("triangulate", lattice.contiguous(), triangles, neighbors, info, len(lattice))
    count = max(0, int(info[0]))
    return triangles[:count], neighbors[:count], info


def _triangulate_cuda(lattice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """On the CPU: there and back is a small part of the time that it takes."""
    triangles, neighbors, info = torch.ops.instantgi.triangulate(lattice.cpu())
    return triangles.to(lattice.device), neighbors.to(lattice.device), info


torch.library.impl("instantgi::triangulate", "cuda", _triangulate_cuda)


@torch.library.register_fake("instantgi::triangulate")
def _(lattice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    triangles = lattice.new_empty([count, 3], dtype=torch.int64)
    return triangles, torch.empty_like(triangles), lattice.new_empty([3], dtype=torch.int64)
