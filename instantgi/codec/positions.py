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

    def take(self, chosen: NDArray) -> "Cells":
        return Cells(*(field[chosen] for field in self))


class Group(NamedTuple):
    """Cuts that one table serves."""

    chosen: Ints  # indices of cells
    num: int  # points of each; 0 where they are more than FEW
    left: int  # lengths of the cut side on either hand
    right: int


class Split(NamedTuple):
    """Cells of more than one lattice point, cut in two along the longer side."""

    whole: Cells
    is_wide: NDArray[np.bool_]
    first: Ints  # length of the cut side on the left, the longer half
    second: Ints

    @classmethod
    def of(cls, cells: Cells) -> "Split":
        is_wide = cells.width >= cells.height
        side = np.where(is_wide, cells.width, cells.height)
        return cls(cells, is_wide, (side + 1) // 2, side // 2)

    def is_right(self, cell: Ints, points: Ints) -> NDArray[np.bool_]:
        """Whether points lie on the right of the cuts of these cells."""
        along = np.where(self.is_wide[cell], points[:, 0], points[:, 1])
        begin = np.where(self.is_wide, self.whole.x, self.whole.y)
        return along >= (begin + self.first)[cell]

    def halves(self, on_left: Ints) -> tuple[Cells, Cells]:
        x, y, width, height, count = self.whole
        wide, first, second = self.is_wide, self.first, self.second
        left = Cells(x, y, np.where(wide, first, width), np.where(wide, height, first), on_left)
        right = Cells(
            x + np.where(wide, first, 0),
            y + np.where(wide, 0, first),
            np.where(wide, second, width),
            np.where(wide, height, second),
            count - on_left,
        )
        return left, right

    def middle(self, chosen: Ints) -> Ints:
        """Points on the left if they were spread evenly."""
        first, count = self.first[chosen], self.whole.count[chosen]
        return count * first // (first + self.second[chosen])

    def groups(self) -> Iterator[Group]:
        """By falling number of points, the many last."""
        count, first, side = self.whole.count, self.first, self.first + self.second
        is_even = (first == self.second) | (side >= EXACT)
        key = (count * EXACT + np.where(is_even, 0, first)) * (count <= FEW)
        for value in np.unique(key)[::-1].tolist():
            chosen = np.flatnonzero(key == value)
            num, left = divmod(value, EXACT)
            yield Group(chosen, num, left or 1, left - 1 if left else 1)


def _walk(
    num: int, width: int, height: int, count_left: Callable[[Cells, Ints, Split], Ints]
) -> Cells:
    """The last cells, of one lattice point each; count_left(cells, indices of those cut, cuts)."""
    start = (0, 0, width, height, num)
    cells = Cells(*(np.full(int(num > 0), value, np.int64) for value in start))
    while len(cut := np.flatnonzero(cells.width * cells.height > 1)):
        split = Split.of(cells.take(cut))
        left, right = split.halves(count_left(cells, cut, split))
        whole = np.flatnonzero(cells.width * cells.height == 1)
        place = np.argsort(np.concatenate([2 * whole, 2 * cut, 2 * cut + 1]))
        joined = (
            np.concatenate(f)[place] for f in zip(cells.take(whole), left, right, strict=True)
        )
        cells = Cells(*joined)
        cells = cells.take(cells.count > 0)
    return cells


def encode_positions(points: Ints, width: int, height: int) -> tuple[Ints, bytes, list[Part]]:
    """The order in which points come back; the choice of tables, two bytes a halving; the symbols.

    Args:
        points: [N, 2], (x, y) in [0, width) x [0, height); equal ones are allowed.
    """
    order, choices, parts = np.arange(len(points)), bytearray(), list[Part]()

    def count_left(cells: Cells, cut: Ints, split: Split) -> Ints:
        nonlocal order
        cell = np.repeat(np.arange(len(cells.count)), cells.count)  # of each point
        place = np.full(len(cells.count), -1)
        place[cut] = np.arange(len(cut))
        inside = np.flatnonzero(place[cell] >= 0)
        is_right = np.zeros(len(order), bool)
        is_right[inside] = split.is_right(place[cell[inside]], points[order[inside]])
        on_left = np.bincount(cell[~is_right], minlength=len(cells.count))[cut]
        order = order[np.argsort(2 * cell + is_right, kind="stable")]
        groups = list(split.groups())
        evenness = _best_evenness(groups, on_left)
        many = [on_left[g.chosen] - split.middle(g.chosen) for g in groups if not g.num]
        code, coded = signed_parts(many[0]) if many else (0, [])
        choices.extend((evenness, code))
        for group in groups:
            if group.num:
                table = split_table(*group[1:], evenness)
                parts.append(Part(on_left[group.chosen], table))
            else:
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

    def count_left(cells: Cells, cut: Ints, split: Split) -> Ints:
        nonlocal used
        evenness, code = (*choices[used : used + 2], EVENNESS, EVENNESS)[:2]
        used += 2
        if used > len(choices) or evenness >= EVENNESS:
            raise FormatError("is damaged: tables of positions are missing")
        on_left = np.zeros(len(cut), np.int64)
        for group in split.groups():
            if group.num:
                table = split_table(*group[1:], evenness)
                on_left[group.chosen] = decoder.take(len(group.chosen), table)
            else:
                away = take_signed(decoder, len(group.chosen), code)
                on_left[group.chosen] = away + split.middle(group.chosen)
        if ((on_left < 0) | (on_left > split.whole.count)).any():
            raise FormatError("is damaged: a part of the picture holds fewer than no points")
        return on_left

    cells = _walk(num, width, height, count_left)
    points = np.stack([cells.x, cells.y], 1)
    return np.repeat(points, cells.count, axis=0), used
