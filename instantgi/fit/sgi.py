"""SGI, Structured Gaussian Image (CVPR 2026): seeds whose numbers are learned to be short."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from instantgi.context import (
    PER_NODE,
    Context,
    Placed,
    gaussian_bits,
    logistic_bits,
    num_nodes,
    sign_bits,
    steps_of,
    straight,
    to_grid,
)
from instantgi.fit.lig import lost_by
from instantgi.fit.replay import SORT_EVERY
from instantgi.gaussians import Gaussians
from instantgi.points.seeds import SeedGrid
from instantgi.render.mixture import seen_from
from instantgi.render.ops import (
    PARAMETERS,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)
from instantgi.representations import Representation, Seeds
from instantgi.seeds import CHUNK, Perceptron, gaussians_of, joined

RATE, MOST_RATE = 0.001, 10_000  # λ
SHARES = {1: (1.0,), 2: (0.6, 1.0), 3: (0.2, 0.6, 1.0), 4: (0.1, 0.3, 0.6, 1.0)}  # ends of levels
NETWORK_BITS = 10  # of the fraction of the weights that make Gaussians
FEWEST_PIXELS = 8  # of a side of a level
SPEED_OF_FEWER = 0.7  # of rates, where a step sees half of the rows and columns
QUIET, QUIET_LEVEL = 0.02, 0.04  # of a fit: without noise at the beginning, and of other levels
FEWEST_PLACED = 256  # seeds; fewer are coded without a hash grid
SAMPLED, FEWEST_SAMPLED = 0.05, 2**11  # of the seeds whose bits a step looks at
TURNS_EVERY = 10  # steps; between them those of the other seeds stay
SMALLEST = 1e-3  # px, of a size that the paper's rounding makes 0
PUBLISHED_GRID = (18, 24, 33, 44, 59, 80, 108, 148, 201, 275, 376, 514)
LONGEST = 2**13
KEPT_SIGN, SPEED_OF_MORE = 0.1, 0.05  # of seeds that a fit goes on from
NAMES = ("features", "scalings", "offsets", "colors", "shapes", "context")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the paper and we choose differently.

    Attributes:
        rates: of Adam, by `NAMES`, at the start.
        last_rates: what an exponential decay reaches at the end of the fit; None for constant rates
            that fall linearly to a fiftieth in the last fifth, and are smaller in first levels.
        betas: of Adam.
        bases: steps of features, sizes and offsets; sizes are in px if `linear`, else logarithms.
        averaged: first levels see a smaller picture, not some of the rows and columns.
        absolute: the loss is the mean absolute difference, not the root of the mean square, which
            is about as large, so that λ means the same.
        context_from: share of the fit after which the context is learned and steps change.
        rounded_from: share after which numbers are rounded and not noisy.
        spread: a seed's Gaussians start all over its cell, not at its place.
    """

    rates: tuple[float, ...]
    last_rates: tuple[float, ...] | None
    betas: tuple[float, float]
    bases: tuple[float, float, float]
    linear: bool
    averaged: bool
    absolute: bool
    context_from: float
    rounded_from: float
    spread: bool


PAPER = Recipe(
    rates=(0.0075, 0.007, 0.01, 0.008, 0.004, 0.005),
    # the horizon of the decay is twice the fit: geometric means of the ends
    last_rates=(0.0075, 0.007, 1e-3, 6.3e-4, 0.004, 2.2e-4),
    betas=(0.9, 0.999),
    bases=(1.0, 1.0, 0.2),
    linear=True,
    averaged=True,
    absolute=True,
    context_from=0.8,
    rounded_from=1.0,
    spread=False,
)
OURS = Recipe(
    rates=(0.0375, 0.035, 0.05, 0.02, 0.01, 0.005),
    last_rates=None,
    betas=(0.9, 0.98),
    bases=(0.25, 0.05, 0.05),
    linear=False,
    averaged=False,
    absolute=False,
    context_from=0.2,
    rounded_from=0.95,
    spread=True,
)


class SGI:
    """Seeds that do not move, each the root of some Gaussians, fitted and made short at once.

    The N / K seeds of `SeedGrid`, rounded down, have F features, four sizes and K offsets, of which
    two networks make K Gaussians each, see `gaussians_of`. Adam moves all of it on how far the sum
    is from the picture, plus λ times the mean number of bits of a seed's numbers. These are rounded
    to steps in a file: during the fit noise as wide as a step stands for that, at first of `bases`,
    and later of what `Context` makes of them, learned together with how probable it finds the
    numbers. In the first of three levels a step sees every fourth row and column, others each time,
    then every second one. All parameters are in pixels of the whole picture, so that nothing is to
    be done between two levels.

    `paper`: what is published, on our exact kernels: first levels are fitted to smaller pictures,
    sizes are rounded in pixels, to whole ones at first, all Gaussians of a seed start at its place,
    the context is normal and comes in the last fifth of the fit, the loss is the mean absolute
    difference. As in ours a context gives powers of √√2 of steps, cells of the hash grid are
    square, scales are exponentials, and seeds are not dropped; other than published, the steps of
    offsets are those of the last level from the beginning. The profile of seeds does not hold sizes
    rounded like that; a lossless file has the Gaussians. Ours: see `Recipe`; in the last twentieth
    of the fit numbers and networks are rounded, which gradients do not see.

    Args:
        levels: 1 to 4; fewer in small pictures.
        rate: λ, up to 10,000; 0 rounds nothing, and is for comparison: files hold its Gaussians but
            not its seeds.
        features: F; by default 12, of the paper 50.
        per_seed: K; by default 7, of the paper 10.
        paper: see above.
    """

    needs_schedule = True  # levels and the context begin after shares of it

    def __init__(
        self,
        levels: int = 3,
        *,
        rate: float = RATE,
        features: int | None = None,
        per_seed: int | None = None,
        paper: bool = False,
    ):
        features = (50 if paper else 12) if features is None else features
        per_seed = (10 if paper else 7) if per_seed is None else per_seed
        for name, value, low, high in (
            ("levels", levels, 1, 4),
            ("features", features, 1, 255),
            ("per_seed", per_seed, 1, 255),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, got {value}")
        if not 0 <= rate <= MOST_RATE:
            raise ValueError(f"rate must be from 0 to {MOST_RATE}, got {rate}")
        self.num_levels, self.rate, self.paper = levels, rate, paper
        self.num_features, self.per_seed = features, per_seed
        self.recipe = PAPER if paper else OURS

    def start(
        self, image: Tensor, init: Representation | None, num_gaussians: int, seed: int
    ) -> None:
        self.image = image.detach().float()
        self.random = torch.Generator().manual_seed(seed)  # of the start, on every device alike
        self.noise = torch.Generator(image.device).manual_seed(seed)
        self.bases, self.bits = self.recipe.bases, math.nan
        if not self.recipe.linear:  # logarithms of the largest sizes stay within a context's reach
            largest = math.log(max(2, *image.shape[1:]))
            step = torch.tensor(max(self.bases[1], largest / 120)).item()  # of float32
            self.bases = (self.bases[0], step, self.bases[2])
        levels = self.num_levels
        while levels > 1 and min(image.shape[1:]) >> (levels - 1) < FEWEST_PIXELS:
            levels -= 1
        self.shares = SHARES[levels]
        if init is None:
            num = max(1, num_gaussians // self.per_seed)
            self.grid = SeedGrid(num, image.shape[1], image.shape[2], seed % 2**32)
            parameters = self._random_parameters()
        else:
            parameters = self._parameters_of(init)
        self.points = self.grid.points.to(image.device)
        kinds = [kind for kind, count in enumerate(self.counts) for _ in range(count)]
        self.kinds = torch.tensor(kinds).to(image.device)
        self.usual_steps = torch.tensor(self.bases).to(image.device)[self.kinds]
        self.iteration, self.level, self.context, self.turns = 0, -1, None, None
        self.placed: Placed | None = None
        self.speed = 1.0 if init is None else SPEED_OF_MORE
        numbers, self.colors, self.shapes = parameters
        self.features, self.scalings, self.offsets = (
            part.to(self.image).clone().requires_grad_() for part in numbers
        )
        self.colors, self.shapes = (
            network.map(lambda part: part.to(self.image).clone().requires_grad_())
            for network in (self.colors, self.shapes)
        )
        self.optimizer = torch.optim.Adam(
            [
                {"params": group}
                for group in (
                    [self.features],
                    [self.scalings],
                    [self.offsets],
                    [*self.colors.tensors],
                    [*self.shapes.tensors],
                )
            ],
            betas=self.recipe.betas,
            eps=1e-15,
            fused=True,
        )
        self._set_level(0.0)
        if isinstance(init, Seeds) and init.context is not None and self.rate > 0:
            self._learn(init.context.map(lambda part: part.to(self.image)), KEPT_SIGN)

    def step(self, progress: float) -> Tensor:
        self._set_level(progress)
        self.view = next(self.views)
        if self.context is None and self.rate > 0 and progress >= self.recipe.context_from:
            self._learn(self._first_context(), 1e-4)
        self._set_rates(progress)
        is_rounded = self.rate > 0 and progress >= self.recipe.rounded_from
        numbers = self._numbers()
        held = self._values(numbers, progress, is_rounded)
        networks = self.colors, self.shapes
        if is_rounded:
            networks = [each.map(lambda part: straight(part, rounded)) for each in networks]
        values = held.numbers.detach().requires_grad_()
        colors, shapes = (each.map(lambda t: t.detach().requires_grad_()) for each in networks)
        squares = self._draw(values, colors, shapes)
        assert values.grad is not None
        tensors = [part for each in networks for part in each.tensors]
        gradients = [part.grad for each in (colors, shapes) for part in each.tensors]
        outputs, others = held.others(values.grad)
        self.optimizer.zero_grad()
        torch.autograd.backward(
            [held.numbers, *tensors, *outputs], [values.grad, *gradients, *others]
        )
        self.optimizer.step()
        if self.context is not None:  # a sign far from 0 could not turn any more
            with torch.no_grad():
                self.context.signs.clamp_(-1, 1)
        self.iteration += 1
        return self.view.lost + squares * (self.image[0].numel() / math.prod(self.view.size))

    def gaussians(self) -> Seeds:
        """Rounded as a file has them, unless λ is 0."""
        numbers = self._numbers().detach()
        colors, shapes = (
            each.map(lambda t: t.detach().clone()) for each in (self.colors, self.shapes)
        )
        if self.rate == 0:
            return self._seeds(numbers, colors, shapes)
        colors, shapes = colors.map(rounded), shapes.map(rounded)
        context = self._constant() if self.context is None else self._context()
        context = context.map(lambda part: part.detach().clone())
        turns = context.turns(self.grid)
        steps = steps_of(self.bases, turns)[:, self.kinds]
        symbols = (numbers.double() / steps).round().long()
        if self.recipe.linear:
            return self._seeds((symbols * steps).float(), colors, shapes)
        return Seeds.from_symbols(self.grid, symbols, colors, shapes, self.bases, context, turns)

    # --- the start -------------------------------------------------------------------------------

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.num_features, 4, 2 * self.per_seed

    def _random_parameters(self) -> tuple[tuple[Tensor, Tensor, Tensor], Perceptron, Perceptron]:
        num, size, per_seed = self.grid.num, self.num_features, self.per_seed
        channels, cell = len(self.image), self.grid.cell
        offsets = torch.zeros(num, per_seed, 2)
        scaling = math.log(cell)
        if self.paper:
            coarsest = 2 ** (len(self.shares) - 1)
            scaling = min(max(math.log(cell / coarsest), 1e-4), 0.5) + math.log(coarsest)
        if self.recipe.spread:
            offsets += SeedGrid(per_seed, 1000, 1000).points / 1000 - 0.5
        scalings = torch.full((num, 4), scaling)
        outputs = channels * per_seed
        colors = Perceptron(
            self._even(0.01 * math.sqrt(6 / (size + size)), size, size),
            torch.zeros(size),
            self._even(0.01 * math.sqrt(6 / (size + outputs)), size, outputs),
            torch.zeros(outputs),
        )
        bound = size**-0.5
        shapes = Perceptron(
            self._even(bound, size, size),
            self._even(bound, size),
            self._even(bound, size, 3 * per_seed),
            self._even(bound, 3 * per_seed),
        )
        return (torch.zeros(num, size), scalings, offsets), colors, shapes

    def _even(self, bound: float, *size: int) -> Tensor:
        """Evenly distributed within ±bound."""
        return torch.empty(size).uniform_(-bound, bound, generator=self.random)

    def _parameters_of(
        self, init: Representation
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Perceptron, Perceptron]:
        """From seeds; they go on at full size."""
        if not isinstance(init, Seeds):
            raise ValueError(
                "sgi starts from seeds, not from other Gaussians; files of a fit with λ = 0 hold "
                "such: fit with a small λ instead"
            )
        if init.grid.count < init.grid.num:
            raise ValueError("these seeds are the beginning of a file; decode the whole of it")
        height, width = self.image.shape[1:]
        if (init.height, init.width) != (height, width):
            raise ValueError(
                f"init is of {init.width}x{init.height} pixels, the image of {width}x{height}"
            )
        init = init.detach()
        self.grid, self.shares = init.grid, SHARES[1]
        self.num_features, self.per_seed = init.features.shape[1], init.per_seed
        self.bases = self.bases if init.bases is None else init.bases
        return (init.features, init.scalings, init.offsets), init.colors, init.shapes

    # --- levels and rates ------------------------------------------------------------------------

    def _set_level(self, progress: float) -> None:
        level = next(
            (i for i, end in enumerate(self.shares) if progress < end), len(self.shares) - 1
        )
        if level == self.level:
            return
        self.level, self.began, self.order = level, progress, None
        shift = len(self.shares) - 1 - level
        if self.recipe.averaged or shift == 0:
            self.views = itertools.repeat(smaller_view(self.image, shift))
        else:
            self.views = some_views(self.image, shift, self.random)

    def _set_rates(self, progress: float) -> None:
        first, last = self.recipe.rates, self.recipe.last_rates
        fewer = len(self.shares) - 1 - self.level
        slow = SPEED_OF_FEWER**fewer * max(0.02, min(1.0, (1 - progress) / 0.2))
        for index, group in enumerate(self.optimizer.param_groups):
            factor = slow if last is None else (last[index] / first[index]) ** progress
            group["lr"] = self.speed * first[index] * factor

    # --- numbers and their bits ------------------------------------------------------------------

    def _numbers(self) -> Tensor:
        """Of each seed, as they are rounded."""
        scalings = self.scalings.exp() if self.recipe.linear else self.scalings
        return torch.cat([self.features, scalings, self.offsets.flatten(1)], 1)

    def _seeds(self, numbers: Tensor, colors: Perceptron, shapes: Perceptron) -> Seeds:
        features, sizes, offsets = numbers.split(self.counts, 1)
        if self.recipe.linear:
            sizes = sizes.clamp_min(SMALLEST).log()
        offsets = offsets.reshape(self.grid.num, self.per_seed, 2)
        return Seeds(self.grid, features.clone(), sizes.clone(), offsets.clone(), colors, shapes)

    def _values(self, numbers: Tensor, progress: float, is_rounded: bool) -> "Values":
        """The numbers as a file may have them."""
        bases = self.usual_steps
        is_quiet = progress < (QUIET if self.level == 0 else self.began + QUIET_LEVEL)
        if self.rate == 0 or (self.context is None and is_quiet):
            return Values(numbers)
        noise = None
        if not is_rounded:
            noise = torch.rand(numbers.shape, generator=self.noise, device=numbers.device) - 0.5
        if self.context is None:
            return Values(_in_steps(numbers, bases, noise) * bases)
        context, which = self._context(), self._sample()
        assert self.placed is not None
        means, octaves, turns = context.floats(self.placed, which)
        turns = (turns.detach() if is_rounded else turns)[:, self.kinds]
        seen = bases * torch.exp2(turns / 4)
        steps = seen.detach()
        if isinstance(which, Tensor):
            if self.turns is None or self.iteration % TURNS_EVERY == 0:
                self.turns = self._turns(context)
            steps = bases * torch.exp2(self.turns / 4)[:, self.kinds]
        some_noise = None if noise is None else noise[which]
        offsets = _in_steps(numbers[which], seen, some_noise) - means * bases / seen
        bits = (gaussian_bits if self.paper else logistic_bits)(offsets, octaves - turns / 4).mean()
        self.bits = bits.detach()
        values = _in_steps(numbers, steps, noise) * steps
        cost = self.rate * (bits + self._sign_bits(context) / numbers.numel())
        return Values(values, cost, seen, some_noise, which)

    def _sign_bits(self, context: Context) -> Tensor:
        """Of the hash grid: of each of its levels as files have it, of all at once as published."""
        assert self.placed is not None
        lengths, counts = self.placed.lengths, self.placed.levels[-1]
        if self.paper and lengths:
            lengths, counts = [sum(lengths)], counts.sum(0, keepdim=True)
        return sign_bits(context.signs, lengths, counts)

    def _sample(self) -> Tensor | slice:
        """Of which seeds a step looks at the bits: of all unless they are many."""
        num = self.grid.num
        count = max(FEWEST_SAMPLED, int(SAMPLED * num))
        if count >= num:
            return slice(None)
        return torch.randint(num, (count,), generator=self.noise, device=self.image.device)

    @torch.no_grad()
    def _turns(self, context: Context) -> Tensor:
        assert self.placed is not None
        chunks = (slice(i, i + CHUNK) for i in range(0, self.grid.num, CHUNK))
        return torch.cat([context.floats(self.placed, chunk)[2] for chunk in chunks])

    # --- the context -----------------------------------------------------------------------------

    def _spread(self) -> tuple[Tensor, Tensor]:
        """Means of all numbers, and log2 of their deviations, in base steps."""
        numbers = self._numbers().detach() / self.usual_steps
        # a logistic distribution deviates by 1.8 of its scale; one step is not less than 0.3
        return numbers.mean(0), (0.55 * (numbers.std(0, correction=0) + 0.2)).log2()

    def _constant(self) -> Context:
        return Context.constant(self.counts, *self._spread())

    def _first_context(self) -> Context:
        """That knows nothing yet but means and deviations."""
        constant, num = self._constant(), self.grid.num
        if num < FEWEST_PLACED:
            return constant
        resolutions, hidden = PUBLISHED_GRID, 100
        if not self.paper:
            finest = min(514, max(self.grid.rows, self.grid.columns) / 2)
            resolutions = {round(2 * (finest / 2) ** (level / 11)) for level in range(12)}
            hidden = min(100, max(8, round(num**0.5 / 4)))
        resolutions = tuple(sorted(resolutions))
        inputs = PER_NODE * len(resolutions)
        biases = constant.network.biases2
        network = Perceptron(
            self._even(inputs**-0.5, inputs, hidden),
            self._even(inputs**-0.5, hidden),
            self._even(0.3 * hidden**-0.5, hidden, len(biases)),
            biases,
        )
        signs = self._even(1.0, num_nodes(self.grid, resolutions, LONGEST), PER_NODE).sign()
        context = Context(self.counts, resolutions, LONGEST, signs, network)
        return context.map(lambda part: part.to(self.image))

    def _learn(self, context: Context, weight: float) -> None:
        """Makes parameters of a context; those of its signs are within ± weight at first."""
        even = self._even(weight, *context.signs.shape).abs().to(context.signs)
        raw = dataclasses.replace(context, signs=context.signs * even)
        self.context = raw.map(lambda part: part.clone().requires_grad_())
        self.placed = context.placed(self.grid)
        tensors = [self.context.signs, *self.context.network.tensors]
        self.optimizer.add_param_group({"params": [part for part in tensors if part.numel()]})

    def _context(self) -> Context:
        """Binary and rounded, as a file has it; gradients do not see that."""
        assert self.context is not None
        signs = straight(self.context.signs, lambda raw: torch.where(raw >= 0, 1.0, -1.0))
        network = self.context.network.map(lambda part: straight(part, to_grid))
        return dataclasses.replace(self.context, signs=signs, network=network)

    # --- the picture -----------------------------------------------------------------------------

    def _draw(self, values: Tensor, colors: Perceptron, shapes: Perceptron) -> Tensor:
        """The sum of squared errors; gradients go to what is given.

        The Gaussians of many seeds are made twice, so that no more is kept of them than of some.
        """
        chunks = [slice(i, i + CHUNK) for i in range(0, self.grid.num, CHUNK)]
        is_large = len(chunks) > 1
        with torch.set_grad_enabled(not is_large):
            parts = [self._made(values, chunk, colors, shapes) for chunk in chunks]
        made = joined(parts).detach()
        scene, size = (made.means, made.cholesky, made.colors), self.view.size
        if self.order is None or self.iteration % SORT_EVERY == 0:
            self.order = order_by_place(made.means, *size)
        residual, squares = rasterize_error(*scene, self.view.target, *size, False, self.order)
        count = len(self.image) * math.prod(size)
        if self.recipe.absolute:
            residual.sign_()
        geometry, of_colors = rasterize_error_backward(
            residual, *scene, *size, 1 / count, PARAMETERS, self.order
        )
        if not self.recipe.absolute:
            root = (squares / count).sqrt().clamp_min(1e-6)
            geometry, of_colors = geometry / root, of_colors / root
        gradients = geometry[:, :2].contiguous(), geometry[:, 2:].contiguous(), of_colors
        for index, chunk in enumerate(chunks):
            part = self._made(values, chunk, colors, shapes) if is_large else parts[index]
            begin = index * CHUNK * self.per_seed
            rows = slice(begin, begin + len(part))
            torch.autograd.backward(
                [part.means, part.cholesky, part.colors], [each[rows] for each in gradients]
            )
        return squares

    def _made(
        self, values: Tensor, chunk: slice, colors: Perceptron, shapes: Perceptron
    ) -> Gaussians:
        """In pixels of what the step sees."""
        points = self.points[chunk]
        if len(points) < len(values):  # the gradient of a part is as large as the whole
            values = values[chunk]
        features, sizes, offsets = values.split(self.counts, 1)
        sizes = sizes if self.recipe.linear else sizes.exp()
        offsets = offsets.reshape(len(features), self.per_seed, 2)
        made = gaussians_of(points, features, offsets, sizes, colors, shapes)
        return seen_from(made, self.view.origin, self.view.step)


@dataclasses.dataclass(frozen=True)
class View:
    """What a step sees of the picture.

    Attributes:
        target: pixels in blocks.
        size: height and width.
        origin, step: its upper left corner and the distance of its pixels, (x, y) in pixels of the
            whole picture.
        lost: squares of what it cannot show.
    """

    target: Tensor
    size: tuple[int, ...]
    origin: tuple[float, float]
    step: tuple[float, float]
    lost: Tensor | float = 0.0


def smaller_view(image: Tensor, shift: int) -> View:
    """Of the picture at 2^shift times less a side."""
    height, width = image.shape[1:]
    size = max(1, round(height / 2**shift)), max(1, round(width / 2**shift))
    step = width / size[1], height / size[0]
    if shift == 0:
        return View(to_blocks(image), size, (0.0, 0.0), step)
    target = torch.nn.functional.interpolate(
        image[None], size, mode="bicubic", antialias=True, align_corners=False
    )[0]
    return View(to_blocks(target), size, (0.0, 0.0), step, lost_by(image, *size))


def some_views(image: Tensor, shift: int, random: torch.Generator) -> Iterator[View]:
    """Of 2^shift rows and as many columns one each, all such choices in turn, for ever."""
    every = 2**shift
    views = []
    for row, column in itertools.product(range(every), repeat=2):
        seen = image[:, row::every, column::every].contiguous()
        corner = column + 0.5 - every / 2, row + 0.5 - every / 2
        views.append(View(to_blocks(seen), seen.shape[1:], corner, (every, every)))
    while True:
        for choice in torch.randperm(len(views), generator=random).tolist():
            yield views[choice]


@dataclasses.dataclass(frozen=True)
class Values:
    """Numbers as a file may have them, and what else of a step gets a gradient.

    Attributes:
        numbers: of all seeds; their steps are constants.
        cost: of the bits of some seeds.
        steps, noise, which: of these seeds.
    """

    numbers: Tensor
    cost: Tensor | None = None
    steps: Tensor | None = None
    noise: Tensor | None = None
    which: Tensor | slice = dataclasses.field(default_factory=lambda: slice(None))

    def others(self, gradient: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Outputs besides the numbers, with their gradients where that of the numbers is given.

        A number moves by its noise when its step does.
        """
        if self.cost is None or self.steps is None:
            return [], []
        if self.noise is None:
            return [self.cost], [None]
        share = len(gradient) / len(self.steps)  # bits are a mean of some seeds, as if of all
        return [self.cost, self.steps], [None, share * gradient[self.which] * self.noise]


def _in_steps(numbers: Tensor, steps: Tensor, noise: Tensor | None) -> Tensor:
    """Rounded, or with noise instead."""
    numbers = numbers / steps
    return straight(numbers, torch.round) if noise is None else numbers + noise


def rounded(weights: Tensor) -> Tensor:
    """As files hold the weights of networks that make Gaussians: multiples of 2⁻¹⁰."""
    return (weights * 2**NETWORK_BITS).round() / 2**NETWORK_BITS
