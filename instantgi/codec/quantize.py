"""Gaussians as integers and back, by rules that give the same bits on every machine.

Steps are finest where an error would show most. A color is quantised times its Gaussian's size, so
that errors of all Gaussians have the same energy; a shape in steps that fall as color times size
grows.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from instantgi.codec.entropy import Ints
from instantgi.codec.header import Steps, is_chroma, lattice_size
from instantgi.gaussians import Gaussians

LARGEST_LEVEL = 24
LARGEST = 2**29  # of the numbers of channels and shapes, either sign
LONGEST = 4.0  # half of ln of the ratio of an ellipse's axes, which is at most 3,000 : 1
LARGEST_SIZE = 40  # octaves, of a deviation over 1 px and under
LN_2 = 0.6931471805599453

Floats = NDArray[np.floating[Any]]  # of 64 bits


class Quantised(NamedTuple):
    """N Gaussians in the order in which they are coded."""

    points: Ints  # [N, 2], of the lattice
    sizes: Ints  # [N]
    colors: Ints  # [N, C]
    shapes: Ints  # [N, 2]


def zeros(num: int, channels: int) -> Quantised:
    """Of Gaussians of which nothing is known yet."""
    shapes = [(num, 2), (num,), (num, channels), (num, 2)]
    return Quantised(*(np.zeros(shape, np.int64) for shape in shapes))


def columns(quantised: Quantised, kind: bytes) -> Ints:
    """The numbers [N, P] of a kind."""
    points, sizes, colors, shapes = quantised
    chosen = is_chroma(colors.shape[1])
    by_kind = {b"POSI": points, b"SIZE": sizes[:, None], b"SHAP": shapes}
    return by_kind[kind] if kind in by_kind else colors[:, chosen == (kind == b"CHRO")]


def with_columns(quantised: Quantised, kind: bytes, numbers: Ints) -> Quantised:
    """The same Gaussians with these numbers [N, P] of a kind."""
    if kind in (b"LUMA", b"CHRO"):
        colors = quantised.colors.copy()
        colors[:, is_chroma(colors.shape[1]) == (kind == b"CHRO")] = numbers
        return quantised._replace(colors=colors)
    if kind == b"SIZE":
        return quantised._replace(sizes=numbers[:, 0])
    return quantised._replace(**{{b"POSI": "points", b"SHAP": "shapes"}[kind]: numbers})


def quantise_means(means: Floats, height: int, width: int, steps: Steps) -> Ints:
    """The lattice points closest to means; of those outside, one on the border."""
    last = np.array(lattice_size(height, width, steps.position)) - 1
    return np.clip(np.floor(means / steps.position), 0, last).astype(np.int64)


def means_of(points: Ints, steps: Steps) -> Floats:
    return (points + 0.5) * steps.position


def log_shape(cholesky: Floats) -> tuple[Floats, Floats]:
    """log2 of the size [N], and the shape [N, 2].

    With Σ = s² exp(2 K), K = [[d, o], [o, −d]]: s is the root of the two deviations' product, and
    √(d² + o²) half the logarithm of their ratio.
    """
    l11, l21, l22 = np.abs(cholesky[:, 0]), cholesky[:, 1] * np.sign(cholesky[:, 0]), cholesky[:, 2]
    l11, l22 = np.maximum(l11, 1e-9), np.maximum(np.abs(l22), 1e-9)
    xx, xy, yy = l11**2, l11 * l21, l21**2 + l22**2
    half, mean = (xx - yy) / 2, (xx + yy) / 2
    radius = np.hypot(half, xy)
    ratio = (mean + radius) / (l11 * l22)  # of the longer deviation to the size, squared
    length = np.minimum(np.log(np.maximum(ratio, 1)) / 2, LONGEST)
    turn = np.where(radius > 0, length / np.maximum(radius, 1e-300), 0)
    return np.log2(l11 * l22) / 2, np.stack([half, xy], 1) * turn[:, None]


def quantise_sizes(log_sizes: Floats, steps: Steps) -> Ints:
    largest = LARGEST_SIZE * steps.sizes
    return np.clip(np.round(log_sizes * steps.sizes), -largest, largest).astype(np.int64)


def sizes_of(sizes: Ints, steps: Steps) -> Floats:
    """2^(size / steps), px."""
    octave = sizes // steps.sizes
    return np.ldexp(_exp((sizes - octave * steps.sizes) * (LN_2 / steps.sizes)), octave)


def quantise_colors(colors: Floats, sizes: Floats, steps: Steps) -> Ints:
    """Colors [N, C] as luma, two of chroma, and the rest; times size, in steps."""
    amounts = to_luma_chroma(colors) * sizes[:, None] / color_steps(colors.shape[1], steps)
    return np.round(np.clip(amounts, -LARGEST, LARGEST)).astype(np.int64)


def colors_of(quantised: Ints, sizes: Floats, steps: Steps) -> Floats:
    amounts = quantised * color_steps(quantised.shape[1], steps) / sizes[:, None]
    return from_luma_chroma(amounts)


def color_steps(channels: int, steps: Steps) -> Floats:
    each = np.full(channels, steps.luma)
    if channels in (3, 4):
        each[1:3] = steps.chroma
    return each


def to_luma_chroma(colors: Floats) -> Floats:
    """(R + G + B) / 3, (R − B) / 2, G / 2 − (R + B) / 4; of other than three or four channels as
    they are."""
    if colors.shape[1] not in (3, 4):
        return colors
    red, green, blue = colors[:, :3].T
    made = [(red + green + blue) / 3, (red - blue) / 2, green / 2 - (red + blue) / 4]
    return np.concatenate([np.stack(made, 1), colors[:, 3:]], 1)


def from_luma_chroma(amounts: Floats) -> Floats:
    """The inverse of `to_luma_chroma`."""
    if amounts.shape[1] not in (3, 4):
        return amounts
    luma, across, green = amounts[:, :3].T
    middle = luma - green * 2 / 3
    made = [middle + across, luma + green * 4 / 3, middle - across]
    return np.concatenate([np.stack(made, 1), amounts[:, 3:]], 1)


def levels_of(colors: Ints) -> Ints:
    """log2 of 1 + the sum of the squares of quantised colors, rounded down."""
    clipped = np.clip(np.abs(colors), 0, 2**25)
    power = 1 + (clipped * clipped).sum(1)
    return np.minimum(np.frexp(power.astype(np.float64))[1] - 1, LARGEST_LEVEL).astype(np.int64)


def shape_steps(levels: Ints, steps: Steps) -> Floats:
    """At most 1; √2 times finer from level to level."""
    root = np.where(levels % 2, 1.4142135623730951, 1.0)
    return np.minimum(steps.shape / steps.luma / (root * np.ldexp(1.0, levels // 2)), 1.0)


def quantise_shapes(shapes: Floats, levels: Ints, steps: Steps) -> Ints:
    numbers = np.round(shapes / shape_steps(levels, steps)[:, None])
    return np.clip(numbers, -LARGEST, LARGEST).astype(np.int64)


def cholesky_of(sizes: Floats, shapes: Ints, levels: Ints, steps: Steps) -> Floats:
    """Cholesky factors [N, 3], px."""
    d, o = np.clip(shapes * shape_steps(levels, steps)[:, None], -LONGEST, LONGEST).T
    length = np.minimum(np.sqrt(d * d + o * o), LONGEST)
    grown = _exp(2 * length)
    even, odd = (grown + 1 / grown) / 2, (grown - 1 / grown) / 2
    # sinh(2 r) / r, 2 where r is so small that the difference above lost its digits
    slope = np.where(length > 1e-4, odd / np.maximum(length, 1e-4), 2.0)
    xx, xy = even + slope * d, slope * o
    root = np.sqrt(np.maximum(xx, 1e-6))
    return np.stack([sizes * root, sizes * xy / root, sizes / root], 1)


def gaussians_of(quantised: Quantised, steps: Steps) -> Gaussians:
    """What the integers stand for, in float32."""
    sizes = sizes_of(quantised.sizes, steps)
    fields = (
        means_of(quantised.points, steps),
        cholesky_of(sizes, quantised.shapes, levels_of(quantised.colors), steps),
        colors_of(quantised.colors, sizes, steps),
    )
    return Gaussians(*(torch.from_numpy(field.astype(np.float32)) for field in fields))


def _exp(x: Floats) -> Floats:
    """e^x for x ≥ 0, by additions and products alone. Relative error 1e-15."""
    doublings = np.floor(x / LN_2)
    rest = x - doublings * LN_2
    series = np.ones_like(rest)
    for n in range(18, 0, -1):
        series = 1.0 + series * rest / n
    return np.ldexp(series, doublings.astype(np.int64))
