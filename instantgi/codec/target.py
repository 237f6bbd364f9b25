"""A picture as a file of a wanted size or quality."""

import dataclasses
import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from instantgi.codec import decode, encode_quantised
from instantgi.codec.quantize import Quantised, Steps
from instantgi.codec.refit import fit_quantised
from instantgi.fit import fit_image
from instantgi.gaussians import Gaussians
from instantgi.metrics import psnr as psnr_of

BITS = 37.0  # of a Gaussian at the usual steps
NUMBERS = 7  # of a Gaussian that a common factor of their steps makes cheaper by a bit an octave
CLOSE_BYTES, CLOSE_DB = 0.01, 0.05  # aimed at; 0.02 and 0.1 are promised
TRIES = 5


@dataclasses.dataclass(frozen=True)
class Target:
    """What is wanted; one of the first four, or none for the default number of Gaussians.

    Attributes:
        bpp: bits of the whole file per pixel.
        psnr: dB, of the decoded picture as 8 bits.
        iterations, seconds: of each fit of the Gaussians before they are quantised.
    """

    num_gaussians: int | None = None
    bpp: float | None = None
    num_bytes: int | None = None
    psnr: float | None = None
    iterations: int | None = 300
    seconds: float | None = None


def encode_image(image: Float[Tensor, "C H W"], target: Target | None = None) -> bytes:
    """The file of a picture: fitted, quantised, fitted to that, coded.

    Raises:
        ValueError: if the target cannot be reached; says what came closest.
    """
    target = target or Target()
    wanted = target.num_bytes
    if target.bpp is not None:
        wanted = round(target.bpp * image[0].numel() / 8)
    if target.psnr is not None:
        return _of_quality(image, target, target.psnr)
    if wanted is not None:
        return _of_size(image, target, wanted)
    return _Fits(image, target).encode(target.num_gaussians or _usual_count(image))


def _usual_count(image: Tensor) -> int:
    return max(2, round(0.008 * image[0].numel()))


class _Fits:
    """Fits of a picture by their number of Gaussians."""

    def __init__(self, image: Tensor, target: Target):
        self.image, self.target = image.float(), target
        self.size = image.shape[1:]
        self.made: dict[int, Gaussians] = {}

    def fit(self, num: int) -> Gaussians:
        if num not in self.made:
            limits = {"iterations": self.target.iterations, "seconds": self.target.seconds}
            self.made[num] = fit_image(self.image, num_gaussians=num, **limits)
        return self.made[num]

    def encode(self, num: int, factor: float = 1.0) -> bytes:
        """With the usual steps times a factor."""
        steps = Steps.for_density(num / math.prod(self.size)).scaled(factor)
        quantised: Quantised = fit_quantised(self.image, self.fit(num), steps)
        height, width = self.size
        return encode_quantised(quantised, height, width, steps)


def _of_size(image: Tensor, target: Target, wanted: int) -> bytes:
    """The number of Gaussians by what they usually cost; then the steps are tuned."""
    fits, largest = _Fits(image, target), image[0].numel() // 2
    num = min(max(2, round(8 * wanted / BITS)), max(2, largest))
    factor, best = 1.0, b""
    for _ in range(TRIES):
        data = fits.encode(num, factor)
        if not best or abs(len(data) - wanted) < abs(len(best) - wanted):
            best = data
        off = len(data) / wanted - 1
        if abs(off) <= CLOSE_BYTES:
            break
        if abs(off) > 0.25:  # another picture than usual: another number
            num = min(max(2, round(num / (1 + off))), max(2, largest))
        else:
            factor *= 2 ** (8 * (len(data) - wanted) / num / NUMBERS)
    if abs(len(best) / wanted - 1) > 0.02:
        raise ValueError(
            f"{wanted} bytes cannot be reached for {image.shape[2]}x{image.shape[1]} pixels, the "
            f"closest is {len(best)}; ask for more Gaussians or other bytes"
        )
    return best


def _of_quality(image: Tensor, target: Target, wanted: float) -> bytes:
    """The number of Gaussians by the secant of PSNR over its logarithm; then the steps."""
    fits, largest = _Fits(image, target), max(2, image[0].numel() // 2)

    def reached(data: bytes) -> float:
        return psnr_of(decode(data).render(), image)

    def search(
        value: float, to_data: Callable[[float], bytes], slope: float
    ) -> tuple[bytes, float]:
        seen: list[tuple[float, float, bytes]] = []
        for _ in range(TRIES):
            data = to_data(value)
            level = reached(data)
            seen.append((value, level, data))
            if abs(level - wanted) <= CLOSE_DB:
                break
            if len(seen) > 1:
                (a, low, _), (b, high, _) = seen[-2:]
                if a != b and (high - low) / (b - a) * slope > 0:
                    slope = (high - low) / (b - a)
            value += (wanted - level) / slope
        value, level, data = min(seen, key=lambda each: abs(each[1] - wanted))
        return data, value

    def of_count(doublings: float) -> bytes:
        return fits.encode(min(max(2, round(2**doublings)), largest))

    data, doublings = search(math.log2(_usual_count(image)), of_count, 2.5)
    if abs(reached(data) - wanted) > CLOSE_DB:
        num = min(max(2, round(2**doublings)), largest)
        finer, _ = search(0.0, lambda octaves: fits.encode(num, 2**octaves), -2.5)
        data = min(data, finer, key=lambda each: abs(reached(each) - wanted))
    level = reached(data)
    if abs(level - wanted) > 0.1:
        raise ValueError(
            f"{wanted} dB cannot be reached for this picture, the closest is {level:.2f} dB; give "
            "more iterations or ask for less"
        )
    return data
