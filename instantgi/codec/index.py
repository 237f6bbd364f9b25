"""What a file says of itself, without decoding its Gaussians."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from typing import Any

from instantgi.codec.bitstream import Chunk, FormatError, Frame, frames, may_be_skipped
from instantgi.codec.header import Header, blocks_of
from instantgi.files import read_bytes

HEAD, GRID, PADDING = b"HEAD", b"GRID", b"padd"
PER_BYTE = 2  # Gaussians, at most, of those whose first chunk is there
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


class Index:
    """What a file holds: its header, and where the rest lies.

    Attributes:
        profile: "lossless", "fast" or "compact".
        height, width: of the picture, pixels.
        channels, num_gaussians: how many.
        steps: of the quantised numbers; None if the profile is lossless.
        blocks: rectangles of the picture, each decoded on its own.
        is_whole: False for the beginning of a file.
        num_bytes: of the file.
    """

    def __init__(self, file: str | os.PathLike | Bytes, *, whole: bool = True):
        file = bytes(file) if isinstance(file, (bytearray, memoryview)) else file
        self._name = "the file" if isinstance(file, bytes) else str(file)
        self._data = file if isinstance(file, bytes) else read_bytes(file, "file")
        with self._named():
            self._frames, end = frames(self._data, whole=whole)
            self.num_bytes = len(self._data) if end is None else end
            if not self._frames or self._frames[0].type != HEAD:
                raise FormatError("is damaged: it has no header")
            self.header = header = Header.unpack(self._frames[0].payload(self._data))
            self.profile, self.steps = header.profile, header.steps
            self.height, self.width = header.height, header.width
            self.channels, self.num_gaussians = header.channels, header.num_gaussians
            needed = [frame for frame in self._frames[1:] if not may_be_skipped(frame.type)]
            grid = None
            if needed and needed[0].type == GRID:
                grid = needed.pop(0).payload(self._data)
            self.blocks = blocks_of(self.header, grid)
            self._planes = self._assign(needed)
            present = sum(
                self.blocks[i].num_gaussians for i, found in self._planes.items() if found
            )
            if present > PER_BYTE * self.num_bytes:  # bounds the memory that decoding takes
                raise FormatError(f"is damaged: {present} Gaussians in {self.num_bytes} bytes")
        self.is_whole = end is not None and len(needed) == self._num_planes()
        if whole and not self.is_whole:
            with self._named():
                raise FormatError(f"is damaged: {len(needed)} of {self._num_planes()} chunks")

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

    def _num_planes(self) -> int:
        filled = sum(block.num_gaussians > 0 for block in self.blocks)
        return filled * len(self.header.kinds())

    def _assign(self, needed: list[Frame]) -> dict[int, list[Frame]]:
        """The chunks of each block: kind by kind, in each the blocks that have Gaussians."""
        filled = [i for i, block in enumerate(self.blocks) if block.num_gaussians]
        planes: dict[int, list[Frame]] = {i: [] for i in filled}
        expected = ((kind, i) for kind in self.header.kinds() for i in filled)
        for frame in needed:
            kind, i = next(expected, (b"", 0))
            if frame.type != kind:
                name = frame.type.decode("latin-1")
                raise FormatError(
                    f"is damaged: a chunk {name!r} where {kind.decode() or 'none'!r} is expected"
                )
            planes[i].append(frame)
        return planes
