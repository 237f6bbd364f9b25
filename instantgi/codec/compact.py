"""The compact profile: quantised Gaussians as five payloads, each decoded with those before it.

Positions; sizes, given how close the neighbors in the list are; luma (and what is no color), given
the size; chroma, given luma; shapes, given the level of the color. Within a class symbols are coded
by one table, around one number.
"""

import numpy as np

from instantgi.codec.bitstream import FormatError, pack_number, unpack_number
from instantgi.codec.entropy import (
    Decoder,
    Ints,
    encode,
    signed_parts,
    take_signed,
)
from instantgi.codec.header import kinds_of
from instantgi.codec.positions import decode_positions, encode_positions
from instantgi.codec.quantize import (
    Quantised,
    columns,
    levels_of,
    with_columns,
    zeros,
)

CLASSES = 12  # at most, of a payload's symbols
RARE = 40  # symbols; a class of fewer joins the one below it


def encode_planes(quantised: Quantised, width: int, height: int) -> tuple[Quantised, list[bytes]]:
    """The Gaussians in the order in which they come back, and a payload of each kind.

    Args:
        width, height: of the lattice.
    """
    order, choices, parts = encode_positions(quantised.points, width, height)
    ordered = Quantised(*(field[order] for field in quantised))
    payloads = [pack_number(len(choices)) + choices + encode(parts)]
    for kind in kinds_of(quantised.colors.shape[1])[1:]:
        payloads.append(_encode_classes(columns(ordered, kind), _classes(ordered, kind)))
    return ordered, payloads


def decode_planes(
    num: int, channels: int, width: int, height: int, payloads: list[bytes]
) -> Quantised:
    """The Gaussians of all payloads, or of the first few: what is missing is 0.

    Raises:
        FormatError: if the payloads cannot be of so many.
    """
    made = zeros(num, channels)._replace(points=_decode_points(num, width, height, payloads[0]))
    for kind, payload in zip(kinds_of(channels)[1:], payloads[1:], strict=False):
        count = columns(made, kind).shape[1]
        made = with_columns(made, kind, _decode_classes(payload, _classes(made, kind), count))
    return made


def _classes(quantised: Quantised, kind: bytes) -> Ints:
    """A number [N] of each Gaussian, from what is decoded before this kind."""
    points, sizes, colors, _ = quantised
    if kind == b"SIZE":
        return _closeness(points)
    if kind == b"LUMA":
        return sizes
    return _bits(colors[:, :1]) if kind == b"CHRO" else levels_of(colors)


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
    length, begin = unpack_number(payload, 0)
    if length > len(payload) - begin:
        raise FormatError("is damaged: tables of positions are missing")
    decoder = Decoder(payload[begin + length :])
    choices = payload[begin : begin + length]
    points, used = decode_positions(num, width, height, choices, decoder)
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
            center = int(np.median(symbols)) if len(symbols) else 0
            code, coded = signed_parts(symbols - center)
            head += pack_number(2 * center if center >= 0 else -2 * center - 1) + bytes([code])
            parts += coded
    return bytes(head) + encode(parts)


def _decode_classes(payload: bytes, classes: Ints, num_planes: int) -> Ints:
    names, count = _merged(classes)
    heads, at = [], 0
    for _ in range(num_planes * count):
        center, at = unpack_number(payload, at)
        heads.append((center >> 1 ^ -(center & 1), payload[at : at + 1]))
        at += 1
    if at > len(payload):
        raise FormatError("is damaged: tables of a payload are missing")
    decoder, planes = Decoder(payload[at:]), np.zeros((len(classes), num_planes), np.int64)
    for i, (center, (code,)) in enumerate(heads):
        chosen = np.flatnonzero(names == i % count)
        planes[chosen, i // count] = take_signed(decoder, len(chosen), code) + center
    return planes
