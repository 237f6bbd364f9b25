"""Random access: a mixture at a few points from the Gaussians of their blocks alone."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians, check_size, kind_of
from instantgi.render.points import mixture_at
from instantgi.representations import Mixture

SHELL = 0.25  # of a block's sides, on every side


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The picture cut in two again and again until no block holds more than so many means.

    Attributes:
        boxes: x and y from, x and y to, px; they cover the picture and share no pixel.
        members: of each block, indices of the Gaussians that a point in it ranks, increasing.
    """

    mixture: Mixture
    boxes: Float[Tensor, "B 4"]
    members: list[Tensor]

    def at(self, points: Float[Tensor, "P 2"]) -> Float[Tensor, "P C"]:
        """The mixture at points of the picture, of each from its block.

        Raises:
            ValueError: if a point lies in no block.
        """
        if not isinstance(points, Tensor) or points.shape[1:] != (2,):
            raise ValueError(f"points must be [P, 2], got {kind_of(points)}")
        inside = (points[:, None] >= self.boxes[:, :2]) & (points[:, None] < self.boxes[:, 2:])
        inside = inside.all(-1)  # [P, B]
        if not inside.any(1).all():
            outside = int((~inside.any(1)).nonzero()[0, 0])
            raise ValueError(f"points must lie in the picture, got {points[outside].tolist()}")
        gaussians, block = self.mixture.gaussians, inside.int().argmax(1)
        values = points.new_empty(len(points), gaussians.colors.shape[1])
        options = {"top_k": self.mixture.top_k, "epsilon": self.mixture.epsilon}
        order = block.argsort(stable=True)
        found, counts = block[order].unique_consecutive(return_counts=True)
        for index, chosen in zip(found.tolist(), order.split(counts.tolist()), strict=True):
            ranked = gaussians[self.members[index]]
            values[chosen] = mixture_at(ranked, points[chosen], **options)
        return values


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
    means = mixture.gaussians.means.detach()
    everything = torch.arange(len(means), device=means.device)
    leaves: list[tuple[float, float, float, float]] = []
    waiting = [((0.0, 0.0, float(width), float(height)), everything, 0)]
    while waiting:
        box, held, axis = waiting.pop()
        if len(held) <= most:
            leaves.append(box)
            continue
        found = _cut(means[held], box, axis)
        if found is None:  # equal places, or all of them outside: another cut would hold the same
            leaves.append(box)
            continue
        axis, cut = found
        low = means[held, axis] < cut
        first, second = list(box), list(box)
        first[axis + 2] = second[axis] = cut
        waiting.append((_box(second), held[~low], 1 - axis))
        waiting.append((_box(first), held[low], 1 - axis))
    boxes = means.new_tensor(leaves)
    members = [_members(mixture, box, shell) for box in boxes]
    return Blocks(mixture, boxes, members)


def _cut(means: Tensor, box: tuple[float, ...], axis: int) -> tuple[int, float] | None:
    """Along which axis, and where about half of the means are below, if some are and some not."""
    for along in (axis, 1 - axis):
        places = means[:, along]
        middle = places.median()
        for place in (middle.nextafter(middle.new_tensor(math.inf)), middle):
            cut, below = float(place), int((places < place).sum())
            if 0 < below < len(means) and box[along] < cut < box[along + 2]:
                return along, cut
    return None


def _box(sides: list[float]) -> tuple[float, float, float, float]:
    return sides[0], sides[1], sides[2], sides[3]


def _members(mixture: Mixture, box: Tensor, shell: float | None) -> Tensor:
    gaussians = mixture.gaussians
    low, high = box[:2], box[2:]
    if shell is not None:
        grown = shell * (high - low)
        listed = (gaussians.means >= low - grown) & (gaussians.means <= high + grown)
    else:
        reach = extents(gaussians, mixture.epsilon)
        listed = (gaussians.means + reach >= low) & (gaussians.means - reach <= high)
    return listed.all(1).nonzero()[:, 0]


def extents(gaussians: Gaussians, epsilon: float) -> Float[Tensor, "N 2"]:
    """How far from its mean, in x and y, a Gaussian counts in a mixture, with a little slack."""
    radius = math.sqrt(2 * math.log(255 / epsilon))
    cholesky = gaussians.cholesky
    sides = torch.stack([cholesky[:, 0].abs(), cholesky[:, 1:].norm(dim=1)], 1)
    return radius * sides * 1.001 + 0.01
