"""What is known of a seed's numbers from where it lies: the model that files of seeds are coded by.

Every machine computes the same integers from it: a decoder cannot depend on how floats are
rounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from instantgi.points.seeds import SeedGrid
from instantgi.seeds import CHUNK, Perceptron

PER_NODE = 4  # features
WEIGHT_BITS = 8  # of the fraction of weights and biases
HIDDEN_BITS = 12  # of the fraction of hidden values
HIGHEST = 2**17 - 1  # hidden value
MOST_TURNS = 12  # quarter octaves by which a seed's steps differ from the base
LEVEL_ZERO = 24  # the level of a deviation of one step
MOST_LEVEL = 63
RECIPROCALS = [round(2 ** (14 - t / 4)) for t in range(-MOST_TURNS, MOST_TURNS + 1)]
ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # 2^(t/4)
XOR_FACTOR = 2_654_435_761


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """For every number of a seed a mean and a deviation, and for each kind of numbers a step.

    A seed has D = F + 4 + 2 K numbers: its features, the logarithms of its sizes, its offsets. A
    binary hash grid h says what is known of its place, p = MLP_p(h) what follows from that (SGI,
    2026, equations 7 to 13; the last two lines are ours, the paper has Q (1 + tanh r)):

        p = (mean_1 … mean_D, log2 deviation_1 … log2 deviation_D, r_f, r_s, r_o),
        t = round(4 r) within ±12,   step = base · 2^(t/4),
        mean in steps = mean · 2^(−t/4),   deviation in steps = deviation · 2^(−t/4).

    Means, deviations are in base steps. Level l of the grid, of resolution R, has square cells,
    R along the longer side M of the picture, and nodes (0 … ⌈R W / M⌉) x (0 … ⌈R H / M⌉) at their
    corners, n_x n_y in all. Each node has 4 signs ±1, at index i_x + i_y n_x of the level's table,
    or where that would be longer than `longest`, at (i_x ⊕ (i_y · 2654435761 mod 2^32)) mod
    longest. A seed at (X, Y) / 128 px is at ⌊2 R (X, Y) / M⌋ / 256 cells, and sees the signs of the
    four corners of its cell bilinearly.

    Attributes:
        counts: F, 4, 2 K.
        resolutions: of the levels, cells along the longer side. None of them: nothing is known.
        longest: table of a level.
        signs: ±1, of all levels one after the other.
        network: MLP_p; its weights and biases are multiples of 2⁻⁸, weights below 128.
    """

    counts: tuple[int, int, int]
    resolutions: tuple[int, ...]
    longest: int
    signs: Float[Tensor, "T 4"]
    network: Perceptron

    def __post_init__(self) -> None:
        inputs, _, outputs = self.network.sizes
        if inputs != PER_NODE * len(self.resolutions) or outputs != 2 * sum(self.counts) + 3:
            raise ValueError(
                f"a context of {len(self.resolutions)} levels for {self.counts} numbers cannot "
                f"have a network from {inputs} to {outputs}"
            )

    @classmethod
    def constant(
        cls,
        counts: tuple[int, int, int],
        means: Float[Tensor, " D"],
        octaves: Float[Tensor, " D"],
    ) -> Context:
        """The same means and log2 of deviations for all seeds, in base steps, and no turns."""
        biases = torch.cat([means, octaves, means.new_zeros(3)])
        none = means.new_zeros(0)
        network = Perceptron(none.view(0, 0), none, none.view(0, len(biases)), biases)
        return cls(counts, (), 1, none.view(0, PER_NODE), network.map(to_grid))

    # --- as files have it ------------------------------------------------------------------------

    def integers(
        self, grid: SeedGrid, which: Tensor | slice = slice(None)
    ) -> tuple[Int64[Tensor, "P D"], Int64[Tensor, "P D"], Int64[Tensor, "P 3"]]:
        """Of these seeds: means in eighths of a step, levels of deviations, and turns t.

        Level l is a deviation of 2^((l − 24) / 4) steps. In exact integers, as follows, ≫ rounding
        down; matrices are multiplied in float64, in which all of their sums are exact.

            h = Σ weight · sign, four weights that sum to 2^16
            hidden = min(max((h W₁ + b₁ 2^16 + 2^11) ≫ 12, 0), 2^17 − 1)
            p = hidden W₂ + b₂ 2^12                     (in 2⁻²⁰; W and b in 2⁻⁸)
            t = (4 p + 2^19) ≫ 20 within ±12
            mean = ((p ≫ 12) · round(2^(14 − t/4)) + 2^18) ≫ 19, p ≫ 12 within ±2^31
            level = ((4 p + 2^19) ≫ 20) + 24 − t within 0 and 63
        """
        numbers = torch.arange(grid.count)[which if isinstance(which, slice) else which.cpu()]
        placed = self.placed(grid)
        parts = [self._integers(placed, part) for part in numbers.split(CHUNK)]
        means, levels, turns = (torch.cat(each) for each in zip(*parts, strict=True))
        return means, levels, turns

    def turns(self, grid: SeedGrid) -> Int64[Tensor, "N 3"]:
        """Of all seeds what `integers` says of their steps."""
        placed, numbers = self.placed(grid), torch.arange(grid.count)
        return torch.cat([self._integers(placed, part)[2] for part in numbers.split(CHUNK)])

    def _integers(self, placed: Placed, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self._seen(placed, which.to(self.signs.device))
        weights1, biases1, weights2, biases2 = (
            (part.double() * 2**WEIGHT_BITS).round() for part in self.network.tensors
        )
        shift = 16 + WEIGHT_BITS - HIDDEN_BITS
        sums = (seen.double() @ weights1 + biases1 * 2**16).long()
        hidden = ((sums + (1 << shift - 1)) >> shift).clamp(0, HIGHEST)
        p = (hidden.double() @ weights2 + biases2 * 2**HIDDEN_BITS).long()
        num = (p.shape[1] - 3) // 2
        octaves4 = (4 * p[:, num:] + (1 << 19)) >> 20
        turns = octaves4[:, num:].clamp(-MOST_TURNS, MOST_TURNS)
        of_numbers = turns[:, self.kinds()]
        factors = torch.tensor(RECIPROCALS, device=p.device)[of_numbers + MOST_TURNS]
        means = (p[:, :num] >> 12).clamp(-(2**31), 2**31)
        means = (means * factors + (1 << 18)) >> 19
        levels = (octaves4[:, :num] + LEVEL_ZERO - of_numbers).clamp(0, MOST_LEVEL)
        return means, levels, turns

    # --- as a fit has it -------------------------------------------------------------------------

    def floats(
        self, placed: Placed, which: Tensor | slice = slice(None)
    ) -> tuple[Float[Tensor, "P D"], Float[Tensor, "P D"], Float[Tensor, "P 3"]]:
        """Of these seeds: means and log2 of deviations, both in base steps, and turns, rounded.

        What `integers` rounds, but for the turns, which pass their gradients on. Differentiable in
        signs and network.
        """
        seen = self._seen(placed, which, self.signs) / 2**16
        weights1, biases1, weights2, biases2 = self.network.tensors
        hidden = torch.addmm(biases1, seen, weights1).clamp(0, HIGHEST / 2**HIDDEN_BITS)
        p = torch.addmm(biases2, hidden, weights2)
        num = (p.shape[1] - 3) // 2
        turns = straight(4 * p[:, 2 * num :], torch.round).clamp(-MOST_TURNS, MOST_TURNS)
        return p[:, :num], p[:, num : 2 * num], turns

    # --- the hash grid ---------------------------------------------------------------------------

    def placed(self, grid: SeedGrid) -> Placed:
        """Where seeds lie in this hash grid, on the device of its signs."""
        counts = [nodes_along(grid, resolution) for resolution in self.resolutions]
        lengths = [min(columns * rows, self.longest) for columns, rows in counts]
        rows_of = [
            self.resolutions,
            [columns for columns, _ in counts],
            [sum(lengths[:level]) for level in range(len(lengths))],
            [columns * rows > self.longest for columns, rows in counts],
            lengths,
        ]
        levels = torch.tensor(rows_of, dtype=torch.long).to(self.signs.device)
        places = grid.places.to(self.signs.device)
        return Placed(places, max(grid.height, grid.width), self.longest, levels, lengths)

    def _seen(self, placed: Placed, which: Tensor | slice, signs: Tensor | None = None) -> Tensor:
        """Features [P, 4 L] in 2⁻¹⁶: int64, or of given signs in their own kind."""
        places = placed.places[which]
        values = self.signs.long() if signs is None else signs
        if not self.resolutions:
            return values.new_zeros(len(places), 0)
        seen = None
        for nodes, weights in placed.corners(places):
            signs_there = rows_at(values, nodes.flatten()).view(*nodes.shape, PER_NODE)
            part = signs_there * weights[..., None].to(values.dtype)
            seen = part if seen is None else seen + part
        assert seen is not None
        return seen.flatten(1)

    def kinds(self) -> Int64[Tensor, " D"]:
        """Of which kind each number of a seed is: features 0, sizes 1, offsets 2."""
        kinds = [kind for kind, count in enumerate(self.counts) for _ in range(count)]
        return torch.tensor(kinds).to(self.signs.device)

    def map(self, function: Callable[[Tensor], Tensor]) -> Context:
        return dataclasses.replace(
            self, signs=function(self.signs), network=self.network.map(function)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """Seeds in a hash grid, on one device.

    Attributes:
        places: of the seeds, in 1/128 px.
        side: the longer one of the picture.
        longest: table of a level.
        levels: of each its resolution, columns of nodes, first row of signs, whether nodes are
            hashed, and the length of its table.
        lengths: the last ones.
    """

    places: Int64[Tensor, "N 2"]
    side: int
    longest: int
    levels: Int64[Tensor, "5 L"]
    lengths: list[int]

    def corners(self, places: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of four corners of some places the rows of signs and their weights in 2⁻¹⁶, [P, L]."""
        resolutions, columns, begins, is_hashed, _ = self.levels
        at_x, at_y = (2 * resolutions * each[:, None] // self.side for each in places.unbind(1))
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            x, y = (at_x >> 8) + right, (at_y >> 8) + down
            hashed = (x ^ (y * XOR_FACTOR & 0xFFFFFFFF)) % self.longest
            across = at_x & 255 if right else 256 - (at_x & 255)
            along = at_y & 255 if down else 256 - (at_y & 255)
            yield begins + torch.where(is_hashed.bool(), hashed, x + y * columns), across * along


class _Rows(torch.autograd.Function):
    """Rows of a table, with a gradient that does not depend on the order of its sums.

    They are whole numbers of 2⁻³⁶ of the largest term: exact, whichever thread comes first.
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table.index_select(0, rows)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows,), (gradient,) = ctx.saved_tensors, gradients
        unit = torch.exp2(gradient.abs().max().frexp().exponent.double() - 36)
        terms = (gradient / unit).round().long()
        sums = terms.new_zeros(ctx.shape).index_add_(0, rows, terms)
        return (sums * unit).to(gradient.dtype), None


def rows_at(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows]; on a GPU torch would add gradients up in any order."""
    if table.is_cuda and table.requires_grad:
        made = _Rows.apply(table, rows)
        assert isinstance(made, Tensor)
        return made
    return table.index_select(0, rows)


def nodes_along(grid: SeedGrid, resolution: int) -> tuple[int, int]:
    """Columns and rows of a level's nodes."""
    side = max(grid.height, grid.width)
    return -(-resolution * grid.width // side) + 1, -(-resolution * grid.height // side) + 1


def num_nodes(grid: SeedGrid, resolutions: tuple[int, ...], longest: int) -> int:
    """Rows of `Context.signs`."""
    return sum(min(math.prod(nodes_along(grid, each)), longest) for each in resolutions)


def straight(value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The function of a value, with the gradient of the value itself."""
    return value + (function(value.detach()) - value.detach())


def to_grid(value: Tensor) -> Tensor:
    """The closest multiples of 2⁻⁸ within ±127."""
    return (value * 2**WEIGHT_BITS).round().clamp(-32512, 32512) / 2**WEIGHT_BITS


def sign_bits(
    signs: Float[Tensor, "T 4"], lengths: list[int], counts: Int64[Tensor, " L"]
) -> Float[Tensor, ""]:
    """Of levels with so many nodes what their signs take: n₊ log2(n / n₊) + n₋ log2(n / n₋) each.

    Args:
        counts: the lengths, on the device of the signs.
    """
    if not lengths:
        return signs.new_zeros(())
    share = torch.stack([0.5 + 0.5 * part.mean() for part in signs.split(lengths)])
    share = share.clamp(1e-6, 1 - 1e-6)
    entropy = share * share.log2() + (1 - share) * (1 - share).log2()
    return -(PER_NODE * counts * entropy).sum()


def steps_of(
    bases: tuple[float, float, float], turns: Int64[Tensor, "P 3"]
) -> Float[Tensor, "P 3"]:
    """base · 2^(t/4), float64: of each turn one rounded product and an exact one."""
    table = [
        [math.ldexp(base * ROOTS[t % 4], t // 4) for t in range(-MOST_TURNS, MOST_TURNS + 1)]
        for base in bases
    ]
    tables = torch.tensor(table, dtype=torch.float64, device=turns.device)
    return tables.T.gather(0, turns + MOST_TURNS)


def logistic_bits(
    offsets: Float[Tensor, "P D"], octaves: Float[Tensor, "P D"]
) -> Float[Tensor, "P D"]:
    """−log2 of what a logistic distribution gives a step around a number.

    With a = (x − ½) / s and b = (x + ½) / s its probability is

        S(b) − S(a) = S(b) S(−a) (1 − e^(a − b)),   S the logistic function:

    in logarithms this is exact far out, and has a gradient there.

    Args:
        offsets: x, of the number from its mean, in steps.
        octaves: log2 of the distribution's s, in steps.
    """
    narrow = torch.exp2(-octaves)
    logs = torch.nn.functional.logsigmoid((offsets + 0.5) * narrow)
    logs = logs + torch.nn.functional.logsigmoid((0.5 - offsets) * narrow)
    return -(logs + torch.log(-torch.expm1(-narrow))) / math.log(2)


def gaussian_bits(
    offsets: Float[Tensor, "P D"], octaves: Float[Tensor, "P D"]
) -> Float[Tensor, "P D"]:
    """The same of a normal distribution, as published: no bits above 20, nor gradients there."""
    narrow = torch.exp2(-octaves)
    above, below = (offsets + 0.5) * narrow, (offsets - 0.5) * narrow
    share = torch.special.ndtr(above) - torch.special.ndtr(below)
    return -share.clamp_min(1e-6).log2()
