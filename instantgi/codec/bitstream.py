"""The bytes of a file: a signature, then chunks with a length, a type and a checksum.

docs/format.md says what they mean. Bytes from a file are hostile: every length and checksum is
looked at before what it belongs to.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

SIGNATURE = b"\x89GI\r\n\x1a\n\0"
TYPE, CHECKSUM = 4, 4  # bytes
FRAME = struct.Struct("<I4s")  # length of the payload, type
END = b"END "
MAX_CHUNKS = 1 << 20


class FormatError(ValueError):
    """A file that is damaged, or none of ours."""


class Chunk(NamedTuple):
    """A lower-case first letter marks one that a reader may skip."""

    type: bytes  # four letters
    payload: bytes

    @property
    def may_be_skipped(self) -> bool:
        return self.type[:1].islower()


def pack(chunks: Iterable[Chunk]) -> bytes:
    """A whole file; the chunk that ends it is added."""
    parts = [SIGNATURE]
    for chunk in (*chunks, Chunk(END, b"")):
        assert len(chunk.type) == TYPE
        checksum = zlib.crc32(chunk.type + chunk.payload)
        parts += [FRAME.pack(len(chunk.payload), chunk.type), chunk.payload]
        parts.append(checksum.to_bytes(CHECKSUM, "little"))
    return b"".join(parts)


def unpack(data: bytes, *, whole: bool = True) -> list[Chunk]:
    """The chunks of a file, without the one that ends it.

    Args:
        whole: False takes the whole chunks of a file that ends early.

    Raises:
        FormatError: if it is no such file, a chunk is damaged, or it ends early.
    """
    if data[: len(SIGNATURE)] != SIGNATURE:
        raise FormatError("is not a file of Gaussians: it begins otherwise")
    chunks, at = [], len(SIGNATURE)
    while len(chunks) < MAX_CHUNKS:
        left = len(data) - at - FRAME.size - CHECKSUM
        if left < 0:
            break
        length, kind = FRAME.unpack_from(data, at)
        if length > left:
            break
        begin = at + FRAME.size
        payload, end = data[begin : begin + length], begin + length
        stored = int.from_bytes(data[end : end + CHECKSUM], "little")
        if zlib.crc32(kind + payload) != stored:
            raise FormatError(f"is damaged: the checksum of chunk {len(chunks)} is wrong")
        if kind == END:
            return chunks
        chunks.append(Chunk(kind, bytes(payload)))
        at = end + CHECKSUM
    if whole:
        raise FormatError(f"is damaged: it ends early, after {len(chunks)} chunks")
    return chunks
