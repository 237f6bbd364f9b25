"""Points on a jittered grid that every machine computes alike, so that no file holds them."""

import dataclasses
import functools
import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

UNIT = 128  # places of seeds are whole numbers of 1/128 px
GOLDEN = 0x9E3779B97F4A7C15
MOST_SEEDS, LONGEST_SIDE = 2**26, 2**20
JITTER, DROPPED = 0, 1  # what a hash is for


@dataclasses.dataclass(frozen=True)
class SeedGrid:
    """N seeds in a picture; their places are integers that depend on these four numbers alone.

    The picture is cut into g_x times g_y cells, g_x = ⌊√(N W / H) + ½⌋ within 1 and N, and
    g_y = ⌈N / g_x⌉, numbered row by row from 0. There are E = g_x g_y − N too many: their numbers
    are divided into E runs, run e from ⌊e T / E⌋ to ⌊(e + 1) T / E⌋ with T = g_x g_y, and of each
    the one at h(e, 1) modulo its length has no seed. In cell (i, j), of number n, the seed lies at

        X = ⌊(512 i + 2 (h(n, 0) mod 256) + 1) W / (8 g_x)⌋,
        Y = ⌊(512 j + 2 (⌊h(n, 0) / 256⌋ mod 256) + 1) H / (8 g_y)⌋,

    x = (2 X + 1) / 128 px, y = (2 Y + 1) / 128 px. Modulo 2^64,
    h(n, d) = mix((2 n + d) G + mix(random_seed + G)) with G = 0x9E3779B97F4A7C15, where mix(z) is
    z ← (z ⊕ z≫30) 0xBF58476D1CE4E5B9, then z ← (z ⊕ z≫27) 0x94D049BB133111EB, then z ⊕ z≫31
    (splitmix64: Steele, Lea and Flood, 2014).

    Attributes:
        first: only so many of the seeds are there, as at the beginning of a file; None for all.

    Raises:
        ValueError: if a number is out of range.
    """

    num: int
    height: int
    width: int
    random_seed: int = 0
    first: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num", 1, MOST_SEEDS),
            ("height", 1, LONGEST_SIDE),
            ("width", 1, LONGEST_SIDE),
            ("random_seed", 0, 2**32 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name} of seeds must be from {low} to {high}, got {getattr(self, name)}"
                )

    @property
    def count(self) -> int:
        """Seeds that are there."""
        return self.num if self.first is None else min(self.first, self.num)

    @property
    def columns(self) -> int:
        rounded = (math.isqrt(4 * self.num * self.width // self.height) + 1) // 2
        return min(max(rounded, 1), self.num)

    @property
    def rows(self) -> int:
        return -(-self.num // self.columns)

    @property
    def cell(self) -> float:
        """Side of a square with the area of a cell, px."""
        return math.sqrt(self.height * self.width / (self.rows * self.columns))

    @functools.cached_property
    def places(self) -> Int64[Tensor, "N 2"]:
        """(x, y) in 1/128 px, all odd, row by row."""
        total = self.rows * self.columns
        excess = total - self.num
        # cells that hold the first seeds: each run of total / excess cells has one without
        needed = min(total, (self.count + 2) * total // self.num + 2)
        cells = np.arange(needed)
        if excess:
            runs = min(excess, needed * excess // total + 1)
            ends = np.arange(runs + 1) * total // excess
            lengths = np.diff(ends).astype(np.uint64)
            dropped = ends[:-1] + (self._hash(runs, DROPPED) % lengths).astype(np.int64)
            cells = np.delete(cells, dropped[dropped < needed])
        cells = cells[: self.count]
        jitter = self._hash(needed, JITTER)[cells]
        places = []
        for index, shift, side, count in (
            (cells % self.columns, 0, self.width, self.columns),
            (cells // self.columns, 8, self.height, self.rows),
        ):
            within = ((jitter >> np.uint64(shift)) & np.uint64(255)).astype(np.int64)
            places.append(2 * ((512 * index + 2 * within + 1) * side // (8 * count)) + 1)
        return torch.from_numpy(np.stack(places, 1))

    @property
    def points(self) -> Float[Tensor, "N 2"]:
        """(x, y) in pixels, float32."""
        return (self.places.double() / UNIT).float()

    def _hash(self, count: int, draw: int) -> np.ndarray:
        """h(0, draw) to h(count − 1, draw)."""
        first = _mix(np.array([(self.random_seed + GOLDEN) % 2**64], np.uint64))
        numbers = 2 * np.arange(count, dtype=np.uint64) + np.uint64(draw)
        return _mix(numbers * np.uint64(GOLDEN) + first)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def seed_points(
    num: int, height: int, width: int, random_seed: int = 0
) -> Float[Tensor, "{num} 2"]:
    """So many points (x, y), px, one in each cell of a grid; the same bits everywhere."""
    return SeedGrid(num, height, width, random_seed).points
