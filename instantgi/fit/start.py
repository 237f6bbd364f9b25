"""Where a fit starts without a network: image → position map → points → triangles → Gaussians."""

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians
from instantgi.points import make_mesh
from instantgi.points.gradient import gradient_map

DENSITY = 0.11  # Gaussians per pixel at k = 3, the published mean (42,857 on Kodak)
STRETCH = 2.0  # of a triangle's covariance; the best start of a fit, not the best picture by itself
ROUND = 0.15  # px², added to both variances: thin triangles stay drawable


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
    mesh = make_mesh(gradient_map(image.detach().float()), patch_size, num_gaussians)
    covariances = STRETCH * mesh.covariances + mesh.covariances.new_tensor([ROUND, 0.0, ROUND])
    colors = mesh.centers.new_zeros(len(mesh.centers), len(image), dtype=torch.float32)
    gaussians = Gaussians.from_covariances(mesh.centers.float(), covariances.float(), colors)
    return thin_out(gaussians, num_gaussians)


def thin_out(gaussians: Gaussians, num_gaussians: int) -> Gaussians:
    """At most num_gaussians of them: an even choice, in which each stands for more.

    For the one too many that a mesh can have, and for thin pictures, where it can be many.
    """
    num = len(gaussians)
    if num <= num_gaussians:
        return gaussians
    kept = torch.arange(num_gaussians, device=gaussians.means.device) * num // num_gaussians
    grown = gaussians.cholesky[kept] * (num / num_gaussians) ** 0.5
    return Gaussians(gaussians.means[kept], grown, gaussians.colors[kept])
