"""The rasterizer's operators on CUDA: what cuda/rasterize_sum_cuda.cu needs around it."""

import dataclasses

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from instantgi import native

GROUP = 4  # channels drawn in one pass, as in instantgi.render.ops
TILE_HEIGHT, TILE_WIDTH = 16, 32  # pixels; these are constants of the source
THREADS, CHUNK, CHUNKS_OF_A_GROUP, OF_A_BLOCK = 256, 128, 64, 64
SPLAT, BOX = 12, 4  # numbers of a record; a splat's ten are aligned to 16 bytes
WARP = 32


def order_by_place(means: Float[Tensor, "N 2"], height: int, width: int) -> Int64[Tensor, " N"]:
    """Indices along a Hilbert curve: neighbors in the order are neighbors in the picture.

    What is drawn does not depend on the order beyond rounding; how fast, does.
    """
    keys = torch.empty(len(means), dtype=torch.int16, device=means.device)
    arguments = (len(means), height, width, means, keys)
    blocks = -(-len(means) // THREADS)
    native.call_cuda("rasterize_sum", "place_keys", blocks, THREADS, *arguments, real=means.dtype)
    return keys.sort(stable=True).indices


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Gaussians as the kernels want them, in the order by place."""

    num: int
    channels: int
    height: int
    width: int
    order: Tensor
    splats: Tensor
    chunks: Tensor
    groups: Tensor
    colors: Tensor
    tile_limits: Tensor | None

    @property
    def scene(self) -> tuple:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def tiles(self) -> int:
        return -(-self.height // TILE_HEIGHT) * -(-self.width // TILE_WIDTH)

    def call(self, kernel: str, blocks: int, first: int, *arguments) -> None:
        """Launch for the channels from `first` on, as many as one pass draws."""
        name = f"{kernel}_{min(GROUP, self.channels - first)}"
        arguments = (*self.scene, first, *arguments)
        native.call_cuda("rasterize_sum", name, blocks, THREADS, *arguments, real=self.colors.dtype)


def _prepare(
    num: int,
    channels: int,
    height: int,
    width: int,
    means: Tensor,
    cholesky: Tensor,
    colors: Tensor,
    tile_limits: Tensor | None,
    order: Tensor | None,
) -> _Prepared:
    if order is None:
        order = order_by_place(means, height, width)
    num_chunks = -(-num // CHUNK)
    splats = means.new_empty(max(1, num), SPLAT)
    chunks, groups = (
        torch.empty(max(1, count), BOX, dtype=torch.float32, device=means.device)
        for count in (num_chunks, -(-num_chunks // CHUNKS_OF_A_GROUP))
    )
    bad = torch.full((), num, dtype=torch.int32, device=means.device)
    arguments = (num, channels, height, width, order, means, cholesky, colors, splats, chunks, bad)
    native.call_cuda(
        "rasterize_sum", "prepare_splats", num_chunks, CHUNK, *arguments, real=means.dtype
    )
    blocks = -(-len(groups) // WARP) if num else 0
    native.call_cuda(
        "rasterize_sum", "group_boxes", blocks, WARP, num_chunks, chunks, groups, real=means.dtype
    )
    _check_finite(bad, num)
    return _Prepared(
        num, channels, height, width, order, splats, chunks, groups, colors, tile_limits
    )


def _check_finite(bad: Tensor, num: int) -> None:
    """While a graph is captured nothing can be looked at: what is not finite is not drawn."""
    if bad.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if (first := int(bad)) < num:
        raise ValueError(f"rasterize_sum: Gaussian {first} has a parameter that is not finite")


def rasterize_sum(num, channels, height, width, means, cholesky, colors, tile_limits) -> Tensor:
    """The picture [C, H, W]."""
    scene = _prepare(num, channels, height, width, means, cholesky, colors, tile_limits, None)
    image = colors.new_empty(channels, height, width)
    for first in range(0, channels, GROUP):
        scene.call("draw_picture", scene.tiles, first, image)
    return image


def rasterize_error(
    num, channels, height, width, means, cholesky, colors, target, clamp: bool, order
) -> tuple[Tensor, Tensor]:
    """See the operator."""
    scene = _prepare(num, channels, height, width, means, cholesky, colors, None, order)
    residual = torch.empty_like(target)
    passes = range(0, channels, GROUP)
    squares = torch.empty(len(passes), scene.tiles, dtype=torch.float64, device=colors.device)
    for i, first in enumerate(passes):
        scene.call("draw_error", scene.tiles, first, target, int(clamp), residual, squares[i])
    return residual, squares.sum()


def rasterize_error_backward(
    num,
    channels,
    height,
    width,
    means,
    cholesky,
    colors,
    tile_limits,
    residual,
    scale: float,
    coordinates: int,
    order,
) -> tuple[Tensor, Tensor]:
    """See the operator. Coordinates of 0 ask for the colors alone."""
    scene = _prepare(num, channels, height, width, means, cholesky, colors, tile_limits, order)
    geometry = colors.new_empty(num if coordinates else 0, 5)
    grad_colors, blocks = torch.empty_like(colors), -(-num // OF_A_BLOCK)
    if coordinates and channels == 0:
        geometry.zero_()
    for first in range(0, channels, GROUP):
        if coordinates:
            arguments = (cholesky, residual, scale, coordinates, geometry, grad_colors)
            scene.call("backward", blocks, first, *arguments)
        else:
            scene.call("backward_colors", blocks, first, residual, scale, grad_colors)
    return geometry, grad_colors
