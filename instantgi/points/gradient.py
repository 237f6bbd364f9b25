"""An image becomes a position map without a network: points go where the picture changes."""

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.filters import bands, blur_reach, gaussian_blur

NOISE = 0.7  # px; blur before the gradient, so that single noisy pixels count less
SPREAD = 3.0  # px; blur of the gradient: a Gaussian serves an edge from beside it too
EXPONENT = 0.8  # of the gradient; measured on Kodak, see docs/results.md
FLOOR = 0.005  # of the gradient, in units of Sobel's filter: flat regions get points as well


def gradient_map(image: Float[Tensor, "C H W"]) -> Float[Tensor, "H W"]:
    """The density that points should have, up to a factor: (blurred gradient + floor)^0.8, > 0.

    The published ablation dithers the image gradient itself (Instant-GI, 2025, table 3); blurring
    it and lifting flat regions fits better. Scale it to a count with `scale_map`. Large pictures
    are worked on in bands.
    """
    halo = blur_reach(NOISE) + 1 + blur_reach(SPREAD)
    height, width = image.shape[1:]
    density = image.new_empty(height, width)
    for band in bands(height, width, halo):
        part = image[:, band.first : band.last]
        density[band.begin : band.end] = _gradient_map(part)[band.inner]
    return density


def _gradient_map(image: Tensor) -> Tensor:
    gray = gaussian_blur(image.mean(0, keepdim=True), NOISE)
    padded = torch.nn.functional.pad(gray[None], (1, 1, 1, 1), mode="replicate")[0, 0]
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]  # Sobel: smooth along, differ across
    along = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    magnitude = torch.hypot(across[:, 2:] - across[:, :-2], along[2:] - along[:-2])
    return (gaussian_blur(magnitude[None], SPREAD)[0] + FLOOR) ** EXPONENT
