"""The pictures that the published kernels of LIG and Image-GS draw, for comparison only.

Both project a symmetric matrix Σ to a square of ⌈3 √λ⌉ pixels, λ = b + √max(0.1, b² − |Σ|) with
b = (Σxx + Σyy) / 2, and evaluate the Gaussian at every pixel of the 16x16 tiles that it meets,
where σ = ½ dᵀ Σ⁻¹ d ≥ 0: of an indefinite Σ that leaves two opposite sectors, cut off along tiles.
On the CPU, in float32. Pixels are sampled at their centers; Image-GS samples them at their corners,
for which its means are to be moved by half a pixel.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import check_size
from instantgi.native import call_cpu
from instantgi.render.mixture import mix, mixture_backward_on_cpu, mixture_on_cpu
from instantgi.render.ops import check_fields
from instantgi.render.reference import SMALLEST_WEIGHT, pixel_centers

TILE = 16
NEVER = 126.0  # the exponent at which a float weight vanishes: nothing else drops it


def published_sum(
    means: Float[Tensor, "N 2"],
    covariances: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N C"],
    height: int,
    width: int,
) -> Float[Tensor, "C H W"]:
    """Σ min(0.999, e^−σ) c, weights below 1/255 dropped (LIG, 2025, the constants of its code).

    Its gradient is that of the code too: the minimum is not differentiated, and is 0.99 where it
    weighs the gradient of colors.
    """
    _expect_cpu(means)
    check_size(height, width)
    return _Sum.apply(means, covariances, colors, height, width)


def published_mixture(
    means: Float[Tensor, "N 2"],
    covariances: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N C"],
    height: int,
    width: int,
    top_k: int = 10,
    epsilon: float = 1e-4,
) -> Float[Tensor, "C H W"]:
    """The mixture of Image-GS (2025) over those that a tile lists; its gradient is right."""
    _expect_cpu(means)
    check_size(height, width)
    return _Mixture.apply(means, covariances, colors, height, width, top_k, epsilon)


def _expect_cpu(means: Tensor) -> None:
    if means.device.type != "cpu":
        raise ValueError(
            f"what is published is drawn on the CPU only, not on {means.device}: --device cpu, or "
            'tensors .to("cpu")'
        )


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, covariances, colors, height, width):
        ctx.save_for_backward(means, covariances, colors)
        ctx.size = height, width
        image = colors.new_empty(colors.shape[1], height, width)
        call_cpu("rasterize_sum", *_scene(means, covariances, colors, height, width), image)
        return image

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        means, covariances, colors = ctx.saved_tensors
        geometry, grad_colors = means.new_empty(len(means), 5), means.new_empty(colors.shape)
        scene = _scene(means, covariances, colors, *ctx.size)
        call_cpu("rasterize_sum_backward", *scene, grad.contiguous(), geometry, grad_colors)
        return geometry[:, :2], geometry[:, 2:], grad_colors, None, None


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, covariances, colors, height, width, top_k, epsilon):
        scene = means, covariances, colors, height, width
        image, limits, totals = mixture_on_cpu(*scene, NEVER, top_k, epsilon, published=True)
        ctx.save_for_backward(image, limits, totals, means, covariances, colors)
        return image

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        image, limits, totals, means, covariances, colors = ctx.saved_tensors
        saved, scene = (image, limits, totals), (means, covariances, colors)
        grads = mixture_backward_on_cpu(grad, saved, *scene, NEVER, published=True)
        return *grads, None, None, None, None


def _scene(means, covariances, colors, height, width):
    check_fields(means, covariances, colors)
    if means.dtype != torch.float32:
        raise ValueError(f"what is published is drawn in float32, got {means.dtype}")
    fields = means.contiguous(), covariances.contiguous(), colors.contiguous()
    return 0, 1, len(means), colors.shape[1], height, width, *fields, None


# --- definitions -------------------------------------------------------------------------------


def published_weights_reference(
    means: Float[Tensor, "N 2"], covariances: Float[Tensor, "N 3"], height: int, width: int
) -> Float[Tensor, "H W N"]:
    """e^−σ where a Gaussian's tiles are and σ ≥ 0, else 0."""
    xx, xy, yy = covariances.unbind(-1)
    determinant = xx * yy - xy**2
    half = (xx + yy) / 2
    large = half + (half**2 - determinant).clamp_min(0.1).sqrt()
    radius = (3 * large.clamp_min(0).sqrt()).ceil()
    centers = pixel_centers(height, width)
    dx, dy = (centers.to(means)[:, :, None] - means).unbind(-1)  # [H, W, N]
    sigma = (yy * dx**2 - 2 * xy * dx * dy + xx * dy**2) / (2 * determinant)
    tiles = centers.floor()[:, :, None] // TILE  # [H, W, 1, 2]
    low = ((means - radius[:, None]) / TILE).trunc()
    high = ((means + radius[:, None]) / TILE + 1).trunc()
    listed = ((tiles >= low) & (tiles < high)).all(-1) & (determinant != 0) & (large > 0)
    drawn = listed & (sigma >= 0)
    return torch.where(drawn, (-torch.where(drawn, sigma, 0)).exp(), 0)


def published_sum_reference(
    means: Float[Tensor, "N 2"],
    covariances: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N C"],
    height: int,
    width: int,
) -> Float[Tensor, "C H W"]:
    """The definition of `published_sum`, slow and obvious."""
    weights = published_weights_reference(means, covariances, height, width)
    capped = weights + (weights.clamp_max(0.999) - weights).detach()
    weights = torch.where(weights < SMALLEST_WEIGHT, 0, capped)
    return torch.einsum("hwn,nc->chw", weights, colors)


def published_mixture_reference(
    means: Float[Tensor, "N 2"],
    covariances: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N C"],
    height: int,
    width: int,
    top_k: int = 10,
    epsilon: float = 1e-4,
) -> Float[Tensor, "C H W"]:
    """The definition of `published_mixture`, slow and obvious."""
    weights = published_weights_reference(means, covariances, height, width)
    return mix(weights, colors, top_k, epsilon).permute(2, 0, 1)
