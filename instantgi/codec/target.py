"""A picture as a file of a wanted size or quality, in the time that there is."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from instantgi.codec.file import Metadata, encode, encode_quantised, open_file
from instantgi.codec.header import PROFILES, Steps
from instantgi.codec.refit import ITERATIONS, RateAware, fit_quantised, worth_their_bits
from instantgi.fit import SGI, Fitter, LocalAdam, Progress, fit_image
from instantgi.fit.sgi import RATE
from instantgi.gaussians import Gaussians
from instantgi.metrics import psnr as psnr_of

# bits of a Gaussian in three channels at the usual steps; lossless: 32 of each number
BITS = {"compact": 37.0, "fast": 66.0, "seeds": 14.0}
SLOPE = -0.3  # of log2 of the bytes over octaves of the steps, about, or of λ
CLOSE_BYTES, CLOSE_DB = 0.01, 0.05  # aimed at while there is time
PROMISED_BYTES, PROMISED_DB = 0.02, 0.1  # kept even if it takes a little longer
TRIES = 9
PERFECT = 100.0  # dB, of a picture without an error
SHARE = 0.5  # of the time that is left, for a fit; the rest is for quantising it


@dataclasses.dataclass(frozen=True)
class Target:
    """What is wanted; one of the first four, or none for the default number of Gaussians.

    Attributes:
        num_gaussians: an upper limit; a small picture may get fewer.
        bpp: bits of the whole file per pixel.
        num_bytes: of the whole file.
        psnr: dB, of the decoded picture as 8 bits.
        iterations: of each fit of the Gaussians before they are quantised.
        seconds: in all; by default as long as it takes.
    """

    num_gaussians: int | None = None
    bpp: float | None = None
    num_bytes: int | None = None
    psnr: float | None = None
    iterations: int | None = 600
    seconds: float | None = None

    def __post_init__(self) -> None:
        wanted = ("num_gaussians", "bpp", "num_bytes", "psnr")
        given = [name for name in wanted if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a target is one of {', '.join(wanted)}, got {' and '.join(given)}")
        for name in (*given, "iterations", "seconds"):
            value = getattr(self, name)
            least = 0 if name in ("iterations", "seconds") else 1e-9
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")


def encode_image(
    image: Float[Tensor, "C H W"],
    target: Target | None = None,
    profile: str = "compact",
    metadata: Metadata | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> bytes:
    """The file of a picture: fitted, quantised, fitted to that, coded.

    Args:
        profile: see `encode`; "seeds" fits seeds, whose λ takes the place of steps.
        on_progress: called in the fits before quantising.

    Raises:
        ValueError: if the target cannot be reached; says what came closest.
    """
    target = target or Target()
    if profile not in PROFILES:
        raise ValueError(f'profile must be one of {", ".join(PROFILES)}, got "{profile}"')
    encoder = _Encoder(image, target, profile, metadata, on_progress)
    wanted = target.num_bytes
    if target.bpp is not None:
        wanted = max(1, round(target.bpp * image[0].numel() / 8))
    if target.psnr is not None:
        return _of_quality(encoder, target.psnr)
    if wanted is not None:
        return _of_size(encoder, wanted)
    return encoder.encode(target.num_gaussians or encoder.usual)


class _Encoder:
    """Files of a picture by their number of Gaussians and how coarse their steps are."""

    def __init__(
        self,
        image: Tensor,
        target: Target,
        profile: str,
        metadata: Metadata | None,
        on_progress: Callable[[Progress], None] | None,
    ):
        self.image, self.target, self.profile = image.float(), target, profile
        self.metadata, self.on_progress = metadata, on_progress
        self.size = image.shape[1:]
        pixels = math.prod(self.size)
        usual = 0.008 if profile != "seeds" else 0.02
        self.usual, self.most = max(2, round(usual * pixels)), max(2, pixels // 2)
        self.is_search = any((target.bpp, target.num_bytes, target.psnr))
        self.fewest = 2 if profile != "seeds" else SGI().per_seed
        self.fits: dict[tuple[int, float], Any] = {}
        self.began, self.slowest = time.perf_counter(), 0.0

    def left(self) -> float:
        """Seconds."""
        return (self.target.seconds or math.inf) - (time.perf_counter() - self.began)

    def is_late(self) -> bool:
        """Twice as long as asked: time to give up."""
        return self.left() < -(self.target.seconds or math.inf)

    def may_try(self) -> bool:
        """Whether there is time for another file like the slowest so far."""
        return self.left() > self.slowest

    def within(self, num: float) -> int:
        return min(max(2, round(num)), self.most)

    def bits(self) -> float:
        """Of a Gaussian, about."""
        numbers = 5 + len(self.image)
        return BITS[self.profile] * numbers / 8 if self.profile in BITS else 32.0 * numbers

    def encode(self, num: int, octaves: float = 0.0) -> bytes:
        """With so many Gaussians and steps, or a λ, so many octaves above the usual ones."""
        height, width = self.size
        factor = 2 ** min(max(octaves, -20.0), 20.0)
        usual = Steps.for_density(num / math.prod(self.size))
        if self.profile == "seeds":
            began = time.perf_counter()
            made = self._fit((num, factor), SGI(rate=RATE * factor))
            self.slowest = max(self.slowest, time.perf_counter() - began)
            return encode(made, height, width, profile="seeds", metadata=self.metadata)
        if self.profile == "lossless":
            made = self._fit((num, 1.0), LocalAdam())
            return encode(made, height, width, profile="lossless", metadata=self.metadata)
        gaussians: Gaussians = self._fit((num, 1.0), RateAware(usual))
        began, steps = time.perf_counter(), usual.scaled(factor)
        if self.target.num_gaussians is None:
            gaussians = worth_their_bits(gaussians, steps)
        quantised = fit_quantised(self.image, gaussians, steps, self._refits())
        data = encode_quantised(quantised, height, width, steps, self.profile, self.metadata)
        self.slowest = max(self.slowest, time.perf_counter() - began)
        return data

    def _fit(self, key: tuple[int, float], method: Fitter[Any]) -> Any:
        if key not in self.fits:
            limits: dict[str, Any] = {"iterations": self.target.iterations}
            if self.target.seconds is not None:
                is_all = self.profile in ("seeds", "lossless") and not self.is_search
                limits["seconds"] = max(0.0, (0.97 if is_all else SHARE) * self.left())
            steps, began = 0, time.perf_counter()

            def look(progress: Progress) -> None:
                nonlocal steps
                steps = progress.iteration
                if self.on_progress:
                    self.on_progress(progress)

            self.fits[key] = fit_image(
                self.image, num_gaussians=key[0], method=method, on_progress=look, **limits
            )
            self.step = (time.perf_counter() - began) / max(1, steps)
        return self.fits[key]

    def _refits(self) -> int:
        """Steps of each of the two fits while quantising: half of the time left is enough."""
        if self.target.seconds is None:
            return ITERATIONS
        return max(0, min(ITERATIONS, int(self.left() / 4 / self.step)))


def _of_size(encoder: _Encoder, wanted: int) -> bytes:
    """The number of Gaussians by what they usually cost; then the steps are tuned."""
    bits, best = encoder.bits(), b""
    num, octaves = encoder.within(8 * wanted / bits), 0.0
    seen: list[_Tried] = []  # steps in octaves, log2 of bytes
    for _ in range(TRIES):
        data = encoder.encode(num, octaves)
        if not best or abs(len(data) - wanted) < abs(len(best) - wanted):
            best = data
        off = len(data) / wanted - 1
        if abs(off) <= (CLOSE_BYTES if encoder.may_try() else PROMISED_BYTES) or encoder.is_late():
            break
        other = num
        if encoder.profile == "lossless":  # all cost the same
            other = encoder.within(num - 8 * (len(data) - wanted) / bits)
        elif abs(off) > 0.15 and not seen:  # another picture than usual: another number
            other = encoder.within(num / (1 + off))
        if other == num:
            seen.append(_Tried(octaves, math.log2(len(data))))
            octaves = _next(seen, math.log2(wanted), SLOPE)
        num = other
    if abs(len(best) / wanted - 1) > PROMISED_BYTES:
        height, width = encoder.size
        other = "more" if len(best) > wanted else "fewer"
        seconds = ", or give more seconds" if encoder.target.seconds else ""
        raise ValueError(
            f"{wanted} bytes cannot be reached for {width}x{height} pixels, the closest is "
            f"{len(best)}; ask for {other}{seconds}"
        )
    return best


def _of_quality(encoder: _Encoder, wanted: float) -> bytes:
    """The number of Gaussians by its logarithm; then the steps, from a little too good."""
    tried: dict[bytes, float] = {}

    def level(data: bytes) -> float:
        if data not in tried:
            found = psnr_of(open_file(data).render(), encoder.image.cpu())
            tried[data] = min(found, PERFECT)
        return tried[data]

    def count(doublings: float) -> int:
        return encoder.within(2 ** min(doublings, 40.0))

    def search(value: float, to_data: Callable[[float], bytes], slope: float) -> list[_Tried]:
        seen: list[_Tried] = []
        for _ in range(TRIES):
            data = to_data(value)
            if data in tried and seen:
                break
            seen.append(_Tried(value, level(data)))
            if abs(seen[-1].level - wanted) <= (CLOSE_DB if encoder.may_try() else PROMISED_DB):
                break
            if encoder.is_late():
                break
            value = _next(seen, wanted, slope)
        return seen

    seen = search(math.log2(encoder.usual), lambda x: encoder.encode(count(x)), 2.5)
    # what is too good can be made worse by larger steps; too few Gaussians stay too few
    base = min(seen, key=lambda each: (each.level < wanted, abs(each.level - wanted)))
    if abs(base.level - wanted) > CLOSE_DB and encoder.profile != "lossless":
        search(0.0, lambda octaves: encoder.encode(count(base.value), octaves), -2.5)
    closest = min(tried, key=lambda data: abs(tried[data] - wanted))
    smallest = min((data for data in tried if tried[data] >= wanted), key=len, default=None)
    if abs(tried[closest] - wanted) > PROMISED_DB and smallest:
        if open_file(smallest).num_gaussians <= encoder.fewest:
            return smallest  # hardly a file of this picture is as bad as that
    if abs(tried[closest] - wanted) > PROMISED_DB:
        raise ValueError(
            f"{wanted:g} dB cannot be reached for this picture, the closest is "
            f"{tried[closest]:.2f} dB; give more iterations or seconds, or ask for less"
        )
    return closest


class _Tried(NamedTuple):
    value: float
    level: float  # what it gave


def _next(seen: list[_Tried], wanted: float, slope: float) -> float:
    """What to try after these: between the closest two around the wanted level, or further on.

    Args:
        slope: of the level over the value, about; as long as all lie on one side steps grow.
    """
    below = [each for each in seen if each.level < wanted]
    above = [each for each in seen if each.level >= wanted]
    if not (below and above):
        nearest = min(seen, key=lambda each: abs(each.level - wanted))
        return nearest.value + 2 ** (len(seen) - 1) * (wanted - nearest.level) / slope
    low, high = max(below, key=lambda e: e.level), min(above, key=lambda e: e.level)
    share = (wanted - low.level) / (high.level - low.level)
    return low.value + (high.value - low.value) * min(max(share, 0.1), 0.9)
