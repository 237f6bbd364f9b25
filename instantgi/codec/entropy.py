"""Integers as bytes and back: rANS with tables of integers, which are the same on every machine.

A table says how often each symbol occurs among 2^24; docs/format.md says how it is made. The coder
is constriction's `AnsCoder`.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from instantgi.codec.bitstream import FormatError, pack_number, unpack_number

PRECISION = 24  # bits; frequencies of a table add up to 2^24
REACH = 127  # signed tables hold −127 … 127; their outermost two say "beyond"
LEVELS = 32  # deviations 2^((level − 8) / 4): 0.25 to 54
FAMILIES = 2  # Laplace, Gaussian
SIGNED = FAMILIES * LEVELS  # tables of signed numbers
SHIFTS = 4  # a code is shift · SIGNED + table: 2 · shift lower bits are coded as they are
LARGEST_LEVEL = 44  # that a table holds: a deviation of 32
ESCAPE = 32  # bits of a number beyond a table
EVENNESS = 12  # of split tables: powers 0, 1/4, … 11/4 of the binomial coefficients
WORD = 4  # bytes of a word of the coder

Ints = NDArray[np.int64]


class Table(NamedTuple):
    """Which symbols there are and how often; equal tables are one object."""

    frequencies: tuple[int, ...]  # each at least 1, their sum 2^PRECISION
    lowest: int  # the first symbol
    has_beyond: bool  # whether the first and the last stand for anything further out


class Part(NamedTuple):
    """Symbols that are coded one after the other by the same table."""

    symbols: Ints  # [n]
    table: Table


@functools.cache
def signed_table(index: int) -> Table:
    """Numbers around 0: of family index // LEVELS and level index % LEVELS."""
    family, level = divmod(index, LEVELS)
    place = np.abs(np.arange(-REACH, REACH + 1)).astype(np.float64)
    deviation = 2.0 ** ((level - 8) // 4) * ROOTS[(level - 8) % 4]
    if family == 0:
        density = _exp_minus(place * (ROOT_OF_TWO / deviation))
    else:
        density = _exp_minus(place * place / (2 * deviation * deviation))
    free = 2**PRECISION - len(place)
    shares = np.floor(density * (free / density.cumsum()[-1])).astype(np.int64)
    shares[REACH] += free - int(shares.sum())
    return Table(tuple((shares + 1).tolist()), -REACH, True)


ROOT_OF_TWO = 1.4142135623730951
ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # 2^(i / 4)
LN_2 = 0.6931471805599453


def _logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + e^x) for x ≥ 0."""
    tail = _exp_minus(x)
    return tail / (1.0 + tail)


@functools.cache
def logistic_table(level: int, eighths: int) -> Table:
    """Numbers around a mean of −4/8 to 3/8, with a logistic distribution of this deviation."""
    deviation = 2.0 ** ((level - 24) // 4) * ROOTS[(level - 24) % 4]
    place = np.arange(-REACH, REACH + 1) - eighths / 8
    low, high = np.abs(place) - 0.5, np.abs(place) + 0.5
    # the mass of a step is the difference of what lies beyond its two ends; around 0 on both sides
    near = np.where(low >= 0, _logistic(np.abs(low) / deviation), 0.0)
    middle = 1.0 - _logistic(high / deviation) - _logistic(np.abs(low) / deviation)
    far = near - _logistic(high / deviation)
    return _table_of(np.where(low >= 0, far, middle))


def _table_of(density: NDArray[np.float64]) -> Table:
    free = 2**PRECISION - len(density)
    shares = np.floor(density * (free / density.cumsum()[-1])).astype(np.int64)
    shares[REACH] += free - int(shares.sum())
    return Table(tuple((shares + 1).tolist()), -REACH, True)


def logistic_parts(numbers: Ints, means: Ints, levels: Ints) -> list[Part]:
    """Numbers with logistic distributions of their own, table by table.

    Args:
        means: in eighths.
        levels: of their deviations, 0 to 63, see `Context`.
    """
    numbers, parts = numbers.reshape(-1), []
    for shift, level, eighths, places, centers in _by_table(means, levels):
        chosen = numbers[places]
        parts.append(Part((chosen >> shift) - centers, logistic_table(level, eighths)))
        if shift:
            parts.append(Part(chosen & (1 << shift) - 1, even_table(shift)))
    return parts


def take_logistic(decoder: "Decoder", means: Ints, levels: Ints) -> Ints:
    """The next numbers that `logistic_parts` gave these means and levels, in their shape."""
    numbers = np.zeros(means.size, np.int64)
    for shift, level, eighths, places, centers in _by_table(means, levels):
        found = decoder.take(len(places), logistic_table(level, eighths)) + centers
        if shift:
            found = (found << shift) + decoder.take(len(places), even_table(shift))
        numbers[places] = found
    return numbers.reshape(means.shape)


def _by_table(means: Ints, levels: Ints) -> Iterator[tuple[int, int, int, Ints, Ints]]:
    """Lower bits that are coded as they are, level and eighths of a table, which numbers it is
    for, and their means in whole numbers."""
    levels = levels.reshape(-1)
    shifts = np.maximum(0, (levels - LARGEST_LEVEL + 3) // 4)
    means = (means.reshape(-1) - 4 * ((1 << shifts) - 1)) >> shifts
    centers = (means + 4) >> 3
    tables = levels * 8 + means - 8 * centers + 4
    order = np.argsort(tables, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(tables[order])) + 1):
        if len(places):
            level, eighths = divmod(int(tables[places[0]]), 8)
            shift = int(shifts[places[0]])
            yield shift, level - 4 * shift, eighths - 4, places, centers[places]


@functools.cache
def coin_table(share: int) -> Table:
    """0 or 1; the latter `share` times of 256."""
    return Table((2 ** (PRECISION - 8) * (256 - share), 2 ** (PRECISION - 8) * share), 0, False)


def _exp_minus(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^(−x) for x ≥ 0, by additions and products alone: the same bits on every machine.

    Relative error 5e-15; 0 from 40 on.
    """
    halvings = np.floor(x / LN_2)
    rest = x - halvings * LN_2  # in [0, ln 2)
    series = np.ones_like(rest)
    for n in range(16, 0, -1):
        series = 1.0 - series * rest / n
    return np.where(x < 40, np.ldexp(series, -np.minimum(halvings, 60).astype(np.int64)), 0.0)


@functools.cache
def split_table(num: int, left: int, right: int, evenness: int) -> Table:
    """How many of `num` points lie in the left of two parts of these areas.

    Shares are (num choose k)^(evenness / 4) left^k right^(num − k): with 4 as of points that do not
    know of each other, with more as of points that keep their distance.
    """
    # exact: integers, and roots of integers rounded down
    weights = [
        math.isqrt(math.isqrt(math.comb(num, k) ** evenness << 128)) * left**k * right ** (num - k)
        for k in range(num + 1)
    ]
    free = 2**PRECISION - len(weights)
    shares = [weight * free // sum(weights) for weight in weights]
    shares[num // 2] += free - sum(shares)
    return Table(tuple(share + 1 for share in shares), 0, False)


@functools.cache
def cost(table: Table) -> NDArray[np.float64]:
    """Bits of each symbol."""
    return PRECISION - np.log2(np.array(table.frequencies))


@functools.cache
def even_table(bits: int) -> Table:
    """Numbers of so many bits, all as likely."""
    return Table((2 ** (PRECISION - bits),) * 2**bits, 0, False)


@functools.cache
def _costs() -> NDArray[np.float64]:
    """Bits of every symbol in every signed table, escapes included."""
    costs = np.stack([cost(signed_table(index)) for index in range(SIGNED)])
    costs[:, [0, -1]] += ESCAPE
    return costs


def signed_parts(numbers: Ints) -> tuple[int, list[Part]]:
    """The code, below 256, that holds these numbers with the fewest bits, and how."""
    bits = []
    for shift in range(SHIFTS):
        clipped = np.clip(numbers >> 2 * shift, -REACH, REACH) + REACH
        counts = np.bincount(clipped, minlength=2 * REACH + 1)
        bits.append(_costs() @ counts + 2 * shift * len(numbers))
    shift, index = divmod(int(np.argmin(np.concatenate(bits))), SIGNED)
    parts = [Part(numbers >> 2 * shift, signed_table(index))]
    if shift:
        parts.append(Part(numbers & 4**shift - 1, even_table(2 * shift)))
    return shift * SIGNED + index, parts


def take_signed(decoder: "Decoder", count: int, code: int) -> Ints:
    """The next `count` numbers that `signed_parts` gave this code."""
    shift, index = divmod(code, SIGNED)
    numbers = decoder.take(count, signed_table(index))
    return numbers * 4**shift + decoder.take(count, even_table(2 * shift)) if shift else numbers


def _coders() -> Any:
    import constriction

    return constriction.stream  # pyright: ignore[reportAttributeAccessIssue]: compiled, no stubs


@functools.cache
def _model(table: Table) -> Any:
    """constriction gives every symbol 1 and shares out the rest in proportion: exactly this."""
    shares = np.array(table.frequencies, np.float64) - 1
    return _coders().model.Categorical(shares, perfect=False)


def encode(parts: Sequence[Part]) -> bytes:
    """All parts in one run of the coder, after the number and list of what is beyond the tables."""
    coder, beyond = _coders().stack.AnsCoder(), [np.zeros(0, np.int64)]
    for symbols, table in parts:
        if table.has_beyond:
            beyond.append(symbols[np.abs(symbols) >= -table.lowest])
    for symbols, table in reversed(parts):
        if len(symbols):
            last = len(table.frequencies) - 1
            indices = np.clip(symbols - table.lowest, 0, last).astype(np.int32)
            coder.encode_reverse(indices, _model(table))
    escapes = np.concatenate(beyond).astype("<i4")
    words = coder.get_compressed().astype("<u4")
    return pack_number(len(escapes)) + escapes.tobytes() + words.tobytes()


class Decoder:
    """Reads back what `encode` wrote, part by part.

    Raises:
        FormatError: if the bytes cannot be of that kind.
    """

    def __init__(self, data: bytes):
        count, begin = unpack_number(data, 0)
        if (len(data) - begin) % WORD:
            raise FormatError("is damaged: coded symbols are not whole words")
        if count > (len(data) - begin) // WORD:
            raise FormatError("is damaged: more symbols beyond the tables than there are words")
        words = np.frombuffer(data, "<u4", offset=begin)
        self.escapes, self.read = words[:count].view("<i4").astype(np.int64), 0
        try:
            self.coder = _coders().stack.AnsCoder(words[count:].astype(np.uint32))
        except ValueError as error:
            raise FormatError(f"is damaged: no state of the coder ({error})") from error

    def take(self, count: int, table: Table) -> Ints:
        """The next `count` symbols."""
        if count == 0:
            return np.zeros(0, np.int64)
        symbols = self.coder.decode(_model(table), count).astype(np.int64) + table.lowest
        if table.has_beyond:
            places = np.flatnonzero(np.abs(symbols) == -table.lowest)
            if self.read + len(places) > len(self.escapes):
                raise FormatError("is damaged: symbols beyond the tables are missing")
            symbols[places] = self.escapes[self.read : self.read + len(places)]
            self.read += len(places)
        return symbols
