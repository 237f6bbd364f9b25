"""The compact profile: quantised Gaussians as five payloads, each decoded with those before it.

Positions; sizes, given how close the neighbors in the list are; luma (and what is no color), given
the size; chroma, given luma; shapes, given the level of the color. Within a class symbols are coded
by one table, around one number.
"""

import struct
from collections.abc import Iterator

import numpy as np

from instantgi.codec.bitstream import FormatError
from instantgi.codec.entropy import (
    SIGNED,
    Decoder,
    Ints,
    Part,
    best_signed,
    encode,
    signed_table,
)
from instantgi.codec.positions import decode_positions, encode_positions
from instantgi.codec.quantize import Quantised, levels_of

CLASSES = 12  # at most, of a payload's symbols
RARE = 40  # symbols; a class of fewer joins the one below it
CENTER = struct.Struct("<hB")  # what symbols lie around, and their table
MOST_CHOICES = 1 << 10


def encode_planes(quantised: Quantised, width: int, height: int) -> tuple[Quantised, list[bytes]]:
    """The Gaussians in the order in which they come back, and the payloads.

    Args:
        width, height: of the lattice.
    """
    order, choices, parts = encode_positions(quantised.points, width, height)
    ordered = Quantised(*(field[order] for field in quantised))
    payloads = [len(choices).to_bytes(2, "little") + choices + encode(parts)]
    for planes, classes in _planes(ordered):
        payloads.append(_encode_classes(planes, classes))
    return ordered, payloads


def decode_planes(
    num: int, channels: int, width: int, height: int, payloads: list[bytes]
) -> Quantised:
    """The Gaussians of all payloads, or of the first few: what is missing is 0.

    Raises:
        FormatError: if the payloads cannot be of so many.
    """
    points = _decode_points(num, width, height, payloads[0])
    zeros = np.zeros((num, channels), np.int64)
    made = Quantised(points, np.zeros(num, np.int64), zeros, np.zeros((num, 2), np.int64))
    kept = _chroma(channels)
    for i, payload in enumerate(payloads[1:5]):
        classes = list(_planes(made))[i][1]
        if i == 0:
            made = made._replace(sizes=_decode_classes(payload, classes, 1)[:, 0])
        elif i == 3:
            made = made._replace(shapes=_decode_classes(payload, classes, 2))
        else:
            chosen, colors = kept if i == 2 else ~kept, made.colors.copy()
            colors[:, chosen] = _decode_classes(payload, classes, int(chosen.sum()))
            made = made._replace(colors=colors)
    return made


def _planes(quantised: Quantised) -> Iterator[tuple[Ints, Ints]]:
    """Symbols [N, P] of each payload after the first, and their classes [N] by what is known."""
    points, sizes, colors, shapes = quantised
    chroma = _chroma(colors.shape[1])
    yield sizes[:, None], _closeness(points)
    yield colors[:, ~chroma], sizes
    yield colors[:, chroma], _bits(colors[:, :1])
    yield shapes, levels_of(colors)


def _chroma(channels: int) -> np.ndarray:
    return np.arange(channels) % 3 > 0 if channels in (3, 4) else np.zeros(channels, bool)


def _closeness(points: Ints) -> Ints:
    """Bits of the squared distance to the closer neighbor in the list."""
    if len(points) < 2:
        return np.zeros(len(points), np.int64)
    apart = ((points[1:] - points[:-1]) ** 2).sum(1)
    closer = np.minimum(np.append(apart, apart[-1]), np.append(apart[0], apart))
    return _bits(closer[:, None])


def _bits(values: Ints) -> Ints:
    """How many bits the sum of the squares of each row has."""
    power = np.clip(np.abs(values), 0, 2**25).astype(np.float64) ** 2
    return np.frexp(power.sum(1))[1].astype(np.int64)


def _decode_points(num: int, width: int, height: int, payload: bytes) -> Ints:
    length = int.from_bytes(payload[:2], "little")
    if length > min(MOST_CHOICES, len(payload) - 2):
        raise FormatError("is damaged: tables of positions are missing")
    decoder = Decoder(payload[2 + length :])
    points, used = decode_positions(num, width, height, payload[2 : 2 + length], decoder)
    if used != length:
        raise FormatError("is damaged: more tables of positions than are used")
    return points


# --- symbols by classes ------------------------------------------------------------------------


def _merged(classes: Ints) -> tuple[Ints, int]:
    """Classes numbered from 0 such that none is rare, and how many; from the classes alone."""
    values, index, counts = np.unique(classes, return_inverse=True, return_counts=True)
    number, filled, names = 0, 0, np.zeros(len(values), np.int64)
    rare = max(RARE, len(classes) // CLASSES // 2)
    for i, count in enumerate(counts.tolist()):
        names[i] = number
        filled += count
        if filled >= rare and counts[i + 1 :].sum() >= rare and number + 1 < CLASSES:
            number, filled = number + 1, 0
    return names[index.reshape(-1)], number + 1


def _encode_classes(planes: Ints, classes: Ints) -> bytes:
    names, count = _merged(classes)
    head, parts = bytearray(), []
    for plane in planes.T:
        for name in range(count):
            symbols = plane[names == name]
            center = int(np.clip(np.median(symbols), -32768, 32767)) if len(symbols) else 0
            index = best_signed(symbols - center) if len(symbols) else 0
            head += CENTER.pack(center, index)
            parts.append(Part(symbols - center, signed_table(index)))
    return bytes(head) + encode(parts)


def _decode_classes(payload: bytes, classes: Ints, num_planes: int) -> Ints:
    names, count = _merged(classes)
    length = num_planes * count * CENTER.size
    if len(payload) < length:
        raise FormatError("is damaged: tables of a payload are missing")
    heads = list(CENTER.iter_unpack(payload[:length]))
    decoder, planes = Decoder(payload[length:]), np.zeros((len(classes), num_planes), np.int64)
    for i, (center, index) in enumerate(heads):
        if index >= SIGNED:
            raise FormatError(f"is damaged: there is no table {index}")
        chosen = np.flatnonzero(names == i % count)
        symbols = decoder.take(len(chosen), signed_table(index)) + center
        planes[chosen, i // count] = symbols
    return planes
