"""What a file says of itself, without decoding its Gaussians."""

import contextlib
import dataclasses
import functools
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

from instantgi.codec.bitstream import AGAIN, Chunk, FormatError, Frame, frames, may_be_skipped
from instantgi.codec.header import (
    MIXTURE,
    SUM,
    Block,
    Header,
    Renderer,
    SeedsHeader,
    Steps,
    blocks_of,
)
from instantgi.files import read_bytes
from instantgi.gaussians import MOST_GAUSSIANS

HEAD, PARTS, GRID, PADDING = b"HEAD", b"PART", b"GRID", b"padd"
SEED, NETS = b"SEED", b"NETS"  # of the profile of seeds
NUM_PARTS = struct.Struct("<B")
MOST_PARTS = 32
LUMA_PLANE = 3  # chunks of a block, up to the first of its colors
PER_BYTE, PER_BYTE_OF_SEEDS = 2, 8  # see `per_byte`
METADATA = {"software": b"soft", "recipe": b"recp", "icc": b"icc ", "exif": b"exif"}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says besides its Gaussians.

    Attributes:
        software: the program that wrote it.
        recipe: how the Gaussians were made, as JSON has it.
        icc: the color profile that the values follow; without one they are sRGB.
        exif: as cameras write it, without the orientation, which is applied.
    """

    software: str | None = None
    recipe: dict[str, Any] | None = None
    icc: bytes | None = None
    exif: bytes | None = None

    def chunks(self) -> list[Chunk]:
        values = {
            "software": self.software and self.software.encode(),
            "recipe": self.recipe and json.dumps(self.recipe, allow_nan=False).encode(),
            "icc": self.icc,
            "exif": self.exif,
        }
        return [Chunk(METADATA[name], value) for name, value in values.items() if value]

    @classmethod
    def of(cls, chunks: dict[bytes, bytes]) -> "Metadata":
        """What cannot be read is not there: it is no reason to refuse a picture."""
        software = chunks.get(METADATA["software"])
        recipe = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(chunks.get(METADATA["recipe"], b"null"))
            json.dumps(found, allow_nan=False)
            recipe = found
        return cls(
            software.decode("utf-8", "replace") if software else None,
            recipe if isinstance(recipe, dict) else None,
            chunks.get(METADATA["icc"]),
            chunks.get(METADATA["exif"]),
        )


def software() -> Metadata:
    """Of files that this version writes."""
    from instantgi import __version__

    return Metadata(f"instantgi {__version__}")


Bytes = bytes | bytearray | memoryview


class Part:
    """What lies behind one header: Gaussians in blocks.

    Attributes:
        header, blocks: as written.
        planes: the chunks of each block that has Gaussians, as far as they are there.
        num_planes: how many there are in the whole file.
        is_whole: whether all are there.
        seeds, networks: in the profile of seeds, its second header and its networks.
    """

    header: Header
    blocks: list[Block]
    planes: dict[int, list[Frame]]
    num_planes: int
    is_whole: bool

    def __init__(self, header: Header, needed: list[Frame], data: bytes):
        self.header = header
        self.seeds: SeedsHeader | None = None
        self.networks: Frame | None = None
        if header.profile == "seeds":
            self.seeds, self.networks = _seeds_of(header, needed, data)
            self.blocks = self.seeds.blocks() if self.seeds and self.networks else []
        else:
            grid = needed.pop(0).payload(data) if needed and needed[0].type == GRID else None
            self.blocks = blocks_of(header, grid)
        filled = [i for i, block in enumerate(self.blocks) if block.num_gaussians]
        self.planes: dict[int, list[Frame]] = {i: [] for i in filled}
        expected = ((kind, i) for kind in header.kinds() for i in filled)
        for frame in needed:
            kind, i = next(expected, (b"", 0))
            if frame.type != kind:
                name = frame.type.decode("latin-1")
                raise FormatError(
                    f"is damaged: a chunk {name!r} where {kind.decode() or 'none'!r} is expected"
                )
            self.planes[i].append(frame)
        self.num_planes = len(filled) * len(header.kinds())
        is_empty = header.profile == "seeds" and self.networks is None
        self.is_whole = len(needed) == self.num_planes and not is_empty

    def present(self) -> int:
        """Gaussians of which something is there, or as many as take as long as what is there."""
        present = [self.blocks[i] for i, found in self.planes.items() if found]
        if self.seeds:
            return sum(self.seeds.weight(block) for block in present)
        return sum(block.num_gaussians for block in present)

    def least_planes(self, is_behind: bool) -> int:
        """Chunks that a block must have to be shown, behind another part or as the first.

        Of a level its luma: gray would hide what the levels before show. Of a stage all: in an
        average, Gaussians that are round so far push those aside that have their shapes.
        """
        num = len(self.header.kinds())
        if not is_behind:
            return 1
        return num if self.header.renderer.kind == MIXTURE else min(LUMA_PLANE, num)

    def shows(self) -> bool:
        """Whether any block of it does, behind another part."""
        least = self.least_planes(is_behind=True)
        return self.is_whole or any(len(found) >= least for found in self.planes.values())


def _seeds_of(
    header: Header, needed: list[Frame], data: bytes
) -> tuple[SeedsHeader | None, Frame | None]:
    """The two chunks before those of the seeds' numbers, as far as they are there."""
    found = [needed.pop(0) for _ in needed[:2]]
    if [frame.type for frame in found] != [SEED, NETS][: len(found)]:
        raise FormatError("is damaged: what its seeds have in common is missing")
    if not found:
        return None, None
    seeds = SeedsHeader.unpack(found[0].payload(data))
    if seeds.num * seeds.per_seed != header.num_gaussians:
        raise FormatError("is damaged: its seeds have another number of Gaussians")
    return seeds, found[1] if len(found) > 1 else None


def per_byte(header: Header) -> int:
    """Gaussians at most, of those whose first chunk is there.

    What counts as a Gaussian of seeds, see `SeedsHeader.weight`, is decoded in up to 0.25 kB, its
    numbers being only 32 bits wide until they are float32: a byte of a file takes 2 kB at most.
    """
    return PER_BYTE_OF_SEEDS if header.profile == "seeds" else PER_BYTE


class Index:
    """What a file holds: its header, and where the rest lies.

    Attributes:
        parts: one, or the stages of a mixture, or levels from coarse to fine.
        profile: "lossless", "fast", "compact" or "seeds".
        height, width: of the picture, pixels.
        channels, num_gaussians: how many.
        steps: of the quantised numbers of the last part; None if the profile is lossless
            or seeds.
        renderer: of all parts, in its last one.
        is_whole: False for the beginning of a file.
        num_bytes: of the file.
    """

    parts: list[Part]
    profile: str
    height: int
    width: int
    channels: int
    num_gaussians: int
    num_parts: int
    steps: Steps | None
    renderer: Renderer
    is_whole: bool
    num_bytes: int

    def __init__(self, file: str | os.PathLike[str] | Bytes, *, whole: bool = True):
        file = bytes(file) if isinstance(file, (bytearray, memoryview)) else file
        self._name = "the file" if isinstance(file, bytes) else str(file)
        self._data = file if isinstance(file, bytes) else read_bytes(file, "file")
        with self._named():
            self._frames, end = frames(self._data, whole=whole)
            self.num_bytes = len(self._data) if end is None else end
            if not self._frames or self._frames[0].type != HEAD:
                raise FormatError(f"is damaged: it has no header; {AGAIN}")
            self.parts = self._find_parts()
            present = sum(part.present() for part in self.parts)
            most = per_byte(self.parts[0].header)
            if present > most * self.num_bytes:  # bounds the memory that decoding takes
                raise FormatError(f"is damaged: {present} Gaussians in {self.num_bytes} bytes")
            last = self.parts[-1].header
            self.num_parts = NUM_PARTS.unpack(self._parts_chunk())[0]
            incomplete = len(self.parts) < self.num_parts
            if len(self.parts) > self.num_parts or (end is not None and incomplete):
                raise FormatError(f"is damaged: {len(self.parts)} of {self.num_parts} parts")
            for part in self.parts[:-1]:
                if not part.is_whole:
                    raise FormatError("is damaged: a part ends early, and another follows")
            if not whole and len(self.parts) > 1 and not self.parts[-1].shows():
                self.parts.pop()  # nothing to show yet, but a size, and as a level its lowest value
                last, end = self.parts[-1].header, None
        self.profile, self.steps, self.renderer = last.profile, last.steps, last.renderer
        self.height, self.width, self.channels = last.height, last.width, last.channels
        self.num_gaussians = sum(part.header.num_gaussians for part in self.parts)
        self.is_whole = end is not None and self.parts[-1].is_whole
        if whole and not self.is_whole:
            found = sum(len(planes) for planes in self.parts[-1].planes.values())
            with self._named():
                raise FormatError(f"is damaged: {found} of {self.parts[-1].num_planes} chunks")

    def _parts_chunk(self) -> bytes:
        """How many parts there are; one where nothing says so."""
        for frame in self._frames:
            if frame.type == PARTS:
                payload = frame.payload(self._data)
                if len(payload) != NUM_PARTS.size:
                    raise FormatError("is damaged: its number of parts has the wrong length")
                return payload
        return NUM_PARTS.pack(1)

    def _find_parts(self) -> list[Part]:
        headers, needed = [], []
        for i, frame in enumerate(self._frames):
            if frame.type == HEAD:
                headers.append(Header.unpack(frame.payload(self._data)))
                needed.append([])
                if len(headers) > MOST_PARTS:
                    raise FormatError(f"is damaged: more than {MOST_PARTS} parts")
            elif frame.type == PARTS and i != 1:
                raise FormatError("is damaged: its number of parts stands elsewhere")
            elif frame.type != PARTS and not may_be_skipped(frame.type):
                needed[-1].append(frame)
        check_parts(headers, FormatError)
        parts = zip(headers, needed, strict=True)
        return [Part(header, frames, self._data) for header, frames in parts]

    @property
    def blocks(self) -> list[Block]:
        """Rectangles of the picture, each decoded on its own, of all parts."""
        return [block for part in self.parts for block in part.blocks]

    @functools.cached_property
    def metadata(self) -> Metadata:
        """Raises FormatError if it is damaged."""
        with self._named():
            return Metadata.of(
                {
                    frame.type: frame.payload(self._data)
                    for frame in self._frames
                    if frame.type in METADATA.values()
                }
            )

    def damaged(self) -> list[str]:
        """Types of the chunks that are there and whose checksum is wrong."""
        wrong = []
        for frame in self._frames:
            try:
                frame.payload(self._data)
            except FormatError:
                wrong.append(frame.type.decode("latin-1").strip())
        return wrong

    def bytes_of_chunks(self) -> dict[str, int]:
        """Bytes of payload by the type of chunk."""
        counted: dict[str, int] = {}
        for frame in self._frames:
            name = frame.type.decode("latin-1").strip()
            counted[name] = counted.get(name, 0) + frame.length
        return counted

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            raise FormatError(f"{self._name}: {error}") from None


def check_parts(headers: list[Header], error: type[ValueError]) -> None:
    """Whether parts with these headers make one picture."""
    first = headers[0]
    if len(headers) > MOST_PARTS:
        raise error(f"holds more than {MOST_PARTS} parts")
    for header, finer in zip(headers, headers[1:], strict=False):
        if header.height > finer.height or header.width > finer.width:
            raise error("holds a level that is larger than the next")
    if sum(header.num_gaussians for header in headers) > MOST_GAUSSIANS:
        raise error(f"holds more than {MOST_GAUSSIANS} Gaussians")
    for header in headers[1:]:
        kind, before = header.renderer.kind, first.renderer
        same = (header.channels, header.profile) == (first.channels, first.profile)
        if kind == MIXTURE:
            same &= (header.height, header.width) == (first.height, first.width)
            same &= header.renderer == before
        if not same or kind != before.kind or kind == SUM:
            raise error("is damaged: its parts do not belong to one picture")
