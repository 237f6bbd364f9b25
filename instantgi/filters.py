"""Separable filters on pictures."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi import native

torch.library.define("instantgi::blur", "(Tensor image, Tensor taps) -> Tensor")


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
        image = sum(part * weight for part, weight in zip(shifted, taps, strict=True))
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
