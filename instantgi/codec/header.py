"""What a file says first: the picture, how its numbers are held, and where its Gaussians lie."""

import dataclasses
import math
import struct
from typing import NamedTuple

import numpy as np

from instantgi.codec.bitstream import FormatError
from instantgi.codec.entropy import Ints
from instantgi.gaussians import MOST_GAUSSIANS

VERSION = 1
SUM, MIXTURE, LEVEL = 0, 1, 2  # renderers, see `Renderer`
PROFILES = ("lossless", "fast", "compact", "seeds")  # by their numbers
HEADER = struct.Struct("<BBBBIII")  # version, renderer, profile, channels; height, width, N
STEPS = struct.Struct("<fBfff")  # of profiles with quantised numbers
RENDERER = {SUM: struct.Struct("<"), MIXTURE: struct.Struct("<Bf"), LEVEL: struct.Struct("<ff")}
SEEDS = struct.Struct("<IIHBHHHfffIB")  # see `SeedsHeader`
RESOLUTION = struct.Struct("<I")
SIDE = struct.Struct("<I")  # of blocks
BLOCK = struct.Struct("<Iiiii")  # Gaussians; x and y from, x and y to, px
MOST_CHANNELS, LONGEST_SIDE, MOST_PIXELS = 16, 2**20, 2**33
STEP_LIMITS = {
    "position": (2**-8, 2**8),
    "sizes": (1, 64),
    "shape": (2**-12, 2**4),
    "luma": (2**-16, 2**8),
    "chroma": (2**-16, 2**8),
}
FARTHEST = 2**30  # px, of a box
PER_BLOCK = 2**15  # Gaussians, about
FULL = b"FULL"  # all numbers of a lossless file
KINDS = (b"POSI", b"SIZE", b"LUMA", b"CHRO", b"SHAP")  # of numbers, in the order of a file
SEED_KINDS = (b"FEAT", b"SCAL", b"OFFS")
SEEDS_PER_BLOCK = 2**14
NUMBERS_OF_ONE, PRODUCTS_OF_ONE = 8, 1024  # of seeds, that count as a Gaussian


@dataclasses.dataclass(frozen=True)
class Steps:
    """How finely a picture's Gaussians are held; numbers of float32.

    Attributes:
        position: px.
        sizes: steps an octave.
        shape: of half the logarithm of the ratio of the axes, where color times size is 1.
        luma: of colors times size in px; of the first channel and of those that are no color.
        chroma: of the second and third of three or four channels.
    """

    position: float
    sizes: int
    shape: float
    luma: float
    chroma: float

    def __post_init__(self) -> None:
        for name in ("position", "shape", "luma", "chroma"):  # what a decoder will read
            object.__setattr__(self, name, float(np.float32(getattr(self, name))))

    def check(self, error: type[ValueError] = ValueError) -> None:
        """Raises an error of this kind for steps that no file holds."""
        for name, (low, high) in STEP_LIMITS.items():
            value = getattr(self, name)
            if not (
                low <= value <= high and math.isfinite(value) and self.sizes == int(self.sizes)
            ):
                raise error(f"holds a step for {name} of {value}, outside {low:g} to {high:g}")

    @classmethod
    def for_density(cls, density: float) -> "Steps":
        """What is best for so many Gaussians a pixel, 37 to 41 bits each.

        Measured on training pictures at 0.004 to 0.022 a pixel; held within 0.0025 and 0.1.
        """
        fine = (0.005 / min(max(density, 0.0025), 0.1)) ** 0.93
        return cls(0.5, min(64, round(4 / fine) or 1), 0.055, 0.085, 0.11).scaled(fine)

    def scaled(self, factor: float) -> "Steps":
        """All steps but that of sizes times a factor, within what a file can hold."""
        others = (self.position, self.shape, self.luma, self.chroma)
        position, shape, luma, chroma = (min(max(step * factor, 2**-8), 2.0**4) for step in others)
        return Steps(position, min(self.sizes, 64), shape, luma, chroma)


@dataclasses.dataclass(frozen=True)
class Renderer:
    """What becomes of a part's Gaussians.

    Attributes:
        kind: SUM; MIXTURE, with those of the parts before; or LEVEL, their clamped sum mapped to a
            range and added to the enlarged picture of the parts before.
        numbers: of a mixture top_k and epsilon, of a level low and high.
    """

    kind: int = SUM
    numbers: tuple[float, ...] = ()

    def check(self, error: type[ValueError] = ValueError) -> None:
        if self.kind == MIXTURE:
            top_k, epsilon = self.numbers
            if not (1 <= top_k <= 32 and 1e-30 <= epsilon <= 1):
                raise error(f"holds a mixture of {top_k:g} terms and an epsilon of {epsilon:g}")
        if self.kind == LEVEL:
            low, high = self.numbers
            if not -1e6 < low <= high < 1e6:
                raise error(f"holds a level from {low:g} to {high:g}")

    @property
    def radius(self) -> float:
        """Standard deviations at which a Gaussian ends."""
        least = 1 / 255 if self.kind != MIXTURE else self.numbers[1] / 255
        return math.sqrt(-2 * math.log(least))


@dataclasses.dataclass(frozen=True)
class Header:
    """Of a part of a file; most files have one.

    Attributes:
        profile: "lossless", "fast", "compact" or "seeds".
        height, width: of the picture, pixels.
        steps: of quantised numbers; None if the profile is lossless, and seeds have others.
        renderer: how its Gaussians are drawn.
    """

    profile: str
    channels: int
    height: int
    width: int
    num_gaussians: int
    steps: Steps | None
    renderer: Renderer = Renderer()

    def pack(self) -> bytes:
        """Raises ValueError for what the format cannot hold."""
        self._check(ValueError)
        numbers = (self.channels, self.height, self.width, self.num_gaussians)
        kind, more = self.renderer.kind, self.renderer.numbers
        data = HEADER.pack(VERSION, kind, PROFILES.index(self.profile), *numbers)
        data += STEPS.pack(*dataclasses.astuple(self.steps)) if self.steps else b""
        return data + RENDERER[kind].pack(*more)

    @classmethod
    def unpack(cls, payload: bytes) -> "Header":
        if len(payload) < HEADER.size:
            raise FormatError("is damaged: its header is too short")
        version, kind, profile, channels, height, width, num = HEADER.unpack_from(payload)
        if version != VERSION or kind not in RENDERER or profile >= len(PROFILES):
            raise FormatError(
                f"has format version {version}, renderer {kind}, profile {profile}; this reader "
                f"knows {VERSION}, 0 to {len(RENDERER) - 1} and 0 to {len(PROFILES) - 1}; upgrade "
                "instantgi"
            )
        has_steps = PROFILES[profile] in ("fast", "compact")
        expected = HEADER.size + (STEPS.size if has_steps else 0) + RENDERER[kind].size
        if len(payload) != expected:
            raise FormatError(f"is damaged: a header of {len(payload)} bytes, not {expected}")
        steps = Steps(*STEPS.unpack_from(payload, HEADER.size)) if has_steps else None
        more = RENDERER[kind].unpack(payload[expected - RENDERER[kind].size :])
        renderer = Renderer(kind, tuple(more))
        header = cls(PROFILES[profile], channels, height, width, num, steps, renderer)
        header._check(FormatError)
        return header

    def _check(self, error: type[ValueError]) -> None:
        height, width = self.height, self.width
        sides = 1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE
        if not (sides and height * width <= MOST_PIXELS and 1 <= self.channels <= MOST_CHANNELS):
            raise error(
                f"holds a picture of {width}x{height} pixels in {self.channels} channels; the most "
                f"are sides of {LONGEST_SIDE}, {MOST_PIXELS} pixels and {MOST_CHANNELS} channels"
            )
        if self.num_gaussians > MOST_GAUSSIANS:
            raise error(f"holds {self.num_gaussians} Gaussians, more than {MOST_GAUSSIANS}")
        if self.steps:
            self.steps.check(error)
        if self.profile == "seeds" and self.renderer.kind != SUM:
            raise error("holds seeds that are not drawn as a sum")
        self.renderer.check(error)

    def kinds(self) -> tuple[bytes, ...]:
        """The chunks that each block has, in their order."""
        if self.profile == "seeds":
            return SEED_KINDS
        return kinds_of(self.channels) if self.steps else (FULL,)

    def lattice(self) -> tuple[int, int]:
        """Width and height of the lattice of means; of a lossless file, of the pixels."""
        return lattice_size(self.height, self.width, self.steps.position if self.steps else 1.0)


def lattice_size(height: int, width: int, step: float) -> tuple[int, int]:
    """Width and height of a lattice whose points are in the middle of cells of this side."""
    return max(1, math.ceil(width / step)), max(1, math.ceil(height / step))


class Box(NamedTuple):
    """A part of the plane, pixels; x_to and y_to are outside of it."""

    x_from: int
    y_from: int
    x_to: int
    y_to: int

    def meets(self, x: float, y: float, width: float, height: float) -> bool:
        across = self.x_from < x + width and x < self.x_to
        return across and self.y_from < y + height and y < self.y_to


class Block(NamedTuple):
    """Gaussians whose means lie in one rectangle of the lattice."""

    num_gaussians: int
    shown: Box | None  # where they show; None: anywhere
    origin: tuple[int, int]  # of the rectangle, (x, y)
    size: tuple[int, int]  # width and height

    def is_seen(self, part: tuple[float, float, float, float] | None) -> bool:
        """Whether it may show in a part (x, y, width, height) of the picture; None is all of it."""
        return part is None or self.shown is None or self.shown.meets(*part)


@dataclasses.dataclass(frozen=True)
class SeedsHeader:
    """How many numbers seeds have, and what is known of them, see `instantgi.context.Context`.

    Attributes:
        random_seed, num: of their grid.
        features, per_seed: of each.
        hidden: of the networks for colors, shapes and context.
        bases: steps of features, scalings and offsets, float32.
        longest, resolutions: of the context's hash grid.
    """

    random_seed: int
    num: int
    features: int
    per_seed: int
    hidden: tuple[int, int, int]
    bases: tuple[float, float, float]
    longest: int
    resolutions: tuple[int, ...]

    def pack(self) -> bytes:
        """Raises ValueError for what the format cannot hold."""
        self._check(ValueError)
        numbers = (self.random_seed, self.num, self.features, self.per_seed)
        levels = self.resolutions
        data = SEEDS.pack(*numbers, *self.hidden, *self.bases, self.longest, len(levels))
        return data + b"".join(RESOLUTION.pack(level) for level in levels)

    @classmethod
    def unpack(cls, payload: bytes) -> "SeedsHeader":
        levels = payload[SEEDS.size - 1] if len(payload) >= SEEDS.size else 0
        if len(payload) != SEEDS.size + levels * RESOLUTION.size:
            raise FormatError("is damaged: its header of seeds has the wrong length")
        random_seed, num, features, per_seed, *more = SEEDS.unpack_from(payload)
        hidden, bases, longest = more[:3], more[3:6], more[6]
        resolutions = RESOLUTION.iter_unpack(payload[SEEDS.size :])
        header = cls(
            random_seed,
            num,
            features,
            per_seed,
            (hidden[0], hidden[1], hidden[2]),
            (bases[0], bases[1], bases[2]),
            longest,
            tuple(level for (level,) in resolutions),
        )
        header._check(FormatError)
        return header

    def _check(self, error: type[ValueError]) -> None:
        limits = [
            ("seeds", 1, MOST_GAUSSIANS, (self.num,)),
            ("as random seed", 0, 2**32 - 1, (self.random_seed,)),
            ("features of a seed", 1, 255, (self.features,)),
            ("Gaussians of a seed", 1, 255, (self.per_seed,)),
            ("hidden values", 0, 512, self.hidden),
            ("nodes of a level", 1, 2**16, (self.longest,)),
            ("levels of a context", 0, 16, (len(self.resolutions),)),
            ("cells of a level", 1, 2**16, self.resolutions),
        ]
        for name, low, high, values in limits:
            for value in values:
                if not low <= value <= high:
                    raise error(f"holds {value} {name}, outside {low} to {high}")
        if not all(2**-16 <= base <= 2**16 for base in self.bases):
            raise error(f"holds steps of {self.bases}, outside 2^-16 to 2^16")

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of a seed: features, scalings, offsets."""
        return self.features, 4, 2 * self.per_seed

    def weight(self, block: Block) -> int:
        """Gaussians that take as long to decode as this block's, or as many as it has."""
        numbers, levels = sum(self.counts), len(self.resolutions)
        of_colors, of_shapes, of_context = self.hidden
        products = (of_colors + of_shapes) * (self.features + 4 * self.per_seed)
        products += of_context * (4 * levels + 2 * numbers + 3) + 64 * levels
        of_one = max(self.per_seed, numbers // NUMBERS_OF_ONE, products // PRODUCTS_OF_ONE)
        return block.size[0] * of_one

    def blocks(self) -> list[Block]:
        """Runs of seeds."""
        begins = range(0, self.num, SEEDS_PER_BLOCK)
        nums = [min(SEEDS_PER_BLOCK, self.num - begin) for begin in begins]
        return [
            Block(num * self.per_seed, None, (begin, 0), (num, 1))
            for begin, num in zip(begins, nums, strict=True)
        ]


def side_of_blocks(header: Header) -> int:
    """Of a new file: 0 where one block is enough."""
    width, height = header.lattice()
    num = header.num_gaussians
    if num <= PER_BLOCK + PER_BLOCK // 2:
        return 0
    return max(1, math.ceil(math.sqrt(width * height * (PER_BLOCK / num))))


def blocks_of(header: Header, payload: bytes | None) -> list[Block]:
    """The blocks row by row; one where there is no chunk that lists them.

    Raises:
        FormatError: if the list is not of this picture.
    """
    width, height = header.lattice()
    if payload is None:
        return [Block(header.num_gaussians, None, (0, 0), (width, height))]
    side = SIDE.unpack_from(payload)[0] if len(payload) >= SIDE.size else 0
    if side == 0 or -(-width // side) * -(-height // side) * BLOCK.size != len(payload) - SIDE.size:
        raise FormatError("is damaged: its list of blocks has the wrong length")
    rows = BLOCK.iter_unpack(payload[SIDE.size :])
    blocks = []
    for y in range(0, height, side):
        for x in range(0, width, side):
            num, *box = next(rows)
            blocks.append(
                Block(num, Box(*box), (x, y), (min(side, width - x), min(side, height - y)))
            )
    if sum(block.num_gaussians for block in blocks) != header.num_gaussians:
        raise FormatError("is damaged: its blocks hold another number of Gaussians")
    return blocks


def pack_blocks(side: int, counts: Ints, boxes: Ints) -> bytes:
    """The chunk that lists the blocks: counts [B], boxes [B, 4]."""
    rows = np.concatenate([counts[:, None], boxes], 1).tolist()
    return SIDE.pack(side) + b"".join(BLOCK.pack(*row) for row in rows)


def kinds_of(channels: int) -> tuple[bytes, ...]:
    """The kinds that Gaussians of so many channels have."""
    return KINDS if is_chroma(channels).any() else tuple(k for k in KINDS if k != b"CHRO")


def is_chroma(channels: int) -> np.ndarray:
    return np.arange(channels) % 3 > 0 if channels in (3, 4) else np.zeros(channels, bool)
