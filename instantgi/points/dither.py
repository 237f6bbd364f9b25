"""A position map becomes points: pooled to cells, scaled to a count, dithered, framed by a border.

Points are float32 pixels (x, y) and always multiples of 0.5, hence an integer lattice at doubled
coordinates: what follows (`triangulate`) is exact.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from instantgi import native

MAX_COORDINATE = (
    2**20
)  # pixels; doubled coordinates then stay exact in float32 and in `triangulate`


def pool(position_map: Float[Tensor, "H W"], k: int) -> Float[Tensor, "h w"]:
    """The largest value of every k by k cell, [ceil(H / k), ceil(W / k)].

    Cells that stick out at the right or bottom take the values they have: for a maximum that is the
    same as the published replicate padding. k = 1 gives the map itself.

    Raises:
        ValueError: if k is not positive or the map is empty.
    """
    height, width = position_map.shape
    if k < 1:
        raise ValueError(f"k must be a positive number of pixels, got {k}")
    if height == 0 or width == 0:
        raise ValueError(f"position_map must have at least one pixel, got [{height}, {width}]")
    if k == 1:
        return position_map
    sides = (k, height % k)  # of the cells that are whole, and of those at the bottom
    parts = zip(position_map.split([height - sides[1], sides[1]]), sides, strict=True)
    # whole rows first: this part is contiguous
    rows = torch.cat([part.unflatten(0, (-1, side)).amax(1) for part, side in parts if len(part)])
    padded = torch.nn.functional.pad(rows[None], (0, -width % k), mode="replicate")[0]
    return padded.unflatten(1, (-1, k)).amax(2)


def dither_map(cells: Float[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """True where Floyd–Steinberg error diffusion of the cells puts a point.

    In reading order: n = 0 if o < 0.5 else 1, where o is the cell's value and the errors it
    received; its error o - n goes to the right, down left, down, and down right with weights
    7/16, 3/16, 5/16, 1/16; in the first column 7/13, 0, 5/13, 1/13; in the last 0, 3/8, 5/8, 0;
    in the last row all of it goes to the right, and the very last cell drops it (Instant-GI, 2025,
    released kernel). Not published: a map one cell wide passes all of it down. Error is conserved,
    so the number of points is the sum of the cells to within about one.

    Arithmetic is float32 in a fixed order, so the points are the same on every machine.

    Args:
        cells: values in [0, 1].

    Raises:
        ValueError: if a value is outside [0, 1] or not a number.
    """
    _check_map("cells", cells)
    return torch.ops.instantgi.dither_map(cells.detach().float().contiguous())


def dither_map_reference(cells: Float[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """The definition of `dither_map`: a plain loop that sends errors ahead."""
    height, width = cells.shape
    values = cells.detach().float().cpu().numpy().copy()
    points = np.zeros((height, width), dtype=bool)
    for i in range(height):
        for j in range(width):
            points[i, j] = values[i, j] >= np.float32(0.5)
            error = values[i, j] - np.float32(points[i, j])
            for di, dj, numerator, denominator in _shares(i, j, height, width):
                weight = np.float32(numerator) / np.float32(denominator)
                values[i + di, j + dj] += error * weight
    return torch.from_numpy(points).to(cells.device)


def _shares(i: int, j: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(rows down, columns right, numerator, denominator) of every cell that receives an error."""
    first, last = j == 0, j == width - 1
    if i == height - 1:
        return [] if last else [(0, 1, 1, 1)]
    if first and last:
        return [(1, 0, 1, 1)]
    if first:
        return [(0, 1, 7, 13), (1, 0, 5, 13), (1, 1, 1, 13)]
    if last:
        return [(1, -1, 3, 8), (1, 0, 5, 8)]
    return [(0, 1, 7, 16), (1, -1, 3, 16), (1, 0, 5, 16), (1, 1, 1, 16)]


# define and impl, because the first call of a `custom_op` imports the compiler: 1.4 s
torch.library.define("instantgi::dither_map", "(Tensor cells) -> Tensor")


@torch.library.impl("instantgi::dither_map", "cpu")
def _(cells: Tensor) -> Tensor:
    points = torch.empty(cells.shape, dtype=torch.bool)
    native.call_cpu("dither_map", cells.contiguous(), points, *cells.shape)
    return points


def dither_map_cuda(cells: Tensor) -> Tensor:
    height, width = cells.shape
    points = torch.empty(cells.shape, dtype=torch.bool, device=cells.device)
    carry = cells.new_empty(max(1, width))
    blocks, threads = int(cells.numel() > 0), min(1024, -(-height // 32) * 32)  # a row each
    arguments = (cells.contiguous(), points, carry, height, width)
    native.call_cuda("dither", "dither_map", blocks, threads, *arguments)
    return points


torch.library.impl("instantgi::dither_map", "cuda", dither_map_cuda)


@torch.library.register_fake("instantgi::dither_map")
def _(cells: Tensor) -> Tensor:
    return torch.empty(cells.shape, dtype=torch.bool, device=cells.device)


def scale_map(position_map: Float[Tensor, "H W"], num_points: int, k: int) -> Float[Tensor, "H W"]:
    """min(1, s P) with the s for which `dither` gives num_points points (to within about one).

    Solves Σ min(1, s Q) = num_points over the cells Q of `dither`. The left side is concave and
    piecewise linear in s, so Newton's steps approach the solution from below and end on it: with
    the cells that were full at the last s counted as 1, s = (num_points - full) / Σ (other cells).

    Args:
        position_map: finite values ≥ 0, of any size.
        num_points: at least 0.
        k: the cell size that `dither` will be called with.

    Raises:
        ValueError: if fewer than num_points cells are positive: k is too large, or the map is zero
            over too much of the picture (add a floor to it), or it holds invalid values.
    """
    cells = kept_cells(position_map, k, largest=float("inf"))
    return (position_map * _find_scale(cells, num_points, k)).clamp(max=1)


def _find_scale(cells: Tensor, num_points: int, k: int) -> float:
    """The s of `scale_map`."""
    if num_points < 0:
        raise ValueError(f"num_points must not be negative, got {num_points}")
    cells = cells.double()
    available = int((cells > 0).sum())
    if num_points > available:
        raise ValueError(
            f"num_points must be at most {available}, the number of {k}x{k} cells (of "
            f"{cells.numel()}) where position_map is positive, got {num_points}; "
            "use a smaller k or add a floor to the map"
        )
    full, scale = -1, 0.0
    while (now_full := int((full_cells := scale * cells >= 1).sum())) > full:
        full, rest = now_full, float(cells.masked_fill(full_cells, 0).sum())
        if rest > 0:
            scale = max(scale, (num_points - full) / rest)
    return scale


def dither(position_map: Float[Tensor, "H W"], k: int) -> Float[Tensor, "P 2"]:
    """Points [P, 2] in pixels, dense where the map is high: the cells that dithering fills.

    Cell (row a, column b) covers [b k, (b + 1) k] × [a k, (a + 1) k] and its point lies at its
    center, so no two points are closer than k. Points are in reading order. As in Instant-GI, 2025,
    but cells whose center is not inside the picture are dropped before dithering instead of after
    it, so that the number of points is the sum of the cells that stay.

    Args:
        position_map: expected points per cell, in [0, 1]; a cell takes the maximum of its pixels.
        k: side of a cell in pixels.

    Raises:
        ValueError: if k is not positive or a value is outside [0, 1] or not a number.
    """
    return _place(kept_cells(position_map.detach(), k), k)


def dither_cells(cells: Float[Tensor, "h w"], num_points: int, k: int) -> Float[Tensor, "P 2"]:
    """`dither(scale_map(P, num_points, k), k)` from `kept_cells(P, k)`, a ninth of P at k = 3.

    They are the same points: the largest of scaled values is the largest value, scaled.
    """
    return _place((cells * _find_scale(cells, num_points, k)).clamp(max=1), k)


def _place(cells: Tensor, k: int) -> Tensor:
    """Points at the centers of the cells that dithering fills."""
    a, b = dither_map(cells).nonzero().unbind(-1)
    return torch.stack([b, a], dim=-1).float() * k + k / 2


def kept_cells(
    position_map: Float[Tensor, "H W"], k: int, largest: float = 1.0
) -> Float[Tensor, "h w"]:
    """The pooled cells whose center lies strictly inside the picture.

    Raises:
        ValueError: if k is not positive or a value is outside [0, largest], infinite or NaN.
    """
    _check_map("position_map", position_map, largest)
    pooled = pool(position_map, k)
    height, width = position_map.shape
    # (a + 1/2) k < height  ⟺  a < (2 height - k) / 2k
    rows, columns = (max(0, -((k - 2 * side) // (2 * k))) for side in (height, width))
    return pooled[:rows, :columns]


def _check_map(name: str, values: Tensor, upper: float = 1.0) -> None:
    if values.numel() == 0:
        return
    low, high = (float(value) for value in torch.aminmax(values))
    # written so that NaN fails
    if not (low >= 0 and high <= upper and high < float("inf")):
        expected = "finite and not negative" if upper > 1 else "in [0, 1]"
        raise ValueError(f"{name} must be {expected}, got values from {low:g} to {high:g}")


def add_border_points(
    points: Float[Tensor, "P 2"], height: int, width: int
) -> Float[Tensor, "Q 2"]:
    """The points and then new ones on the picture's border, so that their hull is [0, W] × [0, H].

    The four corners, and along each edge points whose spacing follows the points nearby: at place t
    of an edge it is 1.5 h(t) pixels, where h(t) = min_p (|t - t_p| + d_p) is the distance to the
    closest point p, as a sum of its parts along and across the edge; at least 2/3 and at most the
    distance to the opposite edge. Triangles at the border are then about as high as wide.
    Instant-GI (2025) spaces them by thrice the mean distance of all points, which dense regions
    dominate, and leaves half a pixel outside at the right and bottom.

    Args:
        points: pixels, multiples of 0.5 inside [0, W] × [0, H]. P = 0 gives a border alone.
        height, width: size of the picture in pixels.

    Returns:
        All of `points` first, in their order; then the new ones, multiples of 0.5, none of them
        twice and none that was there already.

    Raises:
        ValueError: if the size is not positive or a point is outside or off the lattice.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, got {height} and {width}")
    lattice = doubled(points)  # [P, 2]
    inside = (lattice >= 0) & (lattice <= 2 * lattice.new_tensor([width, height]))
    if not bool(inside.all()):
        raise ValueError(f"points must be inside [0, {width}] x [0, {height}]")
    x, y = lattice.unbind(-1)
    edges = []
    for far in (0, 2 * height):
        along = _edge_places(x, (y - far).abs(), 2 * width, 2 * height)
        edges.append(torch.stack([along, torch.full_like(along, far)], dim=-1))
    for far in (0, 2 * width):
        along = _edge_places(y, (x - far).abs(), 2 * height, 2 * width)[1:-1]  # corners are there
        edges.append(torch.stack([torch.full_like(along, far), along], dim=-1))
    border = torch.cat(edges)  # [B, 2]
    key = lattice.new_tensor([2 * height + 1, 1])
    border = border[~torch.isin((border * key).sum(-1), (lattice * key).sum(-1))]
    return torch.cat([points, border.to(points) / 2])


def _edge_places(along: Tensor, across: Tensor, length: int, opposite: int) -> Tensor:
    """Places on one edge, 0 and `length` included; all in half pixels.

    The number of intervals is the integral of 1 / spacing, and each holds the same part of it.
    """
    distance = torch.full((length + 1,), opposite, device=along.device)
    distance.scatter_reduce_(0, along, across, "amin")
    # min over |t - u| + distance[u] is a running minimum from either side
    t = torch.arange(length + 1, device=along.device)
    left = (distance - t).cummin(0).values + t
    right = (distance + t).flip(0).cummin(0).values.flip(0) - t
    spacing = (1.5 * torch.minimum(left, right).double()).clamp(min=2)
    middles = (1 / spacing[:-1] + 1 / spacing[1:]) / 2  # trapezoids
    # on the CPU: a GPU adds in an order of its own, and points must be the same everywhere
    sums = middles.cpu().cumsum(0).to(middles.device)
    integral = torch.cat([middles.new_zeros(1), sums])
    count = max(1, round(float(integral[-1])))
    wanted = torch.arange(count + 1, device=along.device) * (integral[-1] / count)
    places = torch.searchsorted(integral, wanted.contiguous()).clamp(max=length)
    places[0], places[-1] = 0, length
    return places.unique()


def doubled(points: Float[Tensor, "P 2"]) -> Int[Tensor, "P 2"]:
    """The points in half pixels, as integers.

    Raises:
        ValueError: unless all are multiples of 0.5 with |coordinate| ≤ 2**20.
    """
    twice = points.detach() * 2
    valid = (twice == twice.round()) & (twice.abs() <= 2 * MAX_COORDINATE)
    if not bool(valid.all()):
        x, y = points[int((~valid).any(-1).nonzero()[0])].tolist()
        raise ValueError(
            f"points must be multiples of 0.5 pixels up to {MAX_COORDINATE}, got ({x:g}, {y:g})"
        )
    return twice.long()
