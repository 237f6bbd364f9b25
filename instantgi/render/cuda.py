"""The rasterizer's operators on CUDA: what cuda/rasterize_*_cuda.cu need around them."""

import dataclasses
import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from instantgi import native

GROUP = 4  # channels drawn in one pass, as in instantgi.render.ops
TILE_HEIGHT, TILE_WIDTH = 16, 32  # pixels; these are constants of the source
THREADS, CHUNK, OF_A_GROUP, OF_A_BLOCK = 256, 128, 64, 64
SPLAT, BOX = 12, 4  # numbers of a record; a splat's ten are aligned to 16 bytes
WARP = 32
SLOTS = (4, 10, 16, 32)  # terms of a mixture at a pixel, at most, for which there are kernels
SUM_CUTOFF = math.log2(255)  # the exponent s at which a weight 2^−s is 1/255


def order_by_place(means: Float[Tensor, "N 2"], height: int, width: int) -> Int64[Tensor, " N"]:
    """Indices along a Hilbert curve: neighbors in the order are neighbors in the picture.

    What is drawn does not depend on the order beyond rounding; how fast, does.
    """
    keys = torch.empty(len(means), dtype=torch.int16, device=means.device)
    arguments = (len(means), height, width, means, keys)
    blocks = -(-len(means) // THREADS)
    native.call_cuda("prepare_splats", "place_keys", blocks, THREADS, *arguments, real=means.dtype)
    return keys.sort(stable=True).indices


def order_in_cells(places: Float[Tensor, "N 2"], of_cell: int) -> Int64[Tensor, " N"]:
    """Indices such that each so many that follow one another are neighbors in the plane.

    Bands of equal numbers by y, each sorted by x: however places are spread, where a curve through
    squares needs to know a picture.
    """
    num, places = len(places), places.detach().nan_to_num()
    of_band = of_cell * max(1, math.ceil(math.sqrt(num / of_cell)))
    bands = -(-num // of_band)
    by_y = places[:, 1].argsort(stable=True)
    x = torch.nn.functional.pad(places[by_y, 0], (0, bands * of_band - num), value=math.inf)
    within = x.view(bands, of_band).argsort(dim=1, stable=True)  # padding last
    begin = torch.arange(bands, device=places.device)[:, None] * of_band
    return by_y[(within + begin).flatten()[:num]]


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Gaussians as the kernels want them, in the order by place."""

    op: str  # cuda/<op>_cuda.cu draws them
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
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self)[1:])

    @property
    def tiles(self) -> int:
        return -(-self.height // TILE_HEIGHT) * -(-self.width // TILE_WIDTH)

    def call(self, kernel: str, blocks: int, first: int, *arguments) -> None:
        """Launch for the channels from `first` on, as many as one pass draws."""
        self.launch(f"{kernel}_{min(GROUP, self.channels - first)}", blocks, first, *arguments)

    def launch(self, kernel: str, blocks: int, first: int, *arguments) -> None:
        arguments = (*self.scene, first, *arguments)
        native.call_cuda(self.op, kernel, blocks, THREADS, *arguments, real=self.colors.dtype)


# num, channels, height, width, means, cholesky, colors, tile_limits
Scene = tuple[int, int, int, int, Tensor, Tensor, Tensor, Tensor | None]


def _prepare(op: str, scene: Scene, cutoff: float, order: Tensor | None) -> _Prepared:
    """For weights 2^−s with s ≤ cutoff."""
    num, channels, height, width, means, cholesky, colors, tile_limits = scene
    if order is None:
        order = order_by_place(means, height, width)
    num_chunks = -(-num // CHUNK)
    splats = means.new_empty(max(1, num), SPLAT)
    chunks = means.new_empty(max(1, num_chunks), BOX, dtype=torch.float32)
    bad = torch.full((), num, dtype=torch.int32, device=means.device)
    fields = (order, means, cholesky, colors)
    arguments = (num, channels, height, width, *fields, cutoff, splats, chunks, bad)
    native.call_cuda(
        "prepare_splats", "prepare_splats", num_chunks, CHUNK, *arguments, real=means.dtype
    )
    groups = _group_boxes(chunks, num_chunks, means.dtype)
    _check_finite(op, bad, num)
    return _Prepared(
        op, num, channels, height, width, order, splats, chunks, groups, colors, tile_limits
    )


def _group_boxes(boxes: Tensor, num: int, real: torch.dtype) -> Tensor:
    groups = boxes.new_empty(max(1, -(-num // OF_A_GROUP)), BOX)
    blocks = -(-len(groups) // WARP) if num else 0
    native.call_cuda("prepare_splats", "group_boxes", blocks, WARP, num, boxes, groups, real=real)
    return groups


def _check_finite(op: str, bad: Tensor, num: int) -> None:
    """While a graph is captured nothing can be looked at: what is not finite is not drawn."""
    if bad.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if (first := int(bad)) < num:
        raise ValueError(f"{op}: Gaussian {first} has a parameter that is not finite")


def rasterize_sum(scene: Scene) -> Tensor:
    """The picture [C, H, W]."""
    prepared = _prepare("rasterize_sum", scene, SUM_CUTOFF, None)
    image = prepared.colors.new_empty(scene[1:4])
    for first in range(0, prepared.channels, GROUP):
        prepared.call("draw_picture", prepared.tiles, first, image)
    return image


def rasterize_error(
    scene: Scene, target: Tensor, clamp: bool, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See the operator."""
    prepared = _prepare("rasterize_sum", scene, SUM_CUTOFF, order)
    residual, passes = torch.empty_like(target), range(0, prepared.channels, GROUP)
    size = len(passes), prepared.tiles
    squares = torch.empty(size, dtype=torch.float64, device=target.device)
    for i, first in enumerate(passes):
        arguments = (target, int(clamp), residual, squares[i])
        prepared.call("draw_error", prepared.tiles, first, *arguments)
    return residual, squares.sum()


def rasterize_error_backward(
    scene: Scene, residual: Tensor, scale: float, coordinates: int, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See the operator. Coordinates of 0 ask for the colors alone."""
    prepared, cholesky = _prepare("rasterize_sum", scene, SUM_CUTOFF, order), scene[5]
    num, blocks = prepared.num, -(-prepared.num // OF_A_BLOCK)
    geometry = cholesky.new_zeros(num if coordinates else 0, 5)
    grad_colors = torch.empty_like(prepared.colors)
    for first in range(0, prepared.channels, GROUP):
        if coordinates:
            arguments = (cholesky, residual, scale, coordinates, geometry, grad_colors)
            prepared.call("backward", blocks, first, *arguments)
        else:
            prepared.call("backward_colors", blocks, first, residual, scale, grad_colors)
    return geometry, grad_colors


def rasterize_mixture(
    scene: Scene, cutoff: float, top_k: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See the operator."""
    prepared = _prepare("rasterize_mixture", scene, cutoff, None)
    image = prepared.colors.new_empty(scene[1:4])
    limits, totals = (image.new_empty(-(-scene[2] // 4) * -(-scene[3] // 4) * 16) for _ in range(2))
    prepared.launch(_find_limits(top_k), prepared.tiles, 0, top_k, cutoff, limits)
    for first in range(0, prepared.channels, GROUP):
        prepared.call("draw_mixture", prepared.tiles, first, epsilon, limits, image, totals)
    return image, limits, totals


def _find_limits(top_k: int) -> str:
    return f"find_limits_{next(slots for slots in SLOTS if top_k <= slots)}"


def rasterize_mixture_backward(
    scene: Scene, cutoff: float, shares: Tensor, limits: Tensor, common: Tensor
) -> tuple[Tensor, Tensor]:
    """From the gradient of the picture over its totals, and the sum over channels of that times the
    picture, both in blocks: gradients of geometry [N, 5], means before shapes, and colors.
    """
    prepared, cholesky = _prepare("rasterize_mixture", scene, cutoff, None), scene[5]
    geometry, grad_colors = cholesky.new_zeros(prepared.num, 5), torch.empty_like(prepared.colors)
    arguments = (cholesky, shares, limits, common, geometry, grad_colors)
    for first in range(0, prepared.channels, GROUP):
        prepared.call("backward", -(-prepared.num // OF_A_BLOCK), first, *arguments)
    return geometry, grad_colors


# num, places and order of points, in cells, and the boxes of cells and groups of them
_Cells = tuple[int, Tensor, Tensor, Tensor, Tensor]


def _cells(points: Tensor) -> _Cells:
    order, num = order_in_cells(points, WARP), len(points)
    places, num_cells = points[order].contiguous(), -(-num // WARP)
    cells = places.new_empty(max(1, num_cells), BOX, dtype=torch.float32)
    blocks = -(-num // THREADS)
    arguments = (num, places, cells)
    native.call_cuda(
        "rasterize_points", "cell_boxes", blocks, THREADS, *arguments, real=points.dtype
    )
    return num, places, order, cells, _group_boxes(cells, num_cells, points.dtype)


def _prepare_anywhere(scene: Scene, cutoff: float) -> _Prepared:
    """The scene of a picture of 0x0 pixels, whose Gaussians may be anywhere."""
    return _prepare("rasterize_points", scene, cutoff, order_in_cells(scene[4], CHUNK))


def rasterize_points(
    scene: Scene, cutoff: float, points: Tensor, top_k: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See the operator; a top_k of 0 is the sum."""
    prepared, cells = _prepare_anywhere(scene, cutoff), _cells(points)
    blocks = -(-len(points) // THREADS)
    values = points.new_empty(len(points), prepared.channels)
    limits, totals = points.new_full((len(points),), cutoff), points.new_empty(len(points))
    if top_k:
        prepared.launch(_find_limits(top_k), blocks, 0, *cells, top_k, cutoff, limits)
    for first in range(0, prepared.channels, GROUP):
        arguments = (*cells, int(top_k > 0), epsilon, limits, values, totals)
        prepared.call("draw_points", blocks, first, *arguments)
    return values, limits, totals


def rasterize_points_backward(
    scene: Scene,
    cutoff: float,
    points: Tensor,
    shares: Tensor,
    limits: Tensor,
    common: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As of a mixture, but not in blocks; of a sum nothing is common."""
    prepared, cells, cholesky = _prepare_anywhere(scene, cutoff), _cells(points), scene[5]
    geometry, grad_colors = cholesky.new_zeros(prepared.num, 5), torch.empty_like(prepared.colors)
    order = cells[2]
    sorted_ones = (
        shares[order].contiguous(),
        limits[order],
        None if common is None else common[order],
    )
    arguments = (*cells, cholesky, *sorted_ones, geometry, grad_colors)
    for first in range(0, prepared.channels, GROUP):
        prepared.call("backward", -(-prepared.num // OF_A_BLOCK), first, *arguments)
    return geometry, grad_colors
