"""Gaussians ↔ the bytes of a file; docs/format.md is the specification."""

import dataclasses
import math
import struct

import numpy as np
from jaxtyping import Float
from torch import Tensor

from instantgi.codec import quantize
from instantgi.codec.bitstream import Chunk, FormatError, pack, unpack
from instantgi.codec.compact import decode_planes, encode_planes
from instantgi.codec.quantize import Quantised, Steps
from instantgi.gaussians import Gaussians, check_size
from instantgi.render import draw_part

__all__ = ["Encoded", "FormatError", "Steps", "decode", "encode", "encode_quantised", "quantise"]

VERSION = 0  # a draft: files of this version may become unreadable
HEAD, SOFTWARE = b"HEAD", b"soft"
PLANES = (b"POSI", b"SIZE", b"LUMA", b"CHRO", b"SHAP")
# version, renderer (0: sum), profile (2: compact), channels, height, width, Gaussians, steps
HEADER = struct.Struct("<BBBBIIIfBfff")
COMPACT = 2
MOST_CHANNELS, LONGEST_SIDE, MOST_PIXELS, MOST_GAUSSIANS = 16, 2**20, 2**33, 2**26
LIMITS = {  # of the steps
    "position": (2**-8, 2**8),
    "sizes": (1, 64),
    "shape": (2**-12, 2**4),
    "luma": (2**-16, 2**8),
    "chroma": (2**-16, 2**8),
}
LARGEST_COLOR = 2**30


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a file holds."""

    gaussians: Gaussians
    height: int  # pixels
    width: int
    steps: Steps
    num_bytes: dict[str, int]  # of each chunk, by its type
    is_whole: bool  # False for the first part of a file: a coarser picture

    def render(
        self,
        height: int | None = None,
        width: int | None = None,
        *,
        crop: tuple[int, int, int, int] | None = None,
    ) -> Float[Tensor, "C h w"]:
        """The picture, or a part (x, y, width, height) of it, at any size; see `draw_part`."""
        part = crop or (0, 0, self.width, self.height)
        return draw_part(self.gaussians, part, height or part[3], width or part[2])


def quantise(gaussians: Gaussians, height: int, width: int, steps: Steps) -> Quantised:
    """The integers closest to these Gaussians; `refit.fit_quantised` loses less of a picture."""
    means, cholesky, colors = (
        field.detach().cpu().double().numpy()
        for field in (gaussians.means, gaussians.cholesky, gaussians.colors)
    )
    log_sizes, shapes = quantize.log_shape(cholesky)
    sizes = quantize.quantise_sizes(log_sizes, steps)
    chosen = quantize.quantise_colors(colors, quantize.sizes_of(sizes, steps), steps)
    levels = quantize.levels_of(chosen)
    points = quantize.quantise_means(means, height, width, steps)
    return Quantised(points, sizes, chosen, quantize.quantise_shapes(shapes, levels, steps))


def encode(gaussians: Gaussians, height: int, width: int, steps: Steps | None = None) -> bytes:
    """A file of these Gaussians, rounded to the steps.

    Args:
        height, width: of the picture, in pixels.

    Raises:
        ValueError: if the format cannot hold them.
    """
    check_size(height, width)
    steps = steps or Steps.for_density(len(gaussians) / (height * width))
    return encode_quantised(quantise(gaussians, height, width, steps), height, width, steps)


def encode_quantised(quantised: Quantised, height: int, width: int, steps: Steps) -> bytes:
    """A file of Gaussians that are integers already."""
    check_size(height, width)
    num, channels = quantised.colors.shape
    steps = as_stored(steps)
    _check(channels, height, width, num, steps, ValueError)
    header = (VERSION, 0, COMPACT, channels, height, width, num, *dataclasses.astuple(steps))
    lattice = quantize.lattice_size(height, width, steps)
    _, payloads = encode_planes(quantised, *lattice)
    planes = [Chunk(kind, payload) for kind, payload in zip(PLANES, payloads, strict=True)]
    return pack([Chunk(HEAD, HEADER.pack(*header)), *planes, Chunk(SOFTWARE, _software())])


def as_stored(steps: Steps) -> Steps:
    """The steps as float32, which is what a decoder will read."""
    floats = ("position", "shape", "luma", "chroma")
    return dataclasses.replace(
        steps, **{name: float(np.float32(getattr(steps, name))) for name in floats}
    )


def decode(data: bytes, *, whole: bool = True) -> Encoded:
    """What a file holds. The same bits on every machine.

    Args:
        whole: False also takes the beginning of a file, from the positions on: without colors it
            is gray, without shapes its Gaussians are round.

    Raises:
        FormatError: if it is no file of ours, of another version, or damaged.
    """
    chunks = unpack(data, whole=whole)
    if not chunks or chunks[0].type != HEAD or len(chunks[0].payload) != HEADER.size:
        raise FormatError("is damaged: it has no header")
    version, renderer, profile, channels, height, width, num, *values = HEADER.unpack(
        chunks[0].payload
    )
    if (version, renderer, profile) != (VERSION, 0, COMPACT):
        raise FormatError(
            f"has format version {version}, renderer {renderer}, profile {profile}; this reader "
            f"knows {VERSION}, 0, {COMPACT}; upgrade instantgi"
        )
    steps = Steps(*values)
    _check(channels, height, width, num, steps, FormatError)
    if num > 8 * len(data):
        raise FormatError(f"is damaged: {num} Gaussians in {len(data)} bytes")
    payloads = _payloads(chunks[1:], whole)
    lattice = quantize.lattice_size(height, width, steps)
    quantised = decode_planes(num, channels, *lattice, payloads)
    largest = quantize.LARGEST_SIZE * steps.sizes
    if num and (
        abs(quantised.sizes).max() > largest or abs(quantised.colors).max(initial=0) > LARGEST_COLOR
    ):
        raise FormatError("is damaged: a size or color is out of range")
    if len(payloads) < 3:  # no luma yet
        quantised = quantised._replace(colors=_gray(quantised, steps))
    counted = {chunk.type.decode("latin-1"): len(chunk.payload) for chunk in chunks}
    made = quantize.gaussians_of(quantised, steps)
    return Encoded(made, height, width, steps, counted, len(payloads) == len(PLANES))


def _payloads(chunks: list[Chunk], whole: bool) -> list[bytes]:
    found = [chunk for chunk in chunks if not chunk.may_be_skipped]
    kinds = tuple(chunk.type for chunk in found)
    if kinds != PLANES[: len(kinds)] or not kinds or (whole and len(kinds) < len(PLANES)):
        raise FormatError(
            f"is damaged: its chunks are {[kind.decode('latin-1') for kind in kinds]}"
        )
    return [chunk.payload for chunk in found]


def _check(
    channels: int, height: int, width: int, num: int, steps: Steps, error: type[ValueError]
) -> None:
    sides = 1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE
    if not (sides and height * width <= MOST_PIXELS and 1 <= channels <= MOST_CHANNELS):
        raise error(f"holds a picture of {width}x{height} pixels in {channels} channels")
    if num > MOST_GAUSSIANS:
        raise error(f"holds {num} Gaussians, more than {MOST_GAUSSIANS}")
    for name, (low, high) in LIMITS.items():
        value = getattr(steps, name)
        if not (low <= value <= high and math.isfinite(value)):
            raise error(f"holds a step for {name} of {value}, outside {low:g} to {high:g}")


def _gray(quantised: Quantised, steps: Steps) -> np.ndarray:
    """Half of the light, from Gaussians that overlap as they usually do."""
    colors = np.zeros_like(quantised.colors)
    sizes = quantize.sizes_of(quantised.sizes, steps)
    colors[:, :1] = np.minimum(0.25 * sizes / steps.luma, LARGEST_COLOR)[:, None].round()
    return colors


def _software() -> bytes:
    from instantgi import __version__

    return f"instantgi {__version__}".encode()
