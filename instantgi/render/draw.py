"""The picture of whatever a fit made."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import RADIUS, Gaussians
from instantgi.render.mixture import rasterize_mixture, seen_from
from instantgi.render.points import mixture_at, sum_at
from instantgi.render.published import published_sum
from instantgi.render.splats import draw_splats
from instantgi.render.sum import rasterize
from instantgi.representations import (
    Level,
    Levels,
    Mixture,
    Representation,
    Seeds,
    Splats,
    check_kind,
    flat,
)


def draw(
    made: Representation,
    height: int,
    width: int,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    step: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, "C {height} {width}"]:
    """The picture, not clamped: of Gaussians their sum, of others as they say.

    Args:
        height, width, origin, step: as in `rasterize`.
    """
    if isinstance(made, Gaussians | Seeds):
        return rasterize(flat(made), height, width, origin=origin, step=step)
    if isinstance(made, Mixture):
        options = {"top_k": made.top_k, "epsilon": made.epsilon}
        return rasterize_mixture(made.gaussians, height, width, origin=origin, step=step, **options)
    if isinstance(made, Splats):
        if (*origin, *step, height, width) != (0, 0, 1, 1, made.height, made.width):
            size = f"{made.width}x{made.height}"
            raise ValueError(f"splats in space are drawn at their own size only, {size}")
        return draw_splats(made)
    return _draw_levels(made.levels, height, width, origin, step)


def _draw_levels(
    levels: tuple[Level, ...],
    height: int,
    width: int,
    origin: tuple[float, float],
    step: tuple[float, float],
) -> Tensor:
    *coarser, level = levels
    picture = _draw_level(level, height, width, origin, step)
    if coarser:
        grid = (level.height, level.width)
        picture += up_sample(tuple(coarser), grid, height, width, origin, step)
    return picture


def _draw_level(level: Level, height: int, width: int, origin, step) -> Tensor:
    gaussians = level.gaussians
    if level.is_published:
        if tuple(step) != (1.0, 1.0) or tuple(origin) != (0.0, 0.0):  # its tiles begin at 0
            raise ValueError("what is published is drawn whole and at its own size only")
        fields = gaussians.means, gaussians.cholesky, gaussians.colors
        drawn = published_sum(*fields, height, width)
    else:
        drawn = rasterize(seen_from(gaussians, origin, step), height, width)
    return drawn.clamp_(0, 1).mul_(level.high - level.low).add_(level.low)


def up_sample(
    coarser: tuple[Level, ...],
    grid: tuple[int, int],
    height: int,
    width: int,
    origin: tuple[float, float] = (0.0, 0.0),
    step: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, "C {height} {width}"]:
    """The picture of levels that lie below a grid, at places given in its pixels, bilinearly."""
    below = coarser[-1]
    columns, left, right = _neighbors(width, origin[0], step[0], below.width, grid[1])
    rows, top, bottom = _neighbors(height, origin[1], step[1], below.height, grid[0])
    size = bottom - top, right - left
    drawn = _draw_levels(coarser, *size, (float(left), float(top)), (1.0, 1.0))
    return _between(_between(drawn, columns, 2), rows, 1)


def pixels(made: Representation, points: Float[Tensor, "P 2"]) -> Float[Tensor, "P C"]:
    """The picture at any points, without drawing it; at pixel centers what `draw` gives.

    Args:
        points: (x, y) in pixels of the picture, in any order; the center of pixel (row i, column
            j) is (j + 0.5, i + 0.5).

    Returns:
        Differentiable in the parameters of Gaussians and mixtures.
    """
    check_kind(made)
    if isinstance(made, Gaussians | Seeds):
        return sum_at(flat(made), points)
    if isinstance(made, Mixture):
        return mixture_at(made.gaussians, points, top_k=made.top_k, epsilon=made.epsilon)
    if isinstance(made, Splats):
        raise ValueError("splats in space are drawn as whole pictures only")
    return _level_pixels(made.levels, points)


def _level_pixels(levels: tuple[Level, ...], points: Tensor) -> Tensor:
    *coarser, level = levels
    if level.is_published:
        raise ValueError("what is published is drawn as a whole only")
    values = sum_at(level.gaussians, points).clamp(0, 1)
    values = values * (level.high - level.low) + level.low
    if not coarser:
        return values
    below = coarser[-1]
    size = points.new_tensor([below.width, below.height])
    scale = size / points.new_tensor([level.width, level.height])
    places = (points * scale - 0.5).clamp_min(0).minimum(size - 1)
    first = places.floor()
    share = places - first
    steps = points.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    corners = (first + steps[:, None]).minimum(size - 1)  # [4, P, 2]
    # pixels that several points share are drawn once
    needed, which = corners.reshape(-1, 2).unique(dim=0, return_inverse=True)
    drawn = _level_pixels(tuple(coarser), needed + 0.5)[which].view(4, len(points), -1)
    weights = (steps[:, None] * share + (1 - steps[:, None]) * (1 - share)).prod(-1)  # [4, P]
    return values + (weights[:, :, None] * drawn).sum(0)


def interpolate(
    picture: Float[Tensor, "C h w"],
    size: tuple[int, int],
    height: int,
    width: int,
    origin: tuple[float, float] = (0.0, 0.0),
) -> Float[Tensor, "C {height} {width}"]:
    """A part of a picture that is enlarged to a size bilinearly, with this upper left corner."""
    columns, left, right = _neighbors(width, origin[0], 1.0, picture.shape[2], size[1])
    rows, top, bottom = _neighbors(height, origin[1], 1.0, picture.shape[1], size[0])
    return _between(_between(picture[:, top:bottom, left:right], columns, 2), rows, 1)


def _neighbors(
    count: int, origin: float, step: float, coarse: int, fine: int
) -> tuple[tuple[Tensor, Tensor], int, int]:
    """Where `count` places lie between centers of coarse pixels, and which of these are needed."""
    places = (origin + (torch.arange(count, dtype=torch.float64) + 0.5) * step) * (coarse / fine)
    places = (places - 0.5).clamp(0, coarse - 1)
    first = places.floor().long().clamp_max(max(0, coarse - 2))
    begin, end = int(first.min()), min(coarse, int(first.max()) + 2)
    return (first - begin, places - first), begin, end


def _between(picture: Tensor, neighbors: tuple[Tensor, Tensor], dim: int) -> Tensor:
    first, share = (each.to(picture.device) for each in neighbors)
    share = share.to(picture.dtype).reshape([-1] + [1] * (2 - dim))
    before = picture.index_select(dim, first)
    after = picture.index_select(dim, (first + 1).clamp_max(picture.shape[dim] - 1))
    return before.lerp_(after, share)


MAX_SAMPLES = 150_000_000  # of a picture whose pixels are means of several
MAX_PAIRS = 2e11  # of a Gaussian and a pixel that it may reach: minutes


def draw_part(
    made: Representation, part: tuple[int, int, int, int], height: int, width: int
) -> Float[Tensor, "C {height} {width}"]:
    """A part (x, y, width, height) of the picture, in pixels, drawn at another size.

    Where that is smaller, a pixel is the mean of several samples: one would miss what lies between.

    Raises:
        ValueError: if the samples would be more than 150 million, or what they take minutes.
    """
    made = made.flat() if isinstance(made, Seeds) else made
    left, top, part_width, part_height = part
    samples = [
        max(1, math.ceil(whole / drawn))
        for whole, drawn in ((part_width, width), (part_height, height))
    ]
    fine_width, fine_height = width * samples[0], height * samples[1]
    num_levels = len(made.levels) if isinstance(made, Levels) else 1
    if fine_width * fine_height * num_levels > MAX_SAMPLES:
        raise ValueError(
            f"{width}x{height} pixels would take {fine_width * fine_height} samples, more than "
            f"{MAX_SAMPLES}; choose a smaller size or part"
        )
    scale = (fine_width / part_width, fine_height / part_height)
    moved = flat(made).translated(-left, -top).scaled(*scale)
    radius = math.sqrt(2 * math.log(255 / made.epsilon)) if isinstance(made, Mixture) else RADIUS
    pairs = _count_pairs(moved, fine_height, fine_width, radius)
    if pairs > MAX_PAIRS:
        raise ValueError(
            f"{width}x{height} pixels would take {pairs:.1e} Gaussians at pixels, more than "
            f"{MAX_PAIRS:.0e}; choose a smaller size or part"
        )
    picture = draw(
        made,
        fine_height,
        fine_width,
        origin=(left, top),
        step=(part_width / fine_width, part_height / fine_height),
    )
    if samples == [1, 1]:
        return picture
    return torch.nn.functional.avg_pool2d(picture[None], (samples[1], samples[0]))[0]


def _count_pairs(gaussians: Gaussians, height: int, width: int, radius: float) -> float:
    """Pixels in the boxes around the ellipses, those of all Gaussians together."""
    means, cholesky = gaussians.means.detach().double(), gaussians.cholesky.detach().double()
    reach = radius * torch.stack([cholesky[:, 0].abs(), cholesky[:, 1:].norm(dim=1)], 1)
    size = means.new_tensor([width, height])
    zero = torch.zeros_like(size)
    sides = (means + reach).minimum(size).maximum(zero) - (means - reach).maximum(zero).minimum(
        size
    )
    return float(sides.prod(1).sum())
