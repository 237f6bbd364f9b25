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
AGAIN = "ask for the file again"


class FormatError(ValueError):
    """A file that is damaged, or none of ours."""


def pack_number(number: int) -> bytes:
    """A number of at least 0 as LEB128: seven bits a byte, the lowest first."""
    packed = bytearray()
    while number >= 128:
        packed.append(number & 127 | 128)
        number >>= 7
    return bytes([*packed, number])


def unpack_number(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, of at most five bytes, and where it ends."""
    number = 0
    for i, byte in enumerate(data[at : at + 5]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, at + i + 1
    raise FormatError("is damaged: a number has no end")


class Chunk(NamedTuple):
    """A lower-case first letter marks one that a reader may skip."""

    type: bytes  # four letters
    payload: bytes


def pack(chunks: Iterable[Chunk]) -> bytes:
    """A whole file; the chunk that ends it is added."""
    parts = [SIGNATURE]
    for chunk in (*chunks, Chunk(END, b"")):
        assert len(chunk.type) == TYPE
        checksum = zlib.crc32(chunk.type + chunk.payload)
        parts += [FRAME.pack(len(chunk.payload), chunk.type), chunk.payload]
        parts.append(checksum.to_bytes(CHECKSUM, "little"))
    return b"".join(parts)


def may_be_skipped(kind: bytes) -> bool:
    return kind[:1].islower()


class Frame(NamedTuple):
    """Where a chunk lies; its payload is not looked at yet."""

    type: bytes
    begin: int  # of the payload
    length: int

    def payload(self, data: bytes) -> bytes:
        """Raises FormatError if the checksum is wrong."""
        end = self.begin + self.length
        payload = bytes(data[self.begin : end])
        stored = int.from_bytes(data[end : end + CHECKSUM], "little")
        if zlib.crc32(self.type + payload) != stored:
            name = self.type.decode("latin-1").strip()
            raise FormatError(f"is damaged: the checksum of its chunk {name!r} is wrong; {AGAIN}")
        return payload


def frames(data: bytes, *, whole: bool = True) -> tuple[list[Frame], int | None]:
    """The chunks of a file, without the one that ends it; where that ends, None without it.

    Args:
        whole: False takes the whole chunks of a file that ends early.

    Raises:
        FormatError: if it is no such file, or ends early.
    """
    if data[: len(SIGNATURE)] != SIGNATURE:
        why = "begins otherwise" if data else "is empty"
        raise FormatError(f"is not a file of Gaussians: it {why}; instantgi encode makes one")
    found, at = [], len(SIGNATURE)
    while len(found) < MAX_CHUNKS:
        left = len(data) - at - FRAME.size - CHECKSUM
        if left < 0:
            break
        length, kind = FRAME.unpack_from(data, at)
        if length > left:
            break
        frame = Frame(kind, at + FRAME.size, length)
        if kind == END and length == 0:
            frame.payload(data)
            return found, frame.begin + CHECKSUM
        found.append(frame)
        at = frame.begin + length + CHECKSUM
    if whole:
        raise FormatError(
            f"is damaged: it ends early, after {len(found)} chunks; copy it again, or draw what is "
            "there with decode or view --partial"
        )
    return found, None


def unpack(data: bytes, *, whole: bool = True) -> list[Chunk]:
    """All chunks, checked; see `frames`."""
    return [Chunk(frame.type, frame.payload(data)) for frame in frames(data, whole=whole)[0]]
