"""Separable filters on pictures, and pictures in bands."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BAND = 2**20  # pixels; planes of 4 MiB stay in the cache, and a small picture is one band


class Band(NamedTuple):
    """Rows [begin, end) of a picture, made from its rows [first, last)."""

    begin: int
    end: int
    first: int
    last: int

    @property
    def inner(self) -> slice:
        """The rows of the band among those it is made from."""
        return slice(self.begin - self.first, self.end - self.first)


def bands(height: int, width: int, halo: int) -> Iterator[Band]:
    """A picture cut into bands of about BAND pixels, which begin at multiples of four rows.

    A filter of reach `halo` makes of a band's rows what it makes of them in the whole picture.
    """
    # of a very wide picture twice the halo: what is made twice is then no more than the rest
    rows = -(-max(1, 2 * halo, BAND // max(1, width)) // 4) * 4
    for begin in range(0, height, rows):
        end = min(height, begin + rows)
        yield Band(begin, end, max(0, begin - halo), min(height, end + halo))


def gaussian_blur(image: Float[Tensor, "C H W"], deviation: float) -> Float[Tensor, "C H W"]:
    """The picture blurred by a Gaussian of this standard deviation in pixels, cut at 4 of them.

    Outside, the picture continues with its border pixels.
    """
    reach = blur_reach(deviation)
    taps = [math.exp(-0.5 * (offset / deviation) ** 2) for offset in range(-reach, reach + 1)]
    kernel = image.new_tensor(taps) / sum(taps)
    for dim in (-1, -2):
        image = _filter(image, kernel, dim)
    return image


def blur_reach(deviation: float) -> int:
    """How many pixels away `gaussian_blur` looks."""
    return math.ceil(4 * deviation)


def _filter(image: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Weighted sum of shifted pictures: symmetric, so pairs share a product."""
    reach, size = len(kernel) // 2, image.shape[dim]
    padding = (reach, reach, 0, 0) if dim == -1 else (0, 0, reach, reach)
    padded = torch.nn.functional.pad(image[None], padding, mode="replicate")[0]
    out = image * kernel[reach]
    for offset in range(1, reach + 1):
        before = padded.narrow(dim, reach - offset, size)
        out += (before + padded.narrow(dim, reach + offset, size)) * kernel[reach + offset]
    return out


def is_peak(plane: Float[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """Where none of the eight neighbors is higher."""
    highest = plane
    for dim in (0, 1):
        before, size = highest, plane.shape[dim] - 1
        highest = before.clone()
        for there, here in ((0, 1), (1, 0)):
            part = highest.narrow(dim, here, size)
            torch.maximum(part, before.narrow(dim, there, size), out=part)
    return highest == plane
