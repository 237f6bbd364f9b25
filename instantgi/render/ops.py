"""The rasterizer as torch operators: schema, shapes, autograd; the dispatcher picks the kernel.

`rasterize_sum` is the public one, on planar pictures. A fit works on pictures in blocks of 4x4
pixels, the kernels' own layout: `to_blocks` once, then `rasterize_error` and its backward per step.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from instantgi.native import call_cpu
from instantgi.render import cuda

GROUP = 4  # channels drawn in one pass, kGroup in cuda/rasterize_cpu.h
COLORS_ONLY, LOCAL, PARAMETERS = 0, 1, 2  # enum Coordinates in cuda/rasterize_sum.h

SCENE = "Tensor means, Tensor cholesky, Tensor colors"
# `torch.library.custom_op` would say the same, but imports torch._dynamo (1.4 s) at the first call.
for schema in (
    f"rasterize_sum({SCENE}, int height, int width, Tensor? tile_limits) -> Tensor",
    f"rasterize_sum_backward(Tensor grad_image, {SCENE}, Tensor? tile_limits) -> "
    "(Tensor, Tensor, Tensor)",
    f"rasterize_error({SCENE}, Tensor target, int height, int width, bool clamp, "
    "Tensor? order=None) -> (Tensor, Tensor)",
    f"rasterize_error_backward(Tensor residual, {SCENE}, int height, int width, float scale, "
    "int coordinates, Tensor? order=None) -> (Tensor, Tensor)",
    "order_by_place(Tensor means, int height, int width) -> Tensor",
):
    torch.library.define(f"instantgi::{schema.split('(')[0]}", schema[schema.index("(") :])

rasterize_sum = torch.ops.instantgi.rasterize_sum
rasterize_sum_backward = torch.ops.instantgi.rasterize_sum_backward
rasterize_error = torch.ops.instantgi.rasterize_error
rasterize_error_backward = torch.ops.instantgi.rasterize_error_backward
order_by_place = torch.ops.instantgi.order_by_place


@torch.library.impl("instantgi::rasterize_sum", "cpu")
def _(means, cholesky, colors, height, width, tile_limits):
    image = colors.new_empty(colors.shape[1], height, width)
    _on_cpu("rasterize_sum", _scene(means, cholesky, colors, height, width, tile_limits), image)
    return image


def rasterize_sum_cuda(means, cholesky, colors, height, width, tile_limits):
    return cuda.rasterize_sum(_scene(means, cholesky, colors, height, width, tile_limits)[1:])


torch.library.impl("instantgi::rasterize_sum", "cuda", rasterize_sum_cuda)


@torch.library.register_fake("instantgi::rasterize_sum")
def _(means, cholesky, colors, height, width, tile_limits):
    return colors.new_empty(colors.shape[1], height, width)


@torch.library.impl("instantgi::rasterize_sum_backward", "cpu")
def _(grad_image, means, cholesky, colors, tile_limits):
    height, width = _check_gradient(grad_image, colors)
    scene = _scene(means, cholesky, colors, height, width, tile_limits)
    geometry, grad_colors = colors.new_empty(len(means), 5), torch.empty_like(scene[7])
    _on_cpu("rasterize_sum_backward", scene, grad_image.contiguous(), geometry, grad_colors)
    # clone, not contiguous: of a single Gaussian that would be two views of one tensor
    return geometry[:, :2].clone(), geometry[:, 2:].clone(), grad_colors


def rasterize_sum_backward_cuda(grad_image, means, cholesky, colors, tile_limits):
    height, width = _check_gradient(grad_image, colors)
    scene = _scene(means, cholesky, colors, height, width, tile_limits)
    arguments = (to_blocks(grad_image), 1.0, PARAMETERS, None)
    geometry, grad_colors = cuda.rasterize_error_backward(scene[1:], *arguments)
    return geometry[:, :2].clone(), geometry[:, 2:].clone(), grad_colors


torch.library.impl("instantgi::rasterize_sum_backward", "cuda", rasterize_sum_backward_cuda)


@torch.library.register_fake("instantgi::rasterize_sum_backward")
def _(grad_image, means, cholesky, colors, tile_limits):
    num, channels = colors.shape
    return means.new_empty(num, 2), means.new_empty(num, 3), means.new_empty(num, channels)


def _save_scene(ctx, inputs, output):
    means, cholesky, colors, _, _, tile_limits = inputs
    ctx.save_for_backward(means, cholesky, colors, tile_limits)


def _rasterize_sum_backward(ctx, grad_image):
    return *rasterize_sum_backward(grad_image, *ctx.saved_tensors), None, None, None


torch.library.register_autograd(
    "instantgi::rasterize_sum", _rasterize_sum_backward, setup_context=_save_scene
)


@torch.library.impl("instantgi::rasterize_error", "cpu")
def _(means, cholesky, colors, target, height, width, clamp, order=None):
    """The picture minus the target, in blocks, and the sum of its squares (float64, a scalar).

    With `clamp` the picture is clamped to [0, 1] first, and the residual is 0 where that is active,
    so that it always is half the gradient of the sum of squares. `order`: what `order_by_place`
    gave lately; the older, the slower.
    """
    residual, squares = torch.empty_like(target), torch.empty((), dtype=torch.float64)
    scene = _scene(means, cholesky, colors, height, width, None)
    _check_blocks(target, colors, height, width)
    _on_cpu("rasterize_error", scene, target, int(clamp), residual, squares)
    return residual, squares


def rasterize_error_cuda(means, cholesky, colors, target, height, width, clamp, order=None):
    scene = _scene(means, cholesky, colors, height, width, None)
    _check_blocks(target, colors, height, width)
    return cuda.rasterize_error(scene[1:], target, clamp, order)


torch.library.impl("instantgi::rasterize_error", "cuda", rasterize_error_cuda)


@torch.library.register_fake("instantgi::rasterize_error")
def _(means, cholesky, colors, target, height, width, clamp, order=None):
    return torch.empty_like(target), means.new_empty((), dtype=torch.float64)


@torch.library.impl("instantgi::rasterize_error_backward", "cpu")
def _(residual, means, cholesky, colors, height, width, scale, coordinates, order=None):
    """`scale` · the gradient of ½ Σ residual²: of geometry [N, 5] and colors [N, C].

    Geometry is (u1, u2, s11, s12, s22) at 0 in mean + L u and L (I + S) Lᵀ for LOCAL; means and
    cholesky for PARAMETERS; [0, 5] for COLORS_ONLY.
    """
    scene = _scene(means, cholesky, colors, height, width, None)
    geometry = colors.new_empty(0 if coordinates == COLORS_ONLY else len(means), 5)
    grad_colors = torch.empty_like(scene[7])
    arguments = (residual, scale, coordinates, geometry, grad_colors)
    _check_blocks(residual, colors, height, width)
    _on_cpu("rasterize_error_backward", scene, *arguments)
    return geometry, grad_colors


def rasterize_error_backward_cuda(
    residual, means, cholesky, colors, height, width, scale, coordinates, order=None
):
    scene = _scene(means, cholesky, colors, height, width, None)
    _check_blocks(residual, colors, height, width)
    return cuda.rasterize_error_backward(scene[1:], residual, scale, coordinates, order)


torch.library.impl("instantgi::rasterize_error_backward", "cuda", rasterize_error_backward_cuda)


@torch.library.register_fake("instantgi::rasterize_error_backward")
def _(residual, means, cholesky, colors, height, width, scale, coordinates, order=None):
    rows = 0 if coordinates == COLORS_ONLY else means.shape[0]
    return colors.new_empty(rows, 5), torch.empty_like(colors)


@torch.library.impl("instantgi::order_by_place", "cpu")
def _(means, height, width):
    """Indices [N] such that neighbors in the list are neighbors in the picture, int64.

    CUDA kernels draw such a list fast, any other one right. Those of the CPU sort by themselves.
    """
    return torch.arange(len(means))


torch.library.impl("instantgi::order_by_place", "cuda", cuda.order_by_place)


@torch.library.register_fake("instantgi::order_by_place")
def _(means, height, width):
    return means.new_empty(means.shape[0], dtype=torch.int64)


class _MeanSquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, cholesky, colors, target, height, width, clamp):
        residual, squares = rasterize_error(means, cholesky, colors, target, height, width, clamp)
        ctx.save_for_backward(residual, means, cholesky, colors)
        ctx.size = height, width
        return (squares / (colors.shape[1] * height * width)).to(colors.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        residual, means, cholesky, colors = ctx.saved_tensors
        height, width = ctx.size
        scale = 2 * float(grad) / (colors.shape[1] * height * width)
        geometry, grad_colors = rasterize_error_backward(
            residual, means, cholesky, colors, height, width, scale, PARAMETERS
        )
        return geometry[:, :2], geometry[:, 2:], grad_colors, None, None, None, None


def mean_squared_error(
    means: Tensor,
    cholesky: Tensor,
    colors: Tensor,
    target: Tensor,
    height: int,
    width: int,
    clamp: bool,
) -> Tensor:
    """Mean over pixels and channels of (picture − target)², target in blocks; differentiable.

    With `clamp` the picture is clamped to [0, 1] first, as GaussianImage does.
    """
    return _MeanSquaredError.apply(means, cholesky, colors, target, height, width, clamp)


def _on_cpu(name, scene, *arguments):
    published = 0  # conics, see instantgi.render.published
    call_cpu(name, scene[0], published, *scene[1:], *arguments)


def _check_gradient(grad_image, colors):
    """Its height and width."""
    if grad_image.shape[0] != colors.shape[1] or grad_image.dtype != colors.dtype:
        raise ValueError(
            f"grad_image must be {colors.dtype} with {colors.shape[1]} channels, "
            f"got {grad_image.dtype} {list(grad_image.shape)}"
        )
    return grad_image.shape[1:]


def _scene(means, cholesky, colors, height, width, tile_limits):
    """The arguments that every kernel starts with."""
    check_fields(means, cholesky, colors)
    tensors = (means.contiguous(), cholesky.contiguous(), colors.contiguous())
    if tile_limits is not None:
        tiles = -(-height // 16), -(-width // 16)
        if tile_limits.shape != tiles or tile_limits.dtype != torch.int32:
            kind = f"{list(tile_limits.shape)} {tile_limits.dtype}"
            raise ValueError(f"tile_limits must be {list(tiles)} torch.int32, got {kind}")
        tile_limits = tile_limits.contiguous()
    is_double = int(means.dtype == torch.float64)
    return is_double, len(means), colors.shape[1], height, width, *tensors, tile_limits


def check_fields(means: Tensor, shapes: Tensor, colors: Tensor) -> None:
    """The kernels read as many values as these shapes say."""
    if means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the rasterizer works in float32 or float64, got {means.dtype}")
    tensors = (means, shapes, colors)
    expected = [(len(means), 2), (len(means), 3), (len(means), colors.shape[-1])]
    if [tuple(t.shape) for t in tensors] != expected or len({t.dtype for t in tensors}) > 1:
        kinds = ", ".join(f"{list(t.shape)} {t.dtype}" for t in tensors)
        raise ValueError(f"means [N, 2], cholesky [N, 3], colors [N, C] of one dtype, got {kinds}")


def _check_blocks(blocks, colors, height, width):
    """The kernels read and write as many values as the size of the picture says."""
    channels = colors.shape[1]
    expected = channels * -(-height // 4) * -(-width // 4) * 16
    if blocks.shape != (expected,) or blocks.dtype != colors.dtype or not blocks.is_contiguous():
        raise ValueError(
            f"{channels} channels of {height}x{width} pixels are [{expected}] {colors.dtype} in "
            f"blocks, got {list(blocks.shape)} {blocks.dtype}; see to_blocks"
        )


def to_blocks(image: Tensor) -> Tensor:
    """A picture [C, H, W] as the kernels hold it, flat: groups of 4 channels in blocks of 4x4."""
    channels, height, width = image.shape
    blocks = image.new_zeros(channels * -(-height // 4) * -(-width // 4) * 16)
    for theirs, ours in _same_pixels(blocks, image):
        theirs.copy_(ours)
    return blocks


def from_blocks(blocks: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `to_blocks`."""
    channels = blocks.numel() // (-(-height // 4) * -(-width // 4) * 16)
    image = blocks.new_empty(channels, height, width)
    for theirs, ours in _same_pixels(blocks, image):
        ours.copy_(theirs)
    return image


def _same_pixels(blocks: Tensor, image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of either, [C, rows, y, cols, x], that are copied without a third: of the blocks that
    are whole, and of those that stick out at the right, at the bottom and at the corner."""
    height, width = image.shape[1:]
    rows, cols = -(-height // 4), -(-width // 4)
    down = [(0, height // 4, 4), (height // 4, 1, height % 4)]  # block rows: first, count, pixels
    right = [(0, width // 4, 4), (width // 4, 1, width % 4)]
    sizes = [rows * cols * 16 * len(group) for group in image.split(GROUP)]
    for group, planes in zip(blocks.split(sizes), image.split(GROUP), strict=True):
        whole = group.view(rows, cols, len(planes), 4, 4).permute(2, 0, 3, 1, 4)
        for (top, num_rows, y), (left, num_cols, x) in itertools.product(down, right):
            if num_rows * num_cols * y * x:
                ours = planes.narrow(1, 4 * top, num_rows * y).narrow(2, 4 * left, num_cols * x)
                ours = ours.unflatten(2, (num_cols, x)).unflatten(1, (num_rows, y))
                theirs = whole.narrow(1, top, num_rows).narrow(3, left, num_cols)
                yield theirs[:, :, :y, :, :x], ours
