"""Separable filters on pictures."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def gaussian_blur(image: Float[Tensor, "C H W"], deviation: float) -> Float[Tensor, "C H W"]:
    """The picture blurred by a Gaussian of this standard deviation in pixels, cut at 4 of them.

    Outside, the picture continues with its border pixels.
    """
    reach = math.ceil(4 * deviation)
    taps = [math.exp(-0.5 * (offset / deviation) ** 2) for offset in range(-reach, reach + 1)]
    kernel = image.new_tensor(taps) / sum(taps)
    for dim in (-1, -2):
        image = _filter(image, kernel, dim)
    return image


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
