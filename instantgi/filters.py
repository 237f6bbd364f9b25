"""Separable filters on pictures, and pictures in bands."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from instantgi import native

torch.library.define("instantgi::blur", "(Tensor image, Tensor taps) -> Tensor")

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


def blur(image: Float[Tensor, "K H W"], taps: Float[Tensor, " taps"]) -> Float[Tensor, "K H W"]:
    """Weighted by these symmetric taps, an odd number of them, along both axes; zero outside.

    Differentiable in the image.
    """
    return torch.ops.instantgi.blur(image, taps)


@torch.library.impl("instantgi::blur", "cpu")
def _(image, taps):
    image, taps = image.contiguous(), taps.to(image.dtype).contiguous()
    if image.dtype not in (torch.float32, torch.float64) or len(taps) % 2 == 0:
        raise ValueError(f"blur works on floats by an odd number of taps, got {image.dtype}")
    out, is_double = torch.empty_like(image), int(image.dtype == torch.float64)
    native.call_cpu("blur", is_double, *image.shape, len(taps), taps, image, out)
    return out


def blur_cuda(image, taps):
    # not a convolution, which cuDNN would round to the 10 bits of TF32
    reach = len(taps) // 2
    for dim, padding in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded, size = torch.nn.functional.pad(image, padding), image.shape[dim]
        shifted = (padded.narrow(dim, tap, size) for tap in range(len(taps)))
        parts = [part * weight for part, weight in zip(shifted, taps, strict=True)]
        image = torch.stack(parts).sum(0)
    return image


torch.library.impl("instantgi::blur", "cuda", blur_cuda)


@torch.library.register_fake("instantgi::blur")
def _(image, taps):
    return torch.empty_like(image)


def _keep_taps(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _blur_backward(ctx, grad):
    return blur(grad, *ctx.saved_tensors), None  # symmetric taps: its own adjoint


torch.library.register_autograd("instantgi::blur", _blur_backward, setup_context=_keep_taps)


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
