"""Where a fit starts without a network: image → position map → points → triangles → Gaussians."""

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians
from instantgi.points import add_border_points, dither, fit_ellipses, pool, scale_map, triangulate
from instantgi.points.dither import MAX_COORDINATE
from instantgi.points.gradient import gradient_map

DENSITY = 0.11  # Gaussians per pixel at k = 3, the published mean (42,857 on Kodak)
STRETCH = 2.0  # of a triangle's covariance; the best start of a fit, not the best picture by itself
ROUND = 0.15  # px², added to both variances: thin triangles stay drawable
CLOSEST = 0.6  # of all cells filled: with a fuller map the cells are made smaller


def default_count(height: int, width: int, patch_size: int = 3) -> int:
    """Number of Gaussians for a picture: the published density at this patch size, at least 2."""
    return max(2, round(DENSITY * height * width * 9 / patch_size**2))


def heuristic_start(
    image: Float[Tensor, "C H W"], num_gaussians: int, patch_size: int = 3
) -> Gaussians:
    """At most num_gaussians Gaussians shaped by the picture's gradient, black as yet.

    Their colors come by `solve_colors`.

    Dithers `gradient_map`, triangulates the points and puts one Gaussian into each triangle, with
    its center and 2 times its covariance. P points of which b lie on the border make 2 P − b − 2
    triangles. Deterministic.

    Args:
        image: any number of channels, in [0, 1].
        num_gaussians: at least 2. A small picture has room for fewer and gets fewer.
        patch_size: the largest side k of a dithering cell; smaller ones are used where the count
            asks.

    Raises:
        ValueError: if num_gaussians is below 2.
    """
    if num_gaussians < 2:
        raise ValueError(f"num_gaussians must be at least 2, got {num_gaussians}")
    channels, height, width = image.shape
    if max(height, width) > MAX_COORDINATE:
        raise ValueError(
            f"a picture has sides of at most {MAX_COORDINATE} pixels here, got {width}x{height}"
        )
    density = gradient_map(image.detach().float())
    k = patch_size
    while k > 1 and num_gaussians / 2 > CLOSEST * (height // k) * (width // k):
        k -= 1
    wanted = num_gaussians // 2
    for _ in range(2):  # the second time the number of points on the border is known
        inner = dither(scale_map(density, min(wanted, pool(density, k).numel() * 9 // 10), k), k)
        points = add_border_points(inner, height, width)
        wanted = max(0, (num_gaussians + 2 - (len(points) - len(inner))) // 2)
    triangles, _ = triangulate(points)
    centers, covariances = fit_ellipses(points, triangles)
    # In reading order of 8-pixel bands: neighbors in the picture are neighbors in memory.
    order = ((centers[:, 1] // 8) * width + centers[:, 0]).argsort(stable=True)
    if len(order) > num_gaussians:
        # One too many, or in thin pictures many: an even choice, in which each stands for more.
        kept = torch.arange(num_gaussians) * len(order) // num_gaussians
        covariances = covariances * (len(order) / num_gaussians)
        order = order[kept]
    centers, covariances = centers[order], covariances[order]
    covariances = STRETCH * covariances + covariances.new_tensor([ROUND, 0.0, ROUND])
    colors = torch.zeros(len(centers), channels)
    return Gaussians.from_covariances(centers.float(), covariances.float(), colors)
