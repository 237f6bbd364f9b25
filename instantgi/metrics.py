"""Measures of how close a picture is to its target, and how many bits it takes.

Pictures are [C, H, W] in [0, 1], any number of channels; a mean over channels is a plain one.
"""

import contextlib
import functools
import math
import sys
import types
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from instantgi.gaussians import kind_of
from instantgi.images import PART, to_8bit

# Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", 2004, section III.B and III.C
WINDOW_TAPS, WINDOW_SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # (K L)² with range L = 1
# Wang, Simoncelli, Bovik, "Multiscale structural similarity", 2003, section 3.2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LPIPS_SIDE = 31  # pixels that leave AlexNet's last layer one
PIXELS_PER_DEGREE = 3840 * math.pi / 180  # 67.02: a 4K screen, seen from as far as it is wide


def psnr(
    image: Float[Tensor, "channels height width"], target: Float[Tensor, "channels height width"]
) -> float:
    """Peak signal-to-noise ratio in dB of the two as pictures of 8 bits; inf if these are equal.

    10 log10(255² / mean (a - b)²), a and b being `to_8bit` of image and target: a target of 16 bits
    is rounded as well. The squares are summed in integers, so the value is exact.
    """
    _check_pair(image, target)
    parts = image.reshape(-1).split(PART), target.reshape(-1).split(PART)
    squares = sum(_squares(to_8bit(a), to_8bit(b)) for a, b in zip(*parts, strict=True))
    return psnr_from_mse(squares / 255**2 / image.numel())


def psnr_of_levels(
    levels: UInt8[Tensor, "channels height width"], target: UInt8[Tensor, "channels height width"]
) -> float:
    """`psnr` of pictures that are of 8 bits already."""
    _check_pair(levels, target, of_levels=True)
    parts = levels.reshape(-1).split(PART), target.reshape(-1).split(PART)
    squares = sum(_squares(a, b) for a, b in zip(*parts, strict=True))
    return psnr_from_mse(squares / 255**2 / levels.numel())


def _squares(levels: Tensor, target: Tensor) -> int:
    """Σ (a − b)²"""
    return int((levels.int() - target.int()).square().sum(dtype=torch.int64))


def psnr_from_mse(mse: float) -> float:
    """-10 log10(mse): PSNR in dB of pictures in [0, 1] with this mean squared error; inf for 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def ssim(
    image: Float[Tensor, "channels height width"], target: Float[Tensor, "channels height width"]
) -> Float[Tensor, ""]:
    """Structural similarity: 1 for equal pictures. Differentiable.

    SSIM = mean over pixels and channels of l · cs; with Gaussian-weighted moments at a pixel,
        l  = (2 μₐ μᵦ + C₁) / (μₐ² + μᵦ² + C₁),
        cs = (2 σₐᵦ + C₂) / (σₐ² + σᵦ² + C₂)
    (Wang et al. 2004, eq. 6, 9, 10, 13 with α = β = γ = 1, C₃ = C₂ / 2). Only pixels whose window
    lies inside the picture count. A side shorter than 11 pixels is given the longest odd window
    that fits, so pictures of any size have an SSIM.

    The values are taken as they are: not clamped, not rounded to 8 bits.
    """
    _check_pair(image, target)
    pairs = zip(image, target, strict=True)
    return torch.stack([_similarity(*pair)[0] for pair in pairs]).mean()


def ms_ssim(
    image: Float[Tensor, "channels height width"], target: Float[Tensor, "channels height width"]
) -> Float[Tensor, ""] | None:
    """Structural similarity over five scales; None if a side is below 161 pixels. Differentiable.

    MS-SSIM = mean over channels of Π_{j<5} max(0, cs_j)^w_j · max(0, SSIM_5)^w_5, cs and SSIM being
    means over pixels (Wang et al. 2003, eq. 7). Each scale averages 2x2 pixels of the one before;
    an odd side gets a zero at each end first. The zeros and max are those of pytorch-msssim, with
    which the published numbers were made. The fifth scale has to hold the window of 11 pixels:
    161 → 81 → 41 → 21 → 11, so smaller pictures have no MS-SSIM.

    The values are taken as they are: not clamped, not rounded to 8 bits.
    """
    _check_pair(image, target)
    if min(image.shape[1:]) <= (WINDOW_TAPS - 1) * 2 ** (len(SCALE_WEIGHTS) - 1):
        return None
    pairs = zip(image, target, strict=True)
    return torch.stack([_multiscale_similarity(*pair) for pair in pairs]).mean()


def lpips(
    image: Float[Tensor, "channels height width"], target: Float[Tensor, "channels height width"]
) -> float:
    """Perceptual distance of the package `lpips` (AlexNet, version 0.1): 0 for equal pictures.

    Zhang et al., "The unreasonable effectiveness of deep features", 2018. Gray is taken as RGB.

    Raises:
        ImportError: if the package is not installed.
        RuntimeError: if its network is not on this machine and cannot be downloaded.
        ValueError: if the pictures have opacity, or a side below 31 pixels.
    """
    _check_pair(image, target)
    pair = [_as_rgb(picture, "LPIPS").float()[None] for picture in (image, target)]
    height, width = image.shape[1:]
    if min(height, width) < LPIPS_SIDE:
        raise ValueError(f"LPIPS needs {LPIPS_SIDE} pixels on each side, got {height}x{width}")
    network = _lpips_network().to(image.device)
    with torch.no_grad():
        return network(*pair, normalize=True).item()


def flip(
    image: Float[Tensor, "channels height width"], target: Float[Tensor, "channels height width"]
) -> float:
    """Difference seen when the two alternate, LDR-FLIP: 0 for equal pictures, at most 1. Symmetric.

    FLIP = mean over pixels of ΔE_c^(1 - ΔE_f), ΔE_c being the difference in color after the blur of
    the eye, ΔE_f that in edges and points (Andersson et al., "FLIP: a difference evaluator for
    alternating images", 2020), computed by NVIDIA's package `flip-evaluator` for 67.02 pixels per
    degree. The values are taken as sRGB and clamped to [0, 1], gray as RGB.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if the pictures have opacity, or a value is NaN.
    """
    _check_pair(image, target)
    pair = [_as_rgb(picture, "FLIP").detach().cpu().clamp(0, 1) for picture in (target, image)]
    if any(picture.isnan().any() for picture in pair):
        raise ValueError("a picture holds NaN, which FLIP would take for black")
    arrays = [picture.permute(1, 2, 0).float().contiguous().numpy() for picture in pair]
    parameters = {"ppd": PIXELS_PER_DEGREE}
    errors, *_ = _flip_evaluator().evaluate(
        *arrays, "LDR", applyMagma=False, computeMeanError=False, parameters=parameters
    )
    # the package's own mean is a sum in float32, off by up to 1% on a picture of a megapixel
    return errors.mean(dtype="float64").item()


def bits_per_pixel(num_bytes: int, height: int, width: int) -> float:
    """8 · bytes / pixels, whatever the number of channels."""
    return 8 * num_bytes / (height * width)


def _check_pair(image: Tensor, target: Tensor, of_levels: bool = False) -> None:
    wanted = "a uint8 tensor [C, H, W]" if of_levels else "a float tensor [C, H, W] in [0, 1]"
    for name, picture in (("image", image), ("target", target)):
        is_one = isinstance(picture, Tensor) and picture.ndim == 3
        fits = is_one and (
            picture.dtype == torch.uint8 if of_levels else picture.is_floating_point()
        )
        if not fits:
            raise ValueError(f"{name} must be {wanted}, got {kind_of(picture)}")
    if image.shape != target.shape:
        shapes = f"{list(image.shape)} and {list(target.shape)}"
        raise ValueError(f"image and target must have the same shape, got {shapes}")
    if image.numel() == 0:
        raise ValueError(f"an image of shape {list(image.shape)} has no pixels to compare")


def _as_rgb(picture: Tensor, measure: str) -> Tensor:
    if len(picture) not in (1, 3):
        raise ValueError(
            f"{measure} compares gray or RGB, got C = {len(picture)}; "
            "use flatten_alpha or --background"
        )
    return picture.expand(3, -1, -1)


def _multiscale_similarity(image: Tensor, target: Tensor) -> Tensor:
    """MS-SSIM of one channel [H, W]."""
    product = torch.ones((), dtype=image.dtype, device=image.device)
    for scale, weight in enumerate(SCALE_WEIGHTS, start=1):
        similarity, structure = _similarity(image, target)
        term = structure if scale < len(SCALE_WEIGHTS) else similarity
        product = product * term.relu() ** weight
        image, target = _halve(image), _halve(target)
    return product


def _halve(image: Tensor) -> Tensor:
    height, width = image.shape
    return F.avg_pool2d(image[None], kernel_size=2, padding=(height % 2, width % 2))[0]


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The means of l · cs and of cs over one channel [H, W], worked on in bands of rows."""
    height, width = a.shape
    down, right = (len(gaussian_window(size)) - 1 for size in (height, width))
    rows = max(1, PART // width)
    bands = [slice(top, top + rows + down) for top in range(0, height - down, rows)]
    sums = torch.stack([_sums(a[band], b[band]) for band in bands]).sum(0)
    similarity, structure = sums / ((height - down) * (width - right))
    return similarity, structure


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Σ l · cs and Σ cs [2]."""
    moments = _blur(torch.stack([a, b, a * a, b * b, a * b]))
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = moments
    variances = (mean_aa - mean_a**2) + (mean_bb - mean_b**2)
    covariance = mean_ab - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return torch.stack([(luminance * structure).sum(), structure.sum()])


def _blur(images: Tensor) -> Tensor:
    """[K, H, W] averaged under the Gaussian window, where it fits."""
    return _blur_along(_blur_along(images, dim=1), dim=2)


def _blur_along(images: Tensor, dim: int) -> Tensor:
    # a sum of shifted images, not a convolution, which cuDNN would round to the 10 bits of TF32
    size = images.shape[dim]
    weights = gaussian_window(size)
    valid = size - len(weights) + 1
    blurred = images.narrow(dim, 0, valid) * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        blurred.add_(images.narrow(dim, shift, valid), alpha=weight)
    return blurred


def gaussian_window(size: int) -> list[float]:
    """The weights of SSIM's window on a side of `size` pixels: 11, or the longest odd that fits."""
    taps = min(WINDOW_TAPS, size - (size + 1) % 2)
    offsets = [tap - taps // 2 for tap in range(taps)]
    weights = [math.exp(-(offset**2) / (2 * WINDOW_SIGMA**2)) for offset in offsets]
    return [weight / sum(weights) for weight in weights]


@functools.cache
def _lpips_network() -> torch.nn.Module:
    try:
        import lpips as package  # pyright: ignore[reportMissingImports]: an extra
    except ImportError as error:
        raise ImportError('LPIPS needs a package: pip install "instantgi[metrics]"') from error
    try:
        # a download is announced, which is no result
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # of torchvision, about how lpips names the weights
            return package.LPIPS(net="alex", verbose=False).eval()
    except OSError as error:
        raise RuntimeError(
            f"LPIPS needs the weights of AlexNet from torchvision, which did not load ({error}); "
            "connect to the internet once, or leave LPIPS out"
        ) from error


def _flip_evaluator() -> types.ModuleType:
    try:
        import flip_evaluator
    except ImportError as error:
        raise ImportError('FLIP needs a package: pip install "instantgi[metrics]"') from error
    return flip_evaluator
