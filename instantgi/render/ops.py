"""The rasterizer as torch operators: schema, shapes, autograd; the dispatcher picks the kernel.

`rasterize_sum` is the public one, on planar pictures. A fit works on pictures in blocks of 4x4 pixels, the
kernels' own layout: `to_blocks` once, then `rasterize_error` and `rasterize_error_backward` per step.
"""

import torch
from torch import Tensor

from instantgi.native import call_cpu

GROUP = 4  # channels drawn in one pass, kGroup in cuda/rasterize_sum_cpu.cpp
COLORS_ONLY, LOCAL, PARAMETERS = 0, 1, 2  # enum Coordinates there


@torch.library.custom_op("instantgi::rasterize_sum", mutates_args=(), device_types="cpu")
def rasterize_sum(
    means: Tensor, cholesky: Tensor, colors: Tensor, height: int, width: int, tile_limits: Tensor | None
) -> Tensor:
    image = colors.new_empty(colors.shape[1], height, width)
    call_cpu("rasterize_sum", *_scene(means, cholesky, colors, height, width, tile_limits), image)
    return image


@rasterize_sum.register_fake
def _(means, cholesky, colors, height, width, tile_limits):
    return colors.new_empty(colors.shape[1], height, width)


@torch.library.custom_op("instantgi::rasterize_sum_backward", mutates_args=(), device_types="cpu")
def rasterize_sum_backward(
    grad_image: Tensor, means: Tensor, cholesky: Tensor, colors: Tensor, tile_limits: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = grad_image.shape[1:]
    scene = _scene(means, cholesky, colors, height, width, tile_limits)
    geometry, grad_colors = colors.new_empty(len(means), 5), torch.empty_like(scene[7])
    call_cpu("rasterize_sum_backward", *scene, grad_image.contiguous(), geometry, grad_colors)
    return geometry[:, :2].contiguous(), geometry[:, 2:].contiguous(), grad_colors


@rasterize_sum_backward.register_fake
def _(grad_image, means, cholesky, colors, tile_limits):
    num, channels = colors.shape
    return means.new_empty(num, 2), means.new_empty(num, 3), means.new_empty(num, channels)


def _setup(ctx, inputs, output):
    means, cholesky, colors, _, _, tile_limits = inputs
    ctx.save_for_backward(means, cholesky, colors, tile_limits)


def _backward(ctx, grad_image):
    grads = rasterize_sum_backward(grad_image, *ctx.saved_tensors)
    return *grads, None, None, None


rasterize_sum.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("instantgi::rasterize_error", mutates_args=(), device_types="cpu")
def rasterize_error(
    means: Tensor, cholesky: Tensor, colors: Tensor, target_blocks: Tensor, height: int, width: int, clamp: bool
) -> tuple[Tensor, Tensor]:
    """The picture minus the target, in blocks, and the sum of its squares (float64, a scalar).

    With `clamp` the picture is clamped to [0, 1] first, and the residual is 0 where that is active, so that
    it always is half the gradient of the sum of squares.
    """
    residual, squares = torch.empty_like(target_blocks), torch.empty((), dtype=torch.float64)
    scene = _scene(means, cholesky, colors, height, width, None)
    call_cpu("rasterize_error", *scene, target_blocks, int(clamp), residual, squares)
    return residual, squares


@rasterize_error.register_fake
def _(means, cholesky, colors, target_blocks, height, width, clamp):
    return torch.empty_like(target_blocks), means.new_empty((), dtype=torch.float64)


@torch.library.custom_op("instantgi::rasterize_error_backward", mutates_args=(), device_types="cpu")
def rasterize_error_backward(
    residual: Tensor,
    means: Tensor,
    cholesky: Tensor,
    colors: Tensor,
    height: int,
    width: int,
    scale: float,
    coordinates: int,
) -> tuple[Tensor, Tensor]:
    """`scale` · the gradient of ½ Σ residual²: of geometry [N, 5] and colors [N, C].

    Geometry is (u1, u2, s11, s12, s22) at 0 in mean + L u and L (I + S) Lᵀ for LOCAL; means and cholesky
    for PARAMETERS; [0, 5] for COLORS_ONLY.
    """
    scene = _scene(means, cholesky, colors, height, width, None)
    geometry = colors.new_empty(0 if coordinates == COLORS_ONLY else len(means), 5)
    grad_colors = torch.empty_like(scene[7])
    call_cpu("rasterize_error_backward", *scene, residual, scale, coordinates, geometry, grad_colors)
    return geometry, grad_colors


@rasterize_error_backward.register_fake
def _(residual, means, cholesky, colors, height, width, scale, coordinates):
    rows = 0 if coordinates == COLORS_ONLY else len(means)
    return colors.new_empty(rows, 5), torch.empty_like(colors)


def _scene(means: Tensor, cholesky: Tensor, colors: Tensor, height: int, width: int, limits: Tensor | None):
    if means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the rasterizer works in float32 or float64, got {means.dtype}")
    tensors = (means.contiguous(), cholesky.contiguous(), colors.contiguous())
    return (int(means.dtype == torch.float64), len(means), colors.shape[1], height, width, *tensors, limits)


def to_blocks(image: Tensor) -> Tensor:
    """A picture [C, H, W] as the kernels hold it, flat: groups of 4 channels, each in blocks of 4x4 pixels."""
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image, (0, -width % 4, 0, -height % 4))
    rows, cols = padded.shape[1] // 4, padded.shape[2] // 4
    blocks = padded.reshape(-1, rows, 4, cols, 4).permute(1, 3, 0, 2, 4)  # [rows, cols, C, 4, 4]
    return torch.cat([group.flatten() for group in blocks.split(GROUP, dim=2)])


def from_blocks(blocks: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `to_blocks`."""
    rows, cols = -(-height // 4), -(-width // 4)
    channels = blocks.numel() // (rows * cols * 16)
    groups = blocks.split([rows * cols * 16 * min(GROUP, channels - first) for first in range(0, channels, GROUP)])
    planes = [g.reshape(rows, cols, -1, 4, 4).permute(2, 0, 3, 1, 4).reshape(-1, rows * 4, cols * 4) for g in groups]
    return torch.cat(planes)[:, :height, :width]
