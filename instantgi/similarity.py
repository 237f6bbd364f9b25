"""SSIM of whole pictures as a loss: one operator, its gradient included."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi import native
from instantgi.metrics import C1, C2, WINDOW_TAPS, gaussian_window

SIDE, THREADS = 16, 256  # of a block of cuda/ssim_cuda.cu

torch.library.define(
    "instantgi::ssim",
    "(Tensor picture, Tensor image, Tensor? weights, bool keep) -> (Tensor, Tensor)",
)


def mean_ssim(
    picture: Float[Tensor, "C H W"],
    image: Float[Tensor, "C H W"],
    weights: Float[Tensor, "H W"] | None = None,
) -> Float[Tensor, ""]:
    """The mean of w · `ssim_map` over pixels and channels, w = 1 if there are no weights.

    Differentiable in the picture; neither the image nor the weights get a gradient.
    """
    kind = torch.float64 if picture.dtype == torch.float64 else torch.float32
    # half precision would leave nothing of variances, differences of nearly equal numbers
    picture, image = picture.to(kind).contiguous(), image.detach().to(kind).contiguous()
    if weights is not None:
        weights = weights.detach().to(kind).contiguous()
    keep = torch.is_grad_enabled() and picture.requires_grad
    total = torch.ops.instantgi.ssim(picture, image, weights, keep)[0]
    return (total / picture.numel()).to(kind)


def ssim_map(
    picture: Float[Tensor, "C H W"], image: Float[Tensor, "C H W"]
) -> Float[Tensor, "C H W"]:
    """SSIM at every pixel: window 11, deviation 1.5, zeros beyond the border, as published.

    The definition, in plain torch; the equation is that of `metrics.ssim`, which leaves out pixels
    whose window does not fit.
    """
    moments = torch.stack([picture, image, picture**2, image**2, picture * image])
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _windowed(_windowed(moments, 2), 3)
    variances = mean_aa - mean_a**2 + mean_bb - mean_b**2
    covariance = mean_ab - mean_a * mean_b
    light = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return light * (2 * covariance + C2) / (variances + C2)


def _windowed(pictures: Tensor, dim: int) -> Tensor:
    """Averaged under the window along an axis, zeros beyond the border."""
    reach, size = WINDOW_TAPS // 2, pictures.shape[dim]
    end = pictures.new_zeros(*pictures.shape[:dim], reach, *pictures.shape[dim + 1 :])
    padded = torch.cat([end, pictures, end], dim)
    taps = enumerate(gaussian_window(WINDOW_TAPS))
    return sum((padded.narrow(dim, k, size) * tap for k, tap in taps), torch.zeros_like(pictures))


# --- the operator ------------------------------------------------------------------------------


def _check(picture: Tensor, image: Tensor, weights: Tensor | None) -> None:
    kind, size = picture.dtype, tuple(picture.shape)
    if kind not in (torch.float32, torch.float64) or image.dtype != kind:
        raise ValueError(f"ssim is of two pictures of floats, got {kind} and {image.dtype}")
    if len(size) != 3 or tuple(image.shape) != size:
        raise ValueError(f"pictures must be [C, H, W] of equal size, got {size}, {image.shape}")
    if weights is not None and (weights.dtype != kind or tuple(weights.shape) != size[1:]):
        raise ValueError(f"weights must be {kind} [H, W] = {size[1:]}, got {weights.shape}")


@torch.library.impl("instantgi::ssim", "cpu")
def _(picture, image, weights, keep):
    """Σ w · SSIM, and its gradient, which is empty if it is not to be kept."""
    _check(picture, image, weights)
    picture, image = picture.contiguous(), image.contiguous()
    weights = None if weights is None else weights.contiguous()
    total = torch.zeros((), dtype=torch.float64)
    gradient = torch.empty_like(picture) if keep else picture.new_empty(0)
    arguments = (*picture.shape, picture, image, weights, total, gradient if keep else None)
    native.call_cpu("ssim", int(picture.dtype == torch.float64), *arguments)
    return total, gradient


def ssim_cuda(picture, image, weights, keep):
    _check(picture, image, weights)
    picture, image = picture.contiguous(), image.contiguous()
    weights = None if weights is None else weights.contiguous()
    channels, height, width = picture.shape
    blocks = channels * math.ceil(height / SIDE) * math.ceil(width / SIDE)
    sums = torch.empty(blocks, dtype=torch.float64, device=picture.device)
    derivatives = picture.new_empty(3, *picture.shape) if keep else None
    arguments = (*picture.shape, picture, image, weights, sums, derivatives)
    kind = picture.dtype
    native.call_cuda("ssim", "ssim_values", blocks, THREADS, *arguments, real=kind)
    if derivatives is None:
        return sums.sum(), picture.new_empty(0)
    gradient = torch.empty_like(picture)
    arguments = (*picture.shape, picture, image, derivatives, gradient)
    native.call_cuda("ssim", "ssim_gradient", blocks, THREADS, *arguments, real=kind)
    return sums.sum(), gradient


torch.library.impl("instantgi::ssim", "cuda", ssim_cuda)


@torch.library.register_fake("instantgi::ssim")
def _(picture, image, weights, keep):
    gradient = torch.empty_like(picture) if keep else picture.new_empty(0)
    return picture.new_empty((), dtype=torch.float64), gradient


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_total, _):
    (gradient,) = ctx.saved_tensors
    if not gradient.numel():
        raise RuntimeError("ssim was called without keep, which a gradient needs")
    return grad_total.to(gradient.dtype) * gradient, None, None, None


torch.library.register_autograd("instantgi::ssim", _backward, setup_context=_save)
