"""Gaussians ↔ the bytes of a file; docs/format.md is the specification."""

import dataclasses
import os
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.codec import quantize, seeds
from instantgi.codec.bitstream import Chunk, FormatError, pack
from instantgi.codec.compact import decode_planes, encode_planes
from instantgi.codec.fixed import decode_fixed, encode_fixed
from instantgi.codec.header import (
    FARTHEST,
    LEVEL,
    MIXTURE,
    PROFILES,
    Block,
    Header,
    Renderer,
    Steps,
    blocks_of,
    pack_blocks,
    side_of_blocks,
)
from instantgi.codec.index import (
    GRID,
    HEAD,
    NETS,
    NUM_PARTS,
    PADDING,
    PARTS,
    SEED,
    Bytes,
    Index,
    Metadata,
    Part,
    check_parts,
    per_byte,
    software,
)
from instantgi.codec.quantize import Quantised
from instantgi.gaussians import FIELDS, Gaussians, check_size
from instantgi.points.seeds import SeedGrid
from instantgi.render.draw import draw_part
from instantgi.representations import (
    Level,
    Levels,
    Mixture,
    Representation,
    Seeds,
    Splats,
    check_kind,
    flat,
)

GRAY = 0.25  # of colors times size, until colors are known


# --- writing -----------------------------------------------------------------------------------


def encode(
    made: Representation,
    height: int,
    width: int,
    *,
    profile: str = "compact",
    steps: Steps | None = None,
    metadata: Metadata | None = None,
) -> bytes:
    """A file of Gaussians, a mixture, levels, or seeds.

    Args:
        height, width: of the picture, in pixels.
        profile: "lossless" keeps every bit of float32; "fast" and "compact" round numbers to the
            steps, bring means outside of the picture to its border, and hold them in fixed
            numbers of bits or entropy coded. "seeds" is for seeds that are rounded, and loses
            nothing of them; all others hold the Gaussians that they make.
        steps: of the rounding, by default for as many Gaussians; without meaning if lossless.
            `encode_image` loses less of a picture at the same size: it fits Gaussians to being
            rounded.
        metadata: by default only the name of this program.

    Raises:
        ValueError: if the format cannot hold them.
    """
    check_kind(made)
    check_size(height, width)
    if metadata is not None and not isinstance(metadata, Metadata):
        raise ValueError(
            f"metadata must be instantgi.codec.Metadata, got {type(metadata).__name__}"
        )
    if profile not in PROFILES:
        raise ValueError(f'profile must be one of {", ".join(PROFILES)}, got "{profile}"')
    if isinstance(made, Splats):
        raise ValueError("no file holds splats in space; use another method")
    if profile == "seeds":
        return _encode_seeds(made, height, width, metadata)
    if isinstance(made, Seeds):
        made = made.flat()
    parts = [
        _numbers_of(gaussians, *size, profile, steps, renderer)
        for gaussians, size, renderer in _split(made, height, width)
    ]
    return _write(parts, metadata)


def _encode_seeds(
    made: Representation, height: int, width: int, metadata: Metadata | None
) -> bytes:
    if not isinstance(made, Seeds):
        raise ValueError("the profile of seeds is for what method sgi makes; use compact")
    made = made.detach().to("cpu")
    if (made.height, made.width) != (height, width):
        raise ValueError(f"the seeds are of {made.width}x{made.height}, not {width}x{height}")
    gaussians = made.flat()
    _expect_finite(gaussians)
    num, channels = gaussians.colors.shape
    header = Header("seeds", channels, height, width, num, None)
    more = seeds.header_of(made)
    chunks = [Chunk(HEAD, header.pack()), Chunk(SEED, more.pack())]
    chunks.append(Chunk(NETS, seeds.encode_networks(made)))
    by_block = seeds.encode_blocks(made)
    for i, kind in enumerate(header.kinds()):
        chunks += [Chunk(kind, payloads[i]) for payloads in by_block]
    chunks += (metadata or software()).chunks()
    counts = [more.weight(block) for block in more.blocks()]
    return _padded(chunks, counts, header, 1)


class Numbers(NamedTuple):
    """A part that is about to be written."""

    header: Header
    places: np.ndarray  # [N, 2] in the lattice, by which Gaussians fall into blocks
    gaussians: Gaussians  # that a reader will see
    stored: Quantised | np.ndarray


def _split(
    made: Gaussians | Mixture | Levels, height: int, width: int
) -> list[tuple[Gaussians, tuple[int, int], Renderer]]:
    """The parts of a file, each with its size and renderer."""
    if isinstance(made, Gaussians):
        return [(made, (height, width), Renderer())]
    if isinstance(made, Mixture):
        epsilon = float(np.float32(made.epsilon))
        renderer = Renderer(MIXTURE, (made.top_k, epsilon))
        begins = (0, *made.stages[:-1])
        stages = zip(begins, made.stages, strict=True)
        return [(made.gaussians[begin:end], (height, width), renderer) for begin, end in stages]
    last = made.levels[-1]
    if (last.height, last.width) != (height, width):
        raise ValueError(f"the last level is of {last.width}x{last.height}, not {width}x{height}")
    if any(level.is_published for level in made.levels):
        raise ValueError(
            "what the published kernels draw has no ellipses that a file could hold; use method lig"
        )
    return [
        (
            level.gaussians,
            (level.height, level.width),
            Renderer(LEVEL, (float(np.float32(level.low)), float(np.float32(level.high)))),
        )
        for level in made.levels
    ]


def _numbers_of(
    gaussians: Gaussians,
    height: int,
    width: int,
    profile: str,
    steps: Steps | None,
    renderer: Renderer,
) -> Numbers:
    _expect_finite(gaussians)
    if profile != "lossless":
        if steps is None:
            steps = Steps.for_density(len(gaussians) / (height * width))
            if renderer.kind == MIXTURE:  # half a decibel for a hundredth of the bytes
                steps = dataclasses.replace(steps, sizes=min(64, 2 * steps.sizes))
        steps.check()
        quantised = quantise(gaussians, height, width, steps)
        return _quantised_numbers(quantised, height, width, steps, profile, renderer)
    fields = [getattr(gaussians, name).detach().cpu() for name in FIELDS]
    if any(field.dtype != torch.float32 for field in fields):
        raise ValueError(f"lossless files hold float32, got {fields[0].dtype}; convert with .to()")
    num, channels = fields[2].shape
    header = Header(profile, channels, height, width, num, None, renderer)
    numbers = torch.cat(fields, 1).numpy()
    places = np.clip(np.floor(fields[0].double().numpy()), 0, np.array([width, height]) - 1)
    return Numbers(header, places.astype(np.int64), Gaussians(*fields), numbers)


def _expect_finite(gaussians: Gaussians) -> None:
    for name in FIELDS:
        if not getattr(gaussians, name).isfinite().all():
            raise ValueError(f"{name} has values that are not finite, which no file holds")


def _quantised_numbers(
    quantised: Quantised,
    height: int,
    width: int,
    steps: Steps,
    profile: str,
    renderer: Renderer,
) -> Numbers:
    num, channels = quantised.colors.shape
    header = Header(profile, channels, height, width, num, steps, renderer)
    everywhere = Block(num, None, (0, 0), header.lattice())
    _check_numbers(quantised, everywhere, steps, ValueError)
    gaussians = quantize.gaussians_of(quantised, steps)
    return Numbers(header, quantised.points, gaussians, quantised)


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


def encode_quantised(
    quantised: Quantised,
    height: int,
    width: int,
    steps: Steps,
    profile: str = "compact",
    metadata: Metadata | None = None,
) -> bytes:
    """A file of Gaussians that are integers already; `profile` is "fast" or "compact"."""
    check_size(height, width)
    return _write(
        [_quantised_numbers(quantised, height, width, steps, profile, Renderer())], metadata
    )


def _write(parts: list[Numbers], metadata: Metadata | None) -> bytes:
    check_parts([part.header for part in parts], ValueError)
    chunks, counts = [], []
    for part in parts:
        written, filled = _write_part(part)
        chunks += written
        counts += filled
        if len(parts) > 1 and part is parts[0]:
            chunks.insert(1, Chunk(PARTS, NUM_PARTS.pack(len(parts))))
    chunks += (metadata or software()).chunks()
    return _padded(chunks, counts, parts[0].header, 1 + (len(parts) > 1))


def _padded(chunks: list[Chunk], counts: list[int], header: Header, at: int) -> bytes:
    """A file with so many bytes before chunk `at` that no beginning of it is too short."""
    missing = _missing(chunks, counts, header)
    if missing > 0:
        chunks.insert(at, Chunk(PADDING, bytes(missing)))
    return pack(chunks)


def _write_part(part: Numbers) -> tuple[list[Chunk], list[int]]:
    """Its chunks, and the numbers of Gaussians of its blocks that have some."""
    header, places, gaussians, numbers = part
    chunks = [Chunk(HEAD, header.pack())]
    side = side_of_blocks(header)
    chosen = [np.arange(header.num_gaussians)]
    grid = None
    if side:
        width, height = header.lattice()
        across, down = -(-width // side), -(-height // side)
        block = places[:, 1] // side * across + places[:, 0] // side
        order = np.argsort(block, kind="stable")
        counts = np.bincount(block, minlength=across * down)
        chosen = np.split(order, np.cumsum(counts)[:-1])
        radius = header.renderer.radius
        boxes = np.array([_box(gaussians[torch.from_numpy(each)], radius) for each in chosen])
        grid = pack_blocks(side, counts, boxes)
        chunks.append(Chunk(GRID, grid))
    by_block = [
        _encode_block(header, block, numbers, each)
        for block, each in zip(blocks_of(header, grid), chosen, strict=True)
        if block.num_gaussians
    ]
    for i, kind in enumerate(header.kinds()):
        chunks += [Chunk(kind, payloads[i]) for payloads in by_block]
    return chunks, [len(each) for each in chosen if len(each)]


def _missing(chunks: list[Chunk], counts: list[int], header: Header) -> int:
    """Bytes by which a beginning of the file is too short for the Gaussians it has."""
    read, present, missing = 0, 0, 0
    remaining = iter(counts)
    for chunk in chunks:
        read += len(chunk.payload)
        if chunk.type == header.kinds()[0]:
            present += next(remaining)
            missing = max(missing, -(-present // per_byte(header)) - read)
    return missing


def _box(gaussians: Gaussians, radius: float) -> list[int]:
    """Where they show, px, rounded outwards."""
    if not len(gaussians):
        return [0, 0, 0, 0]
    means, cholesky = gaussians.means.double(), gaussians.cholesky.double()
    reach = radius * torch.stack([cholesky[:, 0].abs(), cholesky[:, 1:].norm(dim=1)], 1)
    low, high = (means - reach).min(0).values, (means + reach).max(0).values
    # float32 arithmetic of a rasterizer may see it a little larger
    low, high = (low - 1).floor(), (high + 1).ceil()
    return [int(value) for value in torch.cat([low, high]).clamp(-FARTHEST, FARTHEST)]


def _encode_block(
    header: Header, block: Block, numbers: Quantised | np.ndarray, chosen: np.ndarray
) -> list[bytes]:
    if isinstance(numbers, np.ndarray):
        return [np.ascontiguousarray(numbers[chosen].T).astype("<f4").tobytes()]
    local = Quantised(*(field[chosen] for field in numbers))
    local = local._replace(points=local.points - np.array(block.origin))
    if header.profile == "fast":
        return encode_fixed(local)
    return encode_planes(local, *block.size)[1]


# --- reading -----------------------------------------------------------------------------------


def open_file(file: str | os.PathLike[str] | Bytes, *, whole: bool = True) -> "File":
    """A file of Gaussians, or its bytes; its Gaussians are decoded when they are asked for.

    Args:
        whole: False also takes the beginning of a file: with what is missing it is coarser.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: if there is no file to read.
        FormatError: if it is no file of ours, of another version, or its header is damaged.
    """
    return File(file, whole=whole)


def decode(data: Bytes, *, whole: bool = True) -> Representation:
    """What a file holds, as it was encoded: float32 on the CPU, the same bits on every machine.

    Args:
        whole: False also takes the beginning of a file, from the positions on: without colors it
            is gray, without shapes its Gaussians are round; a mixture lacks its last stages and
            levels the finest.

    Raises:
        FormatError: if it is no file of ours, of another version, or damaged.
    """
    return File(data, whole=whole).made()


class File(Index):
    """A file, decoded as far as it is asked for."""

    def gaussians(self, part: tuple[float, float, float, float] | None = None) -> Gaussians:
        """All Gaussians in pixels of the picture, or those of the blocks that show in a part
        (x, y, width, height); of levels from fine to coarse. How they are drawn says `made`.

        Raises:
            FormatError: if the file is damaged there; without a part, if it is anywhere.
        """
        return flat(self.made(part))

    def made(self, part: tuple[float, float, float, float] | None = None) -> Representation:
        """What was encoded, or as much of it as a part (x, y, width, height) needs.

        Raises:
            FormatError: if the file is damaged there; without a part, if it is anywhere.
        """
        with self._named():
            if part is None:
                for frame in self._frames:
                    frame.payload(self._data)
            if self.profile == "seeds":
                return self._decode_seeds(self.parts[0])
            made = [
                self._decode_part(each, part, each.least_planes(is_behind=i > 0))
                for i, each in enumerate(self.parts)
            ]
        if self.renderer.kind == MIXTURE:
            top_k, epsilon = self.renderer.numbers
            # of a part of the picture a stage may have none
            counts = np.cumsum([len(gaussians) for gaussians in made]).tolist()
            stages = tuple(sorted({*counts} - ({0} if counts[-1] else set())))
            return Mixture(_joined(made), int(top_k), epsilon, stages)
        if self.renderer.kind == LEVEL:
            levels = zip(self.parts, made, strict=True)
            return Levels(tuple(_level(each.header, gaussians) for each, gaussians in levels))
        return made[0]

    def _decode_part(
        self, part: Part, shown: tuple[float, float, float, float] | None, least: int
    ) -> Gaussians:
        """Args: least: chunks that a block must have."""
        if (part.header.height, part.header.width) != (self.height, self.width):
            shown = None  # a coarser level is small, and its neighbors count too
        made = [
            self._decode_block(part, i)
            for i, block in enumerate(part.blocks)
            if len(part.planes.get(i, ())) >= least and (not self.is_whole or block.is_seen(shown))
        ]
        return _joined(made or [_no_gaussians(self.channels)])

    def _decode_seeds(self, part: Part) -> Representation:
        """Of the beginning of a file those seeds that are there."""
        header, more = part.header, part.seeds
        if more is None or part.networks is None:
            return _no_gaussians(self.channels)
        present = [i for i, found in part.planes.items() if found]
        held = sum(part.blocks[i].size[0] for i in present)
        if not held:
            return _no_gaussians(self.channels)
        grid = SeedGrid(more.num, header.height, header.width, more.random_seed, first=held)
        networks = part.networks.payload(self._data)
        colors, shapes, context = seeds.decode_networks(networks, more, grid, header.channels)
        numbers = np.zeros((held, sum(more.counts)), np.int32)
        turns = np.zeros((held, len(more.counts)), np.int64)
        for i in present:  # a beginning of all blocks: their chunks are in order
            payloads = [frame.payload(self._data) for frame in part.planes[i]]
            first, num = part.blocks[i].origin[0], part.blocks[i].size[0]
            some = slice(first, first + num)
            numbers[some], turns[some] = seeds.decode_block(context, grid, first, num, payloads)
        if held == more.num:
            grid = dataclasses.replace(grid, first=None)
        made = Seeds.from_symbols(
            grid,
            torch.from_numpy(numbers),
            colors,
            shapes,
            more.bases,
            context,
            torch.from_numpy(turns),
        )
        for gaussians in made.chunks():
            if not all(getattr(gaussians, name).isfinite().all() for name in FIELDS):
                raise FormatError("is damaged: a seed's Gaussian is not finite")
        return made

    def render(
        self,
        height: int | None = None,
        width: int | None = None,
        *,
        crop: tuple[int, int, int, int] | None = None,
    ) -> Float[Tensor, "C h w"]:
        """The picture, or a part (x, y, width, height) of it, at any size; see `draw_part`.

        Only blocks that show in the part are decoded; of seeds, all are.

        Raises:
            FormatError: if the file is damaged there.
            ValueError: if a size is not positive, or takes too long to draw.
        """
        part = (0, 0, self.width, self.height) if crop is None else tuple(crop)
        if len(part) != 4 or min(part[2:]) < 1:
            raise ValueError(f"crop must be (x, y, width, height) of at least a pixel, got {part}")
        height, width = part[3] if height is None else height, part[2] if width is None else width
        check_size(height, width)
        return draw_part(self.made(None if crop is None else part), part, height, width)

    def _decode_block(self, part: Part, i: int) -> Gaussians:
        block, header = part.blocks[i], part.header
        payloads = [frame.payload(self._data) for frame in part.planes[i]]
        if header.steps is None:
            return _lossless(block.num_gaussians, header.channels, payloads[0])
        if header.profile == "fast":
            quantised = decode_fixed(block.num_gaussians, header.channels, payloads)
        else:
            quantised = decode_planes(block.num_gaussians, header.channels, *block.size, payloads)
        _check_numbers(quantised, block, header.steps, FormatError)
        quantised = quantised._replace(points=quantised.points + np.array(block.origin))
        if len(payloads) < 3:  # no luma yet
            quantised = quantised._replace(colors=_gray(quantised, header.steps))
        return quantize.gaussians_of(quantised, header.steps)


def _no_gaussians(channels: int) -> Gaussians:
    return Gaussians(*(torch.zeros(0, k) for k in (2, 3, channels)))


def _joined(made: list[Gaussians]) -> Gaussians:
    return Gaussians(*(torch.cat([getattr(each, name) for each in made]) for name in FIELDS))


def _level(header: Header, gaussians: Gaussians) -> Level:
    low, high = header.renderer.numbers
    return Level(gaussians, header.height, header.width, low, high)


def _lossless(num: int, channels: int, payload: bytes) -> Gaussians:
    columns = 5 + channels
    if len(payload) != 4 * num * columns:
        raise FormatError(f"is damaged: {len(payload)} bytes of {num} Gaussians")
    numbers = np.frombuffer(payload, "<f4").reshape(columns, num).T.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise FormatError("is damaged: a number is not finite")
    fields = (numbers[:, :2], numbers[:, 2:5], numbers[:, 5:])
    return Gaussians(*(torch.from_numpy(np.ascontiguousarray(field)) for field in fields))


def _check_numbers(
    quantised: Quantised, block: Block, steps: Steps, error: type[ValueError]
) -> None:
    points, sizes, colors, shapes = quantised
    largest = quantize.LARGEST_SIZE * steps.sizes
    inside = (points >= 0).all() and (points < np.array(block.size)).all()
    most = max(abs(numbers).max(initial=0) for numbers in (colors, shapes))
    if not inside or abs(sizes).max(initial=0) > largest or most > quantize.LARGEST:
        raise error("is damaged: a position, size, color or shape is out of range")


def _gray(quantised: Quantised, steps: Steps) -> np.ndarray:
    """Half of the light and opaque, from Gaussians that overlap as they usually do."""
    colors = np.zeros_like(quantised.colors)
    sizes = quantize.sizes_of(quantised.sizes, steps)
    for channel, amount in ((0, GRAY), (3, 2 * GRAY)) if colors.shape[1] == 4 else ((0, GRAY),):
        colors[:, channel] = np.floor(np.minimum(amount * sizes / steps.luma, quantize.LARGEST))
    return colors
