"""What the networks are trained on: the published losses, and ours.

Pictures are [C, H, W], not clamped; the published constants are those of the released code.
"""

import math

from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians
from instantgi.similarity import mean_ssim

FOCAL_ALPHA, FOCAL_GAMMA = 1.0, 2.0
SSIM_SHARE = 0.3  # the paper prints λ = 2, with which the share of SSIM would be negative
LEAST_WEIGHT, LARGEST_WEIGHT = 1.0, 10.0
LEAST_SCALE, SCALE_PENALTY = 0.5, 10.0  # px
FARTHEST = 2.0  # in deviations: beyond that, a pair of Gaussians is only called far apart


def focal_map_loss(
    position_map: Float[Tensor, "*S"], target: Float[Tensor, "*S"]
) -> Float[Tensor, ""]:
    """mean (1 − e^{−α|Δ|})^γ Δ², Δ = target − map, α = 1, γ = 2 (Instant-GI, 2025, eq. 7)."""
    difference = target - position_map
    focus = 1 - (-FOCAL_ALPHA * difference.abs()).exp()
    return (focus**FOCAL_GAMMA * difference**2).mean()


def relative_map_loss(
    position_map: Float[Tensor, "*S"], target: Float[Tensor, "*S"]
) -> Float[Tensor, ""]:
    """mean ln² ((map + 0.02) / (target + 0.02)): errors as factors, in sparse regions as in dense.

    `focal_map_loss` goes with the fourth power of small differences, and so hardly sees whether a
    smooth region gets one point in fifty cells or one in twenty.
    """
    return ((position_map + 0.02) / (target + 0.02)).log().square().mean()


def weighted_picture_loss(
    picture: Float[Tensor, "C H W"],
    image: Float[Tensor, "C H W"],
    position_map: Float[Tensor, "H W"],
) -> Float[Tensor, ""]:
    """0.7 mean (w (picture − image)²) + 0.3 mean (w (1 − SSIM)), w = 1 / (map + 0.01) in [1, 10].

    The weights are not in the paper. The map gets no gradient.
    """
    weights = (1 / (position_map.detach() + 0.01)).clamp(LEAST_WEIGHT, LARGEST_WEIGHT)
    squares = (weights * (picture - image) ** 2).mean()
    dissimilarity = weights.mean() - mean_ssim(picture, image, weights)
    return (1 - SSIM_SHARE) * squares + SSIM_SHARE * dissimilarity


def scale_penalty(scales: Float[Tensor, "T 2"]) -> Float[Tensor, ""]:
    """10 mean max(0, 0.5 − scale): thin Gaussians, in pixels; not in the paper."""
    return SCALE_PENALTY * (LEAST_SCALE - scales).clamp_min(0).mean()


def geometry_distance(
    means: Float[Tensor, "N 2"], cholesky: Float[Tensor, "N 3"], target: Gaussians
) -> Float[Tensor, ""]:
    """How far Gaussians are from their targets, each in the frame of its target.

    With u = L*⁻¹ (m − m*) and M = L*⁻¹ L: the mean of |u|² + (ln M₁₁)² + (ln M₂₂)² + M₂₁², at most
    4 each, weighted by the energy |c*|² det L* over its mean, at most 5.
    """
    l11, l21, l22 = target.cholesky.unbind(1)
    shift = means - target.means
    u1 = shift[:, 0] / l11
    u2 = (shift[:, 1] - l21 * u1) / l22
    m11 = cholesky[:, 0] / l11
    m21 = (cholesky[:, 1] - l21 * m11) / l22
    m22 = cholesky[:, 2] / l22
    squares = u1**2 + u2**2 + m11.log() ** 2 + m22.log() ** 2 + m21**2
    energy = target.colors.square().sum(1) * (l11 * l22).abs()
    weights = (energy / energy.mean().clamp_min(1e-12)).clamp(max=5)
    return (weights * squares.clamp(max=FARTHEST**2)).mean()


def decibel_loss(mean_squared_error: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """10 log10 of the error, −PSNR: every picture counts by its decibels, dark ones as bright."""
    return 10 / math.log(10) * (mean_squared_error + 1e-8).log()
