"""Measures of how close a picture is to its target, and how many bits it takes.

Pictures are [C, H, W] in [0, 1], any number of channels; a mean over channels is a plain one.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from instantgi.images import to_8bit

# Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", 2004, section III.B and III.C
WINDOW_TAPS, WINDOW_SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # (K L)² with range L = 1
# Wang, Simoncelli, Bovik, "Multiscale structural similarity", 2003, section 3.2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(
    image: Float[Tensor, "channels height width"], target: Float[Tensor, "channels height width"]
) -> float:
    """Peak signal-to-noise ratio in dB of the two pictures as files of 8 bits; inf if these are equal.

    10 log10(255² / mean (a - b)²), a and b being `to_8bit` of image and target: a target of 16 bits
    is rounded as well. The squares are summed in integers, so the value is exact.
    """
    _check_pair(image, target)
    difference = to_8bit(image).to(torch.int16) - to_8bit(target).to(torch.int16)
    squares = int((difference.to(torch.int32) ** 2).sum(dtype=torch.int64))
    return psnr_from_mse(squares / 255**2 / image.numel())


def psnr_from_mse(mse: float) -> float:
    """-10 log10(mse): PSNR in dB of pictures in [0, 1] with this mean squared error; inf for 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse)
