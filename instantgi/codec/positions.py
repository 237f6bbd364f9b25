"""Points on a lattice as bytes, at about what a set of them costs: their order is not sent.

The lattice is halved again and again along its longer side, and each time the number of points on
the left is coded, given how many there are. Points come back in the order of the last cells, in
which neighbors in the list are neighbors in the picture.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from instantgi.codec.bitstream import FormatError
from instantgi.codec.entropy import (
    EVENNESS,
    Decoder,
    Ints,
    Part,
    cost,
    signed_parts,
    split_table,
    take_signed,
)

FEW = 16  # points; of more the distance from an even split is coded
EXACT = 16  # lattice units; a longer side counts as cut into equal halves


class Cells(NamedTuple):
    """Rectangles of the lattice with at least one point, in order."""

    x: Ints
    y: Ints
    width: Ints
    height: Ints
    count: Ints  # points inside


class Group(NamedTuple):
    """Cuts that one table serves."""

    chosen: Ints  # indices of cells
    num: int  # points of each; 0 where they are more than FEW
    left: int  # lengths of the cut side on either hand
    right: int


class Split:
    """Cells to be cut in two along the longer side; `first` is the length on the left."""

    def __init__(self, cells: Cells):
        self.cells = cells
        self.is_wide = cells.width >= cells.height
        self.side = np.maximum(cells.width, cells.height)
        self.first = (self.side + 1) >> 1  # the longer half; all of what is one lattice point

    def is_right(self, cell: Ints, points: Ints) -> NDArray[np.bool_]:
        """Whether points lie on the right of the cuts of these cells."""
        along = np.where(self.is_wide[cell], points[:, 0], points[:, 1])
        begin = np.where(self.is_wide, self.cells.x, self.cells.y)
        return along >= (begin + self.first)[cell]

    def halves(self, on_left: Ints) -> Cells:
        """Those with points, left before right, in the place of their cell."""
        count = self.cells.count
        has_left = on_left > 0
        parts = has_left + (on_left < count).astype(np.int64)
        ends = np.cumsum(parts)
        parent = np.repeat(np.arange(len(parts)), parts)
        is_right = np.ones(len(parent), bool)
        is_right[ends - parts] = ~has_left
        x, y, width, height, count = (field[parent] for field in self.cells)
        wide, first, on_left = self.is_wide[parent], self.first[parent], on_left[parent]
        moved = np.where(is_right, first, 0)
        left_over = np.where(is_right, self.side[parent] - first, first)
        return Cells(
            x + np.where(wide, moved, 0),
            y + np.where(wide, 0, moved),
            np.where(wide, left_over, width),
            np.where(wide, height, left_over),
            np.where(is_right, count - on_left, on_left),
        )

    def middle(self, chosen: Ints) -> Ints:
        """Points on the left if they were spread evenly."""
        return self.cells.count[chosen] * self.first[chosen] // self.side[chosen]

    def groups(self) -> Iterator[Group]:
        """Of cells larger than a point: by falling number of points, the many last."""
        count, side = self.cells.count, self.side
        is_even = (side & 1 == 0) | (side >= EXACT)
        key = np.where(count <= FEW, count * EXACT + np.where(is_even, 0, self.first), 0)
        key[side == 1] = -1
        for value in np.flatnonzero(np.bincount(key + 1)[1:])[::-1].tolist():
            chosen = np.flatnonzero(key == value)
            num, left = divmod(value, EXACT)
            yield Group(chosen, num, left or 1, left - 1 if left else 1)


def _walk(num: int, width: int, height: int, count_left: Callable[[Split], Ints]) -> Cells:
    """The last cells, of one lattice point each; count_left(cuts) is of every cell."""
    start = (0, 0, width, height, num)
    cells = Cells(*(np.full(int(num > 0), value, np.int64) for value in start))
    while len(cells.x) and max(cells.width.max(), cells.height.max()) > 1:
        split = Split(cells)
        cells = split.halves(count_left(split))
    return cells


def encode_positions(points: Ints, width: int, height: int) -> tuple[Ints, bytes, list[Part]]:
    """The order in which points come back; the choice of tables; the symbols.

    Args:
        points: [N, 2], (x, y) in [0, width) x [0, height); equal ones are allowed.
    """
    order, choices, parts = np.arange(len(points)), bytearray(), list[Part]()

    def count_left(split: Split) -> Ints:
        nonlocal order
        count = split.cells.count
        cell = np.repeat(np.arange(len(count)), count)  # of each point
        is_right = split.is_right(cell, points[order])
        on_left = count - np.bincount(cell, is_right, len(count)).astype(np.int64)
        order = order[np.argsort(2 * cell + is_right, kind="stable")]
        groups = list(split.groups())
        evenness = 0
        if any(group.num > 1 for group in groups):
            evenness = _best_evenness(groups, on_left)
            choices.append(evenness)
        for group in groups:
            if group.num:
                table = split_table(*group[1:], evenness)
                parts.append(Part(on_left[group.chosen], table))
            else:
                code, coded = signed_parts(on_left[group.chosen] - split.middle(group.chosen))
                choices.append(code)
                parts.extend(coded)
        return on_left

    _walk(len(points), width, height, count_left)
    return order, bytes(choices), parts


def _best_evenness(groups: list[Group], on_left: Ints) -> int:
    bits = [
        sum(
            cost(split_table(*group[1:], evenness))[on_left[group.chosen]].sum()
            for group in groups
            if group.num > 1
        )
        for evenness in range(EVENNESS)
    ]
    return int(np.argmin(bits))


def decode_positions(
    num: int, width: int, height: int, choices: bytes, decoder: Decoder
) -> tuple[Ints, int]:
    """The points [num, 2], and how many bytes of the choices were used.

    Raises:
        FormatError: if the symbols cannot be of so many points.
    """
    used = 0

    def choice(limit: int) -> int:
        nonlocal used
        used += 1
        if used > len(choices) or choices[used - 1] >= limit:
            raise FormatError("is damaged: tables of positions are missing")
        return choices[used - 1]

    def count_left(split: Split) -> Ints:
        on_left, groups = split.cells.count.copy(), list(split.groups())
        evenness = choice(EVENNESS) if any(group.num > 1 for group in groups) else 0
        for group in groups:
            if group.num:
                table = split_table(*group[1:], evenness)
                on_left[group.chosen] = decoder.take(len(group.chosen), table)
            else:
                away = take_signed(decoder, len(group.chosen), choice(256))
                on_left[group.chosen] = away + split.middle(group.chosen)
        if ((on_left < 0) | (on_left > split.cells.count)).any():
            raise FormatError("is damaged: a part of the picture holds fewer than no points")
        return on_left

    cells = _walk(num, width, height, count_left)
    points = np.stack([cells.x, cells.y], 1)
    return np.repeat(points, cells.count, axis=0), used
