"""The definition of the picture in plain torch, slow and obvious; every kernel is tested by it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from instantgi.gaussians import Gaussians

SMALLEST_WEIGHT = 1 / 255  # a smaller weight is dropped; reached at 3.33 standard deviations
THINNEST = 1e-6  # px; a Gaussian with a smaller |l11| or |l22| is not drawn


def pixel_centers(height: int, width: int) -> Float[Tensor, "H W 2"]:
    """(x, y) of every pixel: (j + 0.5, i + 0.5)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], dim=-1) + 0.5


def weights_at(
    gaussians: Gaussians, points: Float[Tensor, "*P 2"], smallest: float = SMALLEST_WEIGHT
) -> Float[Tensor, "*P N"]:
    """exp(−½ dᵀ Σ⁻¹ d) of every Gaussian at every point, 0 below the smallest."""
    dx, dy = (points.to(gaussians.means)[..., None, :] - gaussians.means).unbind(-1)  # [*P, N]
    l11, l21, l22 = gaussians.cholesky.unbind(-1)  # [N]
    z1 = dx / l11
    z2 = (dy - l21 * z1) / l22
    weights = torch.exp(-0.5 * (z1**2 + z2**2))
    drawn = (weights >= smallest) & (l11.abs() >= THINNEST) & (l22.abs() >= THINNEST)
    return torch.where(drawn, weights, 0)


def weights_reference(gaussians: Gaussians, height: int, width: int) -> Float[Tensor, "H W N"]:
    """The weights at every pixel center, 0 below 1/255."""
    return weights_at(gaussians, pixel_centers(height, width))


def rasterize_reference(
    gaussians: Gaussians,
    height: int,
    width: int,
    tile_limits: Int[Tensor, "rows cols"] | None = None,
) -> Float[Tensor, "C H W"]:
    """The sum of all Gaussians at every pixel; see `instantgi.render.rasterize`."""
    weights = weights_reference(gaussians, height, width)
    if tile_limits is not None:
        limits = tile_limits.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width]
        listed = torch.arange(len(gaussians), device=limits.device) <= limits[:, :, None]
        weights = torch.where(listed, weights, 0)
    return torch.einsum("hwn,nc->chw", weights, gaussians.colors)


def published_tile_limits(
    gaussians: Gaussians, height: int, width: int, max_per_tile: int = 256
) -> Int[Tensor, "rows cols"]:
    """Index of the last Gaussian that the published kernels draw in each 16x16 tile.

    They list a Gaussian in all tiles that touch the square of ⌈3 √λ⌉ pixels around its mean, where
    λ = ½ tr Σ + √max(0.1, ¼ tr² Σ − det Σ), and leave a tile's list after its first batch of 256:
    Gaussians with a higher index get neither value nor gradient (GaussianImage's gsplat fork,
    rasterize_forward_sum).
    """
    rows, cols = -(-height // 16), -(-width // 16)
    device, gaussians = gaussians.means.device, gaussians.detach().to("cpu")  # a loop over them
    xx, xy, yy = gaussians.covariances.double().unbind(-1)
    half_trace = (xx + yy) / 2
    largest = half_trace + (half_trace**2 - (xx * yy - xy**2)).clamp_min(0.1).sqrt()
    radii = (3 * largest.sqrt()).ceil()[:, None]  # [N, 1]
    means, size = gaussians.means.double(), torch.tensor([cols, rows])
    begin = ((means - radii) / 16).trunc().clamp_min(0).minimum(size).int().tolist()
    end = ((means + radii) / 16 + 1).trunc().clamp_min(0).minimum(size).int().tolist()
    counts = torch.zeros(rows, cols, dtype=torch.int32)
    limits = torch.full((rows, cols), len(gaussians), dtype=torch.int32)
    for n, ((left, top), (right, bottom)) in enumerate(zip(begin, end, strict=True)):
        counts[top:bottom, left:right] += 1
        limits[top:bottom, left:right][counts[top:bottom, left:right] == max_per_tile] = n
    return limits.to(device)
