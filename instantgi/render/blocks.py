"""Random access: a mixture at a few points from the Gaussians of their blocks alone."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from instantgi.gaussians import Gaussians, check_size, kind_of
from instantgi.render.points import mixture_at
from instantgi.representations import Mixture

SHELL = 0.25  # of a block's sides, on every side
Box = tuple[float, float, float, float]  # x and y from, x and y to


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The picture cut in two again and again until no block holds more than so many means.

    Attributes:
        boxes: x and y from, x and y to, px; they cover the picture and share no pixel.
        members: of each block, indices of the Gaussians that a point in it ranks, increasing.
        axes, places: of each cut, across (0) or along (1), and where.
        sides: of each cut, what lies below and above: another cut, or ~i of block i.
    """

    mixture: Mixture
    boxes: Float[Tensor, "B 4"]
    members: list[Tensor]
    axes: Int64[Tensor, " K"]
    places: Float[Tensor, " K"]
    sides: Int64[Tensor, "K 2"]

    def at(self, points: Float[Tensor, "P 2"]) -> Float[Tensor, "P C"]:
        """The mixture at points of the picture, of each from its block.

        Raises:
            ValueError: if a point lies in no block.
        """
        if not isinstance(points, Tensor) or points.shape[1:] != (2,):
            raise ValueError(f"points must be [P, 2], got {kind_of(points)}")
        inside = ((points >= 0) & (points < self.boxes[:, 2:].amax(0))).all(1)
        if not inside.all():
            raise ValueError(
                f"points must lie in the picture, got {points[inside.logical_not()][0].tolist()}"
            )
        gaussians = self.mixture.gaussians
        options = {"top_k": self.mixture.top_k, "epsilon": self.mixture.epsilon}
        block, order = self.find(points).sort()
        indices, counts = block.unique_consecutive(return_counts=True)
        parts = points[order].split(counts.tolist())
        values = [gaussians.colors.new_empty(0, gaussians.colors.shape[1])]
        for index, part in zip(indices.tolist(), parts, strict=True):
            values.append(mixture_at(gaussians[self.members[index]], part, **options))
        return torch.cat(values)[order.argsort()]

    def find(self, points: Float[Tensor, "P 2"]) -> Int64[Tensor, " P"]:
        """The index of the block that each point of the picture lies in."""
        node = points.new_full((len(points),), 0 if len(self.axes) else ~0, dtype=torch.int64)
        while (node >= 0).any():
            cut = node.clamp_min(0)
            above = points.gather(1, self.axes[cut, None])[:, 0] >= self.places[cut]
            node = torch.where(node >= 0, self.sides[cut, above.long()], node)
        return ~node


def cut_into_blocks(
    mixture: Mixture, height: int, width: int, most: int, *, shell: float | None = None
) -> Blocks:
    """Blocks of equal numbers of means, cut at their median, across and along by turns as far as
    they differ.

    Args:
        height, width: of the picture, px.
        most: means of a block.
        shell: None lists every Gaussian that reaches into a block, so that `Blocks.at` is exact. A
            number lists those whose means are at most so many of the block's sides away from it
            (0.25 in Image-GS, 2024, section 3.4): fewer, but large ones are missing.

    Raises:
        ValueError: if this is no mixture, a number is out of range.
    """
    if not isinstance(mixture, Mixture):
        raise ValueError(
            f"blocks are of a Mixture, which fit_image makes with method imagegs, got "
            f"{kind_of(mixture)}"
        )
    check_size(height, width)
    if shell is not None and not shell >= 0:
        raise ValueError(f"shell must be at least 0, or None, got {shell}")
    if most < 1:
        raise ValueError(f"a block holds at least 1 mean, got most = {most}")
    gaussians = mixture.gaussians.detach()
    means = gaussians.means
    reach = extents(gaussians, mixture.epsilon) if shell is None else torch.zeros_like(means)
    everything = torch.arange(len(means), device=means.device)
    boxes, members = list[Box](), list[Tensor]()
    cuts, sides = list[tuple[int, float]](), list[list[int]]()
    waiting = [((0.0, 0.0, float(width), float(height)), everything, everything, 0, -1, 0)]
    while waiting:
        box, held, near, axis, parent, side = waiting.pop()
        near = near[_are_near(means[near], reach[near], box, shell or 0.0)]  # of those of the whole
        found = _cut(means[held], box, axis) if len(held) > most else None
        if parent >= 0:
            sides[parent][side] = ~len(boxes) if found is None else len(cuts)
        # equal places, or all of them outside: another cut would hold the same
        if found is None:
            boxes.append(box)
            members.append(near)
            continue
        axis, cut = found
        low = means[held, axis] < cut
        first, second = list(box), list(box)
        first[axis + 2] = second[axis] = cut
        waiting.append((_box(second), held[~low], near, 1 - axis, len(cuts), 1))
        waiting.append((_box(first), held[low], near, 1 - axis, len(cuts), 0))
        cuts.append(found)
        sides.append([0, 0])
    axes, places = [axis for axis, _ in cuts], [place for _, place in cuts]
    return Blocks(
        mixture,
        means.new_tensor(boxes),
        members,
        everything.new_tensor(axes),
        means.new_tensor(places),
        everything.new_tensor(sides).view(-1, 2),
    )


def _cut(means: Tensor, box: Box, axis: int) -> tuple[int, float] | None:
    """Along which axis, and where about half of the means are below, if some are and some not."""
    for along in (axis, 1 - axis):
        places = means[:, along]
        middle = places.median()
        for place in (middle.nextafter(middle.new_tensor(math.inf)), middle):
            cut, below = float(place), int((places < place).sum())
            if 0 < below < len(means) and box[along] < cut < box[along + 2]:
                return along, cut
    return None


def _box(sides: list[float]) -> Box:
    return sides[0], sides[1], sides[2], sides[3]


def _are_near(means: Tensor, reach: Tensor, box: Box, shell: float) -> Tensor:
    """Which reach into the box, grown by this share of its sides."""
    low, high = means.new_tensor(box[:2]), means.new_tensor(box[2:])
    grown = shell * (high - low)
    return ((means + reach >= low - grown) & (means - reach <= high + grown)).all(1)


def extents(gaussians: Gaussians, epsilon: float) -> Float[Tensor, "N 2"]:
    """How far from its mean, in x and y, a Gaussian counts in a mixture, with a little slack."""
    radius = math.sqrt(2 * math.log(255 / epsilon))
    cholesky = gaussians.cholesky
    sides = torch.stack([cholesky[:, 0].abs(), cholesky[:, 1:].norm(dim=1)], 1)
    return radius * sides * 1.001 + 0.01
