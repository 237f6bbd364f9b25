"""What fits make besides plain sums: Gaussians, and how they become a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from instantgi.context import LEVEL_ZERO, Context, logistic_bits, steps_of
from instantgi.gaussians import Gaussians, check_size, kind_of
from instantgi.points.seeds import SeedGrid
from instantgi.render.mixture import EPSILON, TOP_K, check_mixture
from instantgi.seeds import CHUNK, Perceptron, gaussians_of, joined

LARGEST_NUMBER = 2**30  # of steps, that files of seeds hold


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians whose picture is their normalised mixture, see `rasterize_mixture`.

    Attributes:
        gaussians: in the order in which they were added.
        top_k: of the mixture.
        epsilon: of the mixture.
        stages: how many Gaussians there were after each stage of growth, increasing; the last is
            all of them. The first so many are a coarser picture.

    Raises:
        ValueError: if the numbers do not fit together.
    """

    gaussians: Gaussians
    top_k: int = TOP_K
    epsilon: float = EPSILON
    stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_mixture(self.top_k, self.epsilon)
        stages = self.stages or (len(self.gaussians),)
        rises = all(a < b for a, b in zip((-1, *stages), stages, strict=False))
        if not rises or stages[-1] != len(self.gaussians):
            raise ValueError(
                f"stages must rise to the number of Gaussians, {len(self.gaussians)}, got {stages}"
            )
        object.__setattr__(self, "stages", tuple(stages))

    def stage(self, index: int) -> Mixture:
        """The picture as it is without the Gaussians of later stages; −1 is all of it."""
        count = len(self.stages)
        if not -count <= index < count:
            raise ValueError(f"there are {count} stages, got {index}")
        stages = self.stages[: index % count + 1]
        return Mixture(self.gaussians[: stages[-1]], self.top_k, self.epsilon, stages)

    def flat(self) -> Gaussians:
        return self.gaussians

    def map(self, function: Callable[[Tensor], Tensor]) -> Mixture:
        return dataclasses.replace(self, gaussians=self.gaussians.map(function))

    def to(self, *args: Any, **kwargs: Any) -> Mixture:
        return self.map(lambda field: field.to(*args, **kwargs))

    def detach(self) -> Mixture:
        return self.map(Tensor.detach)

    def __len__(self) -> int:
        return len(self.gaussians)


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """Gaussians of one level, in pixels of its own grid.

    Attributes:
        height: of the grid.
        width: of the grid.
        low: the value that 0 of its clamped sum stands for.
        high: the value that 1 of it stands for.
        is_published: the cholesky of its Gaussians are covariances (xx, xy, yy), positive or not,
            drawn as by the published kernels; for comparison only.
    """

    gaussians: Gaussians
    height: int
    width: int
    low: float = 0.0
    high: float = 1.0
    is_published: bool = False

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        if not -1e6 < self.low <= self.high < 1e6:
            raise ValueError(f"a level's range must be low ≤ high, got {self.low}, {self.high}")


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """A picture in levels (LIG, 2025): the first is coarse, each adds what those before it lack.

    The picture is low + (high − low) · clamp(sum of the last level's Gaussians) plus that of the
    levels before it, which is drawn on their own grid and interpolated bilinearly.

    Attributes:
        levels: from coarse to fine, at least one; the last one's grid is the picture's.
    """

    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("a picture in levels has at least one")
        for level, finer in zip(self.levels, self.levels[1:], strict=False):
            if level.height > finer.height or level.width > finer.width:
                raise ValueError("levels go from coarse to fine: none is larger than the next")
        fields = [level.gaussians.colors for level in self.levels]
        if len({(field.shape[1], field.dtype, field.device) for field in fields}) > 1:
            raise ValueError("levels must have the same channels, dtype and device")

    def flat(self) -> Gaussians:
        """The Gaussians of all levels in pixels of the picture, from fine to coarse."""
        last, parts = self.levels[-1], []
        for level in reversed(self.levels):
            factors = last.width / level.width, last.height / level.height
            gaussians = level.gaussians
            if level.is_published:
                gaussians = _valid(gaussians)
            parts.append(gaussians.scaled(*factors))
        return Gaussians(
            *(torch.cat([getattr(p, f) for p in parts]) for f in ("means", "cholesky", "colors"))
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Levels:
        parts = [
            dataclasses.replace(each, gaussians=each.gaussians.map(function))
            for each in self.levels
        ]
        return Levels(tuple(parts))

    def to(self, *args: Any, **kwargs: Any) -> Levels:
        return self.map(lambda field: field.to(*args, **kwargs))

    def detach(self) -> Levels:
        return self.map(Tensor.detach)

    def __len__(self) -> int:
        return sum(len(level.gaussians) for level in self.levels)


@dataclasses.dataclass(frozen=True, eq=False)
class Seeds:
    """Seeds and the networks that make Gaussians of them (SGI, 2026), see `gaussians_of`.

    The picture is the sum of their Gaussians.

    Attributes:
        grid: where the seeds lie, and how large the picture is.
        features: numbers of each seed.
        offsets: of its Gaussians from it, in its own sizes (s_o).
        scalings: natural logarithms of its sizes (s_o, s_a) in pixels.
        colors: the network that makes colors of features.
        shapes: the one that makes shapes of them.
        bases: steps of features, scalings and offsets before `context` changes them; None if
            nothing is rounded. Otherwise every number is a whole number of its seed's step.
        context: what files are coded by; None if nothing is rounded.
    """

    grid: SeedGrid
    features: Float[Tensor, "N F"]
    scalings: Float[Tensor, "N 4"]
    offsets: Float[Tensor, "N K 2"]
    colors: Perceptron
    shapes: Perceptron
    bases: tuple[float, float, float] | None = None
    context: Context | None = None

    def __post_init__(self) -> None:
        num, size = self.features.shape
        per_seed = self.offsets.shape[1]
        expected = {"scalings": (num, 4), "offsets": (num, per_seed, 2)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} must be {list(shape)}, got {list(getattr(self, name).shape)}"
                )
        if num != self.grid.count:
            raise ValueError(f"the grid has {self.grid.count} seeds, there are features of {num}")
        if self.colors.sizes[2] % per_seed or self.shapes.sizes[2] != 3 * per_seed:
            raise ValueError(
                f"networks for {per_seed} Gaussians a seed have so many colors and 3 times as many "
                f"shapes, got {self.colors.sizes[2]} and {self.shapes.sizes[2]}"
            )
        if (self.colors.sizes[0], self.shapes.sizes[0]) != (size, size):
            raise ValueError(f"networks of {size} features have as many inputs")
        if (self.bases is None) != (self.context is None):
            raise ValueError("seeds that are rounded have bases and a context, others have neither")
        if self.bases is not None:
            object.__setattr__(self, "bases", _single(self.bases))
        if self.context is not None and self.context.counts != (size, 4, 2 * per_seed):
            raise ValueError(f"the context is of {self.context.counts} numbers, not of these")

    @classmethod
    def from_symbols(
        cls,
        grid: SeedGrid,
        symbols: Int[Tensor, "N D"],
        colors: Perceptron,
        shapes: Perceptron,
        bases: tuple[float, float, float],
        context: Context,
        turns: Int64[Tensor, "N 3"] | None = None,
    ) -> Seeds:
        """Of whole numbers of steps: the same float32 numbers on every machine.

        Args:
            turns: what the context says of the steps, where that is known.
        """
        bases, kinds = _single(bases), context.kinds()
        turns = context.turns(grid) if turns is None else turns
        features, scalings, offsets = parts = [
            torch.empty(len(symbols), count, device=symbols.device) for count in context.counts
        ]
        for begin in range(0, len(symbols), CHUNK):  # float64 takes as much as all else
            some = slice(begin, begin + CHUNK)
            values = symbols[some] * steps_of(bases, turns[some])[:, kinds]
            for part, found in zip(parts, values.split(context.counts, 1), strict=True):
                part[some] = found
        offsets = offsets.view(grid.count, -1, 2)
        return cls(grid, features, scalings, offsets, colors, shapes, bases, context)

    @property
    def symbols(self) -> Int64[Tensor, "N D"]:
        """Features, scalings and offsets of each seed in steps: numbers that make the same seeds.

        Beyond 2^23 several whole numbers of steps are one float32, of which this is one.

        Raises:
            ValueError: if nothing is rounded.
        """
        if self.bases is None or self.context is None:
            raise ValueError("these seeds are not rounded")
        values = torch.cat([self.features, self.scalings, self.offsets.flatten(1)], 1).double()
        steps = steps_of(self.bases, self.context.turns(self.grid))[:, self.context.kinds()]
        symbols = (values / steps).round().long()
        rounded_up = symbols.abs() <= LARGEST_NUMBER + (LARGEST_NUMBER >> 24)
        return torch.where(rounded_up, symbols.clamp(-LARGEST_NUMBER, LARGEST_NUMBER), symbols)

    @property
    def bits(self) -> Float[Tensor, "N D"]:
        """What the numbers take in a file, about."""
        symbols = self.symbols
        assert self.context is not None
        means, levels, _ = self.context.integers(self.grid)
        return logistic_bits(symbols.double() - means / 8, (levels - LEVEL_ZERO).double() / 4)

    @property
    def height(self) -> int:
        return self.grid.height

    @property
    def width(self) -> int:
        return self.grid.width

    @property
    def per_seed(self) -> int:
        return self.offsets.shape[1]

    def flat(self) -> Gaussians:
        """All Gaussians, seed by seed."""
        return joined(list(self.chunks()))

    def chunks(self) -> Iterator[Gaussians]:
        """The same, of some seeds at a time."""
        points = self.grid.points.to(self.features)
        for begin in range(0, self.grid.count, CHUNK):
            chunk = slice(begin, begin + CHUNK)
            numbers = self.features[chunk], self.offsets[chunk], self.scalings[chunk].exp()
            yield gaussians_of(points[chunk], *numbers, self.colors, self.shapes)

    def map(self, function: Callable[[Tensor], Tensor]) -> Seeds:
        return dataclasses.replace(
            self,
            features=function(self.features),
            scalings=function(self.scalings),
            offsets=function(self.offsets),
            colors=self.colors.map(function),
            shapes=self.shapes.map(function),
            context=None if self.context is None else self.context.map(function),
        )

    def to(self, *args: Any, **kwargs: Any) -> Seeds:
        return self.map(lambda field: field.to(*args, **kwargs))

    def detach(self) -> Seeds:
        return self.map(Tensor.detach)

    def __len__(self) -> int:
        return self.grid.count * self.per_seed


@dataclasses.dataclass(frozen=True, eq=False)
class Splats:
    """Gaussians in space before a fixed camera, blended by depth, see `draw_splats`.

    Attributes:
        means: in the camera's axes, but for its depth.
        rotations: quaternions, the real part first, of any length.
        log_scales: natural logarithms of the standard deviations.
        raw_opacities: before the sigmoid.
        harmonics: of the color in each direction, degree 3.
        height, width: of the picture.
    """

    means: Float[Tensor, "N 3"]
    rotations: Float[Tensor, "N 4"]
    log_scales: Float[Tensor, "N 3"]
    raw_opacities: Float[Tensor, " N"]
    harmonics: Float[Tensor, "N 16 3"]
    height: int
    width: int

    def fields(self) -> list[Tensor]:
        return [self.means, self.rotations, self.log_scales, self.raw_opacities, self.harmonics]

    def flat(self) -> Gaussians:
        """Raises ValueError: they have no sum."""
        raise ValueError("splats in space are blended by depth: they are no flat Gaussians")

    def map(self, function: Callable[[Tensor], Tensor]) -> Splats:
        means, rotations, log_scales, raw_opacities, harmonics = map(function, self.fields())
        parts = means, rotations, log_scales, raw_opacities, harmonics
        return Splats(*parts, self.height, self.width)

    def to(self, *args: Any, **kwargs: Any) -> Splats:
        return self.map(lambda field: field.to(*args, **kwargs))

    def detach(self) -> Splats:
        return self.map(Tensor.detach)

    def __len__(self) -> int:
        return len(self.means)


Representation = Gaussians | Mixture | Levels | Seeds | Splats


def _single(bases: tuple[float, float, float]) -> tuple[float, float, float]:
    """As float32 has them, and files."""
    features, scalings, offsets = (float(np.float32(base)) for base in bases)
    return features, scalings, offsets


def _valid(gaussians: Gaussians) -> Gaussians:
    """Of published ones those that have an ellipse."""
    xx, xy, yy = gaussians.cholesky.unbind(-1)
    kept = gaussians[(xx > 0) & (xx * yy - xy * xy > 0)]
    return Gaussians.from_covariances(kept.means, kept.cholesky, kept.colors)


def plain(made: Representation, method: str) -> Gaussians:
    """The Gaussians of a plain sum.

    Raises:
        ValueError: if they are drawn otherwise.
    """
    check_kind(made)
    if isinstance(made, Gaussians):
        return made
    kind = {Mixture: "a mixture", Levels: "levels", Seeds: "seeds", Splats: "splats"}[type(made)]
    raise ValueError(
        f"init: {method} starts from Gaussians whose picture is their sum, not from {kind}"
    )


def flat(made: Representation) -> Gaussians:
    """All Gaussians in pixels of the picture, whatever is drawn of them."""
    check_kind(made)
    return made if isinstance(made, Gaussians) else made.flat()


def check_kind(made: object) -> None:
    """Raises ValueError for what is none of ours, a picture say."""
    if not isinstance(made, Representation):
        raise ValueError(
            f"expected Gaussians, a Mixture, Levels or Seeds, got {kind_of(made)}; "
            "fit_image makes them from a picture"
        )
