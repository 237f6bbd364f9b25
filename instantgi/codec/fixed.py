"""The fast profile: every number of a kind in the same few bits, as many as the largest needs."""

import struct

import numpy as np

from instantgi.codec.bitstream import FormatError
from instantgi.codec.entropy import Ints
from instantgi.codec.header import kinds_of
from instantgi.codec.quantize import Quantised, columns, with_columns, zeros

COLUMN = struct.Struct("<iB")  # the smallest number; bits of each, on top of it
MOST_BITS = 32


def encode_fixed(quantised: Quantised) -> list[bytes]:
    """A payload of each kind; the Gaussians keep their order."""
    return [
        b"".join(_pack(column) for column in columns(quantised, kind).T)
        for kind in kinds_of(quantised.colors.shape[1])
    ]


def decode_fixed(num: int, channels: int, payloads: list[bytes]) -> Quantised:
    """The Gaussians of all payloads, or of the first few: what is missing is 0.

    Raises:
        FormatError: if the payloads cannot be of so many.
    """
    made = zeros(num, channels)
    for kind, payload in zip(kinds_of(channels), payloads, strict=False):
        numbers, at = columns(made, kind).copy(), 0
        for column in numbers.T:
            column[:], at = _unpack(payload, at, num)
        if at != len(payload):
            raise FormatError("is damaged: more bits than its numbers need")
        made = with_columns(made, kind, numbers)
    return made


def _pack(column: Ints) -> bytes:
    low = int(column.min(initial=2**31 - 1)) if len(column) else 0
    above = column - low
    bits = int(above.max(initial=0)).bit_length()
    places = above[:, None] >> np.arange(bits - 1, -1, -1) & 1
    return COLUMN.pack(low, bits) + np.packbits(places.astype(np.uint8)).tobytes()


def _unpack(payload: bytes, at: int, num: int) -> tuple[Ints, int]:
    """A column that begins there, and where it ends."""
    low, bits = COLUMN.unpack_from(payload, at) if at + COLUMN.size <= len(payload) else (0, 64)
    begin = at + COLUMN.size
    end = begin + (num * bits + 7) // 8
    if bits > MOST_BITS or end > len(payload):
        raise FormatError("is damaged: its numbers have too few bits")
    packed = np.frombuffer(payload, np.uint8, end - begin, begin)
    places = np.unpackbits(packed, count=num * bits).reshape(num, bits)
    return places @ (1 << np.arange(bits - 1, -1, -1)) + low, end
