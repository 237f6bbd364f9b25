import dataclasses
import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from scenes import random_gaussians
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import instantgi.fit.sgi as sgi
from instantgi.context import (
    LEVEL_ZERO,
    MOST_TURNS,
    Context,
    _Rows,
    gaussian_bits,
    logistic_bits,
    num_nodes,
    steps_of,
    to_grid,
)
from instantgi.fit import SGI, fit_image
from instantgi.metrics import psnr
from instantgi.points.seeds import SeedGrid, seed_points
from instantgi.render import rasterize
from instantgi.render.draw import draw, draw_part, pixels
from instantgi.render.ops import from_blocks
from instantgi.representations import Seeds, flat
from instantgi.seeds import THINNEST, Perceptron, gaussians_of

FEATURES, PER_SEED = 6, 3
COUNTS = (FEATURES, 4, 2 * PER_SEED)
GOLDEN_PLACES = "59708d2dc23412f0d62fe732d898e710e83c39e37f92043792bbd57beaf4c882"
GOLDEN_FIRST = [[663, 123], [1445, 99]]
GOLDEN_INTEGERS = "bc6557eccd822e3af16898635854aa6dfabf9db61facbdc457bd93bd79c4f7b1"
RESOLUTIONS, LONGEST = (2, 3, 5, 9, 17, 30), 100


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Smooth waves with one hard edge."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    planes = [0.5 + 0.3 * torch.sin(7 * x + 3 * k + 5 * y) for k in range(channels)]
    return torch.stack(planes) + 0.2 * (x > 0.4)


def normal(*size: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=random, dtype=torch.float64).to(dtype)


def perceptron(*sizes: int, seed: int = 0, dtype=torch.float32) -> Perceptron:
    inputs, hidden, outputs = sizes
    return Perceptron(
        0.5 * normal(inputs, hidden, seed=seed, dtype=dtype),
        0.5 * normal(hidden, seed=seed + 1, dtype=dtype),
        0.5 * normal(hidden, outputs, seed=seed + 2, dtype=dtype),
        0.5 * normal(outputs, seed=seed + 3, dtype=dtype),
    )


def some_context(grid: SeedGrid) -> Context:
    """Of no generator that could change: integers depend on every bit."""

    def scattered(*size: int) -> torch.Tensor:
        numbers = torch.arange(math.prod(size)).view(size)
        return to_grid((numbers * 7919 % 1009 - 504).float() / 500)

    inputs, outputs = 4 * len(RESOLUTIONS), 2 * sum(COUNTS) + 3
    network = Perceptron(
        scattered(inputs, 12), scattered(12), scattered(12, outputs), scattered(outputs)
    )
    signs = torch.where(scattered(num_nodes(grid, RESOLUTIONS, LONGEST), 4) > 0, 1.0, -1.0)
    return Context(COUNTS, RESOLUTIONS, LONGEST, signs, network)


def some_seeds(num: int = 300, height: int = 40, width: int = 70) -> Seeds:
    grid = SeedGrid(num, height, width, 5)
    random = torch.Generator().manual_seed(0)
    symbols = torch.randint(-9, 10, (num, sum(COUNTS)), generator=random)
    colors, shapes = (perceptron(FEATURES, FEATURES, 3 * PER_SEED, seed=s) for s in (1, 9))
    return Seeds.from_symbols(grid, symbols, colors, shapes, (1.0, 0.1, 0.2), some_context(grid))


# Places


@pytest.mark.parametrize(
    "num, height, width",
    [(1, 1, 1), (7, 1, 1), (500, 64, 96), (1000, 3, 500), (40, 500, 3), (331, 100, 101)],
)
def test_there_are_as_many_seeds_as_asked_for_one_in_a_cell(num, height, width):
    grid = SeedGrid(num, height, width, 3)
    points = grid.points.double()
    assert points.shape == (num, 2) and grid.rows * grid.columns - num < grid.columns
    assert (points > 0).all() and (points < torch.tensor([width, height])).all()
    counts = torch.tensor([grid.columns, grid.rows])
    size = torch.tensor([width, height], dtype=torch.float64)
    if (size / counts > 1).all():
        cells = (points / size * counts).floor().long()
        numbers = cells[:, 1] * grid.columns + cells[:, 0]
        # a place is rounded by 1/128 px, which can bring it into the next cell
        assert (numbers.diff() > 0).double().mean() > 0.95


def test_cells_are_nearly_square():
    for height, width in ((512, 768), (300, 2000), (4000, 100)):
        grid = SeedGrid(5000, height, width)
        assert 0.8 < (width / grid.columns) / (height / grid.rows) < 1.25


def test_seeds_are_the_same_for_ever():
    """Files hold no places: other ones would move what is in them."""
    places = [
        SeedGrid(*numbers).places for numbers in ((1000, 480, 640), (999, 77, 1234, 2**32 - 1))
    ]
    data = b"".join(each.numpy().astype("<i8").tobytes() for each in places)
    assert hashlib.sha256(data).hexdigest() == GOLDEN_PLACES
    assert torch.equal(seed_points(1000, 480, 640), (places[0].double() / 128).float())
    assert places[1][:2].tolist() == GOLDEN_FIRST


def test_a_place_is_what_its_definition_says():
    grid = SeedGrid(6, 20, 30, 4)  # 3 x 2 cells, none too many
    golden = 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    for number, place in enumerate(grid.places.tolist()):
        draw = mix((2 * number * golden + mix((4 + golden) % 2**64)) % 2**64)
        j, i = divmod(number, 3)
        x = (512 * i + 2 * (draw % 256) + 1) * 30 // (8 * 3)
        y = (512 * j + 2 * (draw // 256 % 256) + 1) * 20 // (8 * 2)
        assert place == [2 * x + 1, 2 * y + 1]


@pytest.mark.parametrize(
    "numbers, text",
    [
        ((0, 8, 8), "num of seeds must be from 1 to 67108864, got 0"),
        ((5, 8, 2**21), "width of seeds must be from 1 to 1048576, got 2097152"),
        ((5, 8, 8, -1), "random_seed of seeds must be from 0 to 4294967295, got -1"),
    ],
)
def test_grids_that_cannot_be_are_refused(numbers, text):
    with pytest.raises(ValueError, match=text):
        SeedGrid(*numbers)


# Gaussians


def test_gaussians_are_those_of_the_paper():
    points, features, offsets = normal(4, 2), normal(4, FEATURES), normal(4, PER_SEED, 2)
    sizes = normal(4, 4, seed=1).exp()
    colors, shapes = (perceptron(FEATURES, FEATURES, 3 * PER_SEED, seed=s) for s in (1, 9))
    made = gaussians_of(points, features, offsets, sizes, colors, shapes)
    a, b, theta = shapes(features).view(4, PER_SEED, 3).unbind(-1)
    scales = torch.stack([a.sigmoid() * sizes[:, 2:3], b.sigmoid() * sizes[:, 3:4]], -1)
    turn = torch.stack([theta.cos(), -theta.sin(), theta.sin(), theta.cos()], -1)
    turn = turn.view(4, PER_SEED, 2, 2)
    matrices = turn @ torch.diag_embed(scales**2 + THINNEST**2) @ turn.mT
    expected = matrices.flatten(2)[..., [0, 1, 3]].view(-1, 3)
    assert_close(made.covariances, expected)
    assert_close(made.means[4], points[1] + offsets[1, 1] * sizes[1, :2])
    assert_close(made.colors.view(4, -1), colors(features))


def test_gradients_of_gaussians_are_right():
    double = torch.float64
    inputs = [normal(2, 2, dtype=double), normal(2, 4, dtype=double), normal(2, 2, 2, dtype=double)]
    inputs += [normal(2, 4, seed=3, dtype=double).exp()]
    networks = [perceptron(4, 5, 6, seed=seed, dtype=double) for seed in (1, 9)]
    tensors = [*inputs, *(part for each in networks for part in each.tensors)]

    def function(*parts):
        colors, shapes = (Perceptron(*parts[at : at + 4]) for at in (4, 8))
        made = gaussians_of(parts[0], parts[1], parts[2], parts[3], colors, shapes)
        return made.means, made.cholesky, made.colors

    assert torch.autograd.gradcheck(function, [part.requires_grad_() for part in tensors])


def test_sizes_of_zero_have_an_ellipse():
    sizes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-1.0, 2.0, -3.0, 1e-9]])
    networks = [perceptron(FEATURES, FEATURES, 9, seed=s) for s in (1, 9)]
    made = gaussians_of(normal(2, 2), normal(2, FEATURES), normal(2, PER_SEED, 2), sizes, *networks)
    assert made.scales_rotations[0].min() > 0.99 * THINNEST


# The context


def test_integers_are_the_rounded_floats():
    grid = SeedGrid(400, 50, 90, 1)
    context = some_context(grid)
    means, levels, turns = context.integers(grid)
    float_means, octaves, float_turns = context.floats(context.placed(grid))
    # a turn of exactly a half is rounded otherwise, and there are hidden values beyond 2^-13
    same = (turns == float_turns).all(1)
    assert same.double().mean() > 0.97
    of_numbers = turns[:, context.kinds()]
    expected = 8 * float_means * torch.exp2(-of_numbers / 4)
    # means are cut at 1/256 of a base step, which may be eight steps of eight units
    assert ((means - expected).abs()[same] < 0.5 + 8 / 256 * 8 + 0.1).all()
    expected = (4 * octaves + LEVEL_ZERO - of_numbers).clamp(0, 63)
    assert ((levels - expected).abs()[same] < 0.5 + 0.1).all()
    assert turns.abs().max() == MOST_TURNS and levels.min() == 0 and levels.max() > 50


def test_integers_do_not_depend_on_what_is_asked_with_them():
    grid = SeedGrid(400, 50, 90, 1)
    context = some_context(grid)
    whole = context.integers(grid)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    for all_of_it, part in zip(whole, context.integers(grid, order), strict=True):
        assert torch.equal(all_of_it[order], part)
    chunks = [context.integers(grid, slice(begin, begin + 7)) for begin in range(0, 400, 7)]
    for all_of_it, *parts in zip(whole, *chunks, strict=True):
        assert torch.equal(all_of_it, torch.cat(parts))
    for all_of_it, double in zip(
        whole, context.map(lambda part: part.double()).integers(grid), strict=True
    ):
        assert torch.equal(all_of_it, double)


def test_integers_are_the_same_for_ever():
    grid = SeedGrid(400, 50, 90, 1)
    numbers = torch.cat(some_context(grid).integers(grid), 1)
    data = numbers.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN_INTEGERS


def test_integers_are_what_their_definition_says():
    grid = SeedGrid(40, 30, 50, 1)
    context = some_context(grid)
    w1, b1, w2, b2 = ((256 * part).long().tolist() for part in context.network.tensors)
    signs = context.signs.long().tolist()
    means, levels, turns = (part.tolist() for part in context.integers(grid))
    kinds = context.kinds().tolist()
    for seed, (x, y) in enumerate(grid.places.tolist()):
        seen, begin = [], 0
        for resolution in RESOLUTIONS:
            columns, rows = resolution + 1, -(-resolution * 30 // 50) + 1
            at_x, at_y = 2 * resolution * x // 50, 2 * resolution * y // 50
            total = [0] * 4
            for up, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                i, j = (at_x >> 8) + right, (at_y >> 8) + up
                index = i + j * columns
                if columns * rows > LONGEST:
                    index = (i ^ (j * 2654435761 % 2**32)) % LONGEST
                weight = (at_x & 255 if right else 256 - (at_x & 255)) * (
                    at_y & 255 if up else 256 - (at_y & 255)
                )
                for k in range(4):
                    total[k] += weight * signs[begin + index][k]
            begin += min(columns * rows, LONGEST)
            seen += total
        hidden = [
            min(
                max(
                    (sum(a * w[j] for a, w in zip(seen, w1, strict=True)) + (b1[j] << 16) + 2048)
                    >> 12,
                    0,
                ),
                131071,
            )
            for j in range(len(b1))
        ]
        p = [
            sum(a * w[o] for a, w in zip(hidden, w2, strict=True)) + (b2[o] << 12)
            for o in range(len(b2))
        ]
        num = sum(COUNTS)
        t = [min(max((4 * v + (1 << 19)) >> 20, -12), 12) for v in p[2 * num :]]
        assert turns[seed] == t
        for d, kind in enumerate(kinds):
            mean = ((p[d] >> 12) * round(2 ** (14 - t[kind] / 4)) + (1 << 18)) >> 19
            level = ((4 * p[num + d] + (1 << 19)) >> 20) + 24 - t[kind]
            assert (means[seed][d], levels[seed][d]) == (mean, min(max(level, 0), 63))


def test_steps_are_quarter_octaves():
    turns = torch.arange(-12, 13)[:, None].expand(25, 3)
    steps = steps_of((1.0, 0.25, 3.0), turns)
    expected = torch.exp2(turns.double() / 4) * torch.tensor([1.0, 0.25, 3.0], dtype=torch.float64)
    assert_close(steps, expected, rtol=1e-15, atol=0)
    assert torch.equal(steps[::4], expected[::4])


@pytest.mark.parametrize("bits", [logistic_bits, gaussian_bits])
def test_bits_are_those_of_a_distribution(bits):
    numbers = torch.arange(-3000, 3001, dtype=torch.float64)[None]
    for octave in (-2.0, 0.0, 4.0):
        shares = torch.exp2(-bits(numbers - 0.3, torch.full_like(numbers, octave)))
        # the normal distribution counts at least a millionth for each
        assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64), atol=0.007, rtol=0)


def test_a_number_far_out_has_bits_and_a_gradient():
    offset = torch.tensor([[400.0]], requires_grad=True)
    octave = torch.tensor([[-1.0]], requires_grad=True)
    bits = logistic_bits(offset, octave)
    bits.backward()
    assert offset.grad is not None and octave.grad is not None
    assert_close(bits.item(), (399.5 * 2) / math.log(2), rtol=1e-3, atol=0)
    assert_close(offset.grad.item(), 2 / math.log(2))
    assert octave.grad.item() < -100


def test_bits_of_signs_are_those_of_their_shares():
    signs = torch.ones(30, 4)
    signs[:10] = -1.0
    signs[2, :2] = 1.0
    lengths, expected = [5, 25], 0.0
    for part in signs.split(lengths):
        share = float((part > 0).double().mean())
        each = [share, 1 - share]
        expected -= part.numel() * sum(p * math.log2(p) for p in each)
    signs.requires_grad_()
    found = sgi.sign_bits(signs, lengths, torch.tensor(lengths))
    assert_close(found.item(), expected, rtol=1e-5, atol=0)
    found.backward()
    assert signs.grad is not None
    # a sign more of the majority takes fewer bits: minus in the first level, plus in the second
    assert bool((signs.grad[:5] > 0).all()) and bool((signs.grad[5:] < 0).all())
    assert sgi.sign_bits(torch.ones(0, 4), [], torch.tensor([5])[:0]).item() == 0
    assert sgi.sign_bits(torch.ones(5, 4), [5], torch.tensor([5])).item() < 1e-3


@pytest.mark.parametrize("paper", [False, True])
def test_the_loss_has_the_bits_of_the_signs(paper):
    fitter = SGI(features=4, per_seed=2, paper=paper, rate=0.5)
    fitter.start(picture(48, 64), None, 800, seed=0)
    context = fitter._first_context()
    fitter._learn(dataclasses.replace(context, signs=context.signs.abs()), 1e-4)
    assert fitter.context is not None
    with torch.no_grad():
        fitter.context.signs[::3] *= -1  # a third, in every level
    held = fitter._values(fitter._numbers(), 0.5, True)
    found = fitter._sign_bits(fitter._context())
    assert held.cost is not None
    expected = fitter.bits + found / fitter._numbers().numel()
    assert_close(held.cost, 0.5 * expected)
    gradient = torch.autograd.grad(found, fitter.context.signs)[0]
    assert bool((gradient < 0).all()) and found.item() > 0.9 * context.signs.numel() * 0.918


def test_signs_of_a_long_fit_can_still_turn():
    fitter = SGI(features=4, per_seed=2)
    fitter.start(picture(48, 64), None, 800, seed=0)
    fitter.step(0.5)
    assert fitter.context is not None
    with torch.no_grad():
        fitter.context.signs.mul_(1e6)
    fitter.step(0.5)
    assert bool((fitter.context.signs.abs() == 1).any())
    assert fitter.context.signs.abs().max() == 1


def test_a_gradient_of_rows_is_that_of_torch():
    table, rows = normal(50, 4).requires_grad_(), torch.arange(3000) ** 2 % 47
    gradient = normal(3000, 4, seed=1) * torch.exp2(normal(3000, 1, seed=2))
    made = _Rows.apply(table, rows)
    assert torch.equal(made, table[rows])
    found = torch.autograd.grad(made, table, gradient)[0]
    exact = torch.zeros(50, 4, dtype=torch.float64).index_add_(0, rows, gradient.double())
    assert_close(found, exact.float(), rtol=1e-6, atol=1e-7)
    other = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    again = torch.autograd.grad(_Rows.apply(table, rows[other]), table, gradient[other])[0]
    assert torch.equal(found, again)
    nothing = torch.autograd.grad(_Rows.apply(table, rows), table, torch.zeros(3000, 4))[0]
    assert not nothing.any()


def test_a_fit_stays_on_its_device(monkeypatch):
    """Nothing that a step needs is on another one, and no step waits for the GPU."""

    class Anywhere(torch.Generator):
        def __new__(cls, device=None):
            return super().__new__(cls)

    def backward(outputs, gradients):
        """The engine starts no thread for a device that is not there."""
        for output, gradient in zip(outputs, gradients, strict=True):
            assert gradient is None or gradient.device == output.device
        nodes = [output.grad_fn for output in outputs if output.grad_fn is not None]
        leaves = [output for output in outputs if output.grad_fn is None]
        while nodes:
            node = nodes.pop()
            nodes += [each for each, _ in node.next_functions if each is not None]
            leaves += [node.variable] if hasattr(node, "variable") else []
        for leaf in leaves:
            assert leaf.device.type == "cuda"
            leaf.grad = torch.zeros_like(leaf)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(torch, "Generator", Anywhere)
    monkeypatch.setattr(torch, "randperm", lambda num, generator: np.arange(num))
    image = picture(24, 32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fitter = SGI(features=4, per_seed=2)
        fitter.start(image.to("cuda"), None, 2000, seed=0)
        for progress in (0.1, 0.5, 0.7, 1.0):
            fitter.step(progress)
        made = fitter.gaussians()
    assert made.features.device.type == "cuda"


# The record


def test_symbols_are_what_seeds_were_made_of():
    seeds = some_seeds()
    again = Seeds.from_symbols(
        seeds.grid,
        seeds.symbols,
        seeds.colors,
        seeds.shapes,
        (1.0, 0.1, 0.2),
        some_context(seeds.grid),
    )
    for name in ("features", "scalings", "offsets"):
        assert torch.equal(getattr(again, name), getattr(seeds, name))
    assert seeds.symbols.abs().max() == 9 and seeds.bits.shape == seeds.symbols.shape


def test_seeds_are_drawn_as_their_gaussians():
    seeds = some_seeds()
    smaller = seeds.scalings / 9
    seeds = dataclasses.replace(seeds, scalings=smaller, bases=None, context=None)
    gaussians = seeds.flat()
    assert len(seeds) == len(gaussians) == 900
    whole = draw(seeds, 40, 70)
    assert torch.equal(whole, rasterize(gaussians, 40, 70))
    part = draw_part(seeds, (10, 5, 20, 10), 10, 20)
    assert_close(part, whole[:, 5:15, 10:30], rtol=0, atol=1e-4)
    assert_close(pixels(seeds, torch.tensor([[10.5, 5.5]]))[0], whole[:, 5, 10], rtol=0, atol=1e-4)
    assert seeds.to(torch.float64).flat().means.dtype == torch.float64


def test_seeds_that_do_not_fit_together_are_refused():
    seeds = some_seeds()
    for changes, text in (
        ({"grid": SeedGrid(7, 40, 70)}, "the grid has 7 seeds, there are features of 300"),
        ({"features": normal(300, 5)}, "networks of 5 features have as many inputs"),
        ({"bases": None}, "have bases and a context, others have neither"),
        (
            {"colors": perceptron(FEATURES, FEATURES, 8)},
            "so many colors and 3 times as many shapes",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(seeds, **changes)
    with pytest.raises(ValueError, match="these seeds are not rounded"):
        _ = dataclasses.replace(seeds, bases=None, context=None).symbols
    assert seeds.context is not None
    with pytest.raises(ValueError, match="a context of 0 levels"):
        dataclasses.replace(seeds.context, resolutions=())


# The fit


def test_a_fit_is_rounded_and_its_bits_are_what_they_seem():
    image = picture(64, 96)
    fitter = SGI(features=12, per_seed=3)
    made = fit_image(image, method=fitter, num_gaussians=900, iterations=120)
    assert made.grid.num == 300 and made.context is not None and made.context.resolutions
    assert made.bases is not None
    again = Seeds.from_symbols(
        made.grid, made.symbols, made.colors, made.shapes, made.bases, made.context
    )
    assert torch.equal(again.offsets, made.offsets) and torch.equal(again.features, made.features)
    assert psnr(draw(made, 64, 96), image) > 30
    # the last steps were taken before the last move
    assert_close(float(made.bits.mean()), float(fitter.bits), rtol=0.05, atol=0)
    weights = torch.cat([part.flatten() for part in (*made.colors.tensors, *made.shapes.tensors)])
    assert torch.equal(weights * 1024, (weights * 1024).round())


def test_a_higher_rate_takes_fewer_bits_and_zero_rounds_nothing():
    image, bits = picture(48, 64), []
    for rate in (0.0003, 0.02):
        made = fit_image(image, method=SGI(rate=rate), num_gaussians=3000, iterations=60)
        bits.append(float(made.bits.mean()))
    assert bits[1] < 0.7 * bits[0]
    made = fit_image(image, method=SGI(rate=0.0), num_gaussians=300, iterations=60)
    assert made.bases is None and made.context is None


def test_few_seeds_have_no_hash_grid_and_tiny_pictures_no_levels():
    made = fit_image(picture(3, 500), method=SGI(levels=4), num_gaussians=50, iterations=40)
    assert made.grid.num == 7 and made.context is not None and made.context.resolutions == ()
    fitter = SGI(levels=4)
    fitter.start(picture(20, 90), None, 4, seed=0)
    assert fitter.grid.num == 1 and len(fitter.gaussians()) == 7 and len(fitter.shares) == 2


@pytest.mark.parametrize("paper", [False, True])
def test_levels_are_those_of_the_shares(paper):
    fitter = SGI(paper=paper)
    fitter.start(picture(44, 64), None, 500, seed=0)
    sizes = []
    for progress in (0.0, 0.19, 0.2, 0.59, 0.6, 1.0):
        fitter.step(progress)
        sizes.append(tuple(fitter.view.size))
    assert sizes == [(11, 16)] * 2 + [(22, 32)] * 2 + [(44, 64)] * 2


def test_steps_of_first_levels_see_every_pixel_in_turn():
    image = picture(45, 66)
    drawn = rasterize(gaussians := random_gaussians(40, 45, 66), 45, 66)
    views = list(itertools.islice(sgi.some_views(image, 2, torch.Generator()), 32))
    seen = torch.zeros(2, 45, 66)
    for index, view in enumerate(views):
        column, row = (round(each + 1.5) for each in view.origin)  # 1.5 = 4 / 2 − 0.5
        part = (slice(None), slice(row, None, 4), slice(column, None, 4))
        seen[index // 16][part[1:]] += 1
        assert_close(from_blocks(view.target, *view.size), image[part], rtol=0, atol=0)
        there = rasterize(gaussians, *view.size, origin=view.origin, step=view.step)
        assert_close(there, drawn[part], rtol=1e-4, atol=1e-2)
    assert bool((seen == 1).all())


def test_many_seeds_have_the_gradients_of_few(monkeypatch):
    results = []
    for chunk in (2**14, 100):
        monkeypatch.setattr(sgi, "CHUNK", chunk)
        fitter = SGI(per_seed=2, features=5)
        fitter.start(picture(40, 60), None, 900, seed=0)
        fitter.step(0.5)
        parameters = fitter.features, fitter.scalings, fitter.offsets, *fitter.colors.tensors
        results.append([part.grad.clone() for part in parameters if part.grad is not None])
    assert len(results[0]) == 7
    assert_close(*results, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("sampled", [2**11, 50])
def test_steps_have_the_gradient_of_their_noise(monkeypatch, sampled):
    monkeypatch.setattr(sgi, "FEWEST_SAMPLED", sampled)
    fitter = SGI(features=4, per_seed=2)
    fitter.start(picture(48, 64), None, 800, seed=0)
    fitter._learn(fitter._first_context(), 1e-4)
    held = fitter._values(fitter._numbers(), 0.5, False)
    assert held.steps is not None and held.noise is not None and fitter.context is not None
    gradient = normal(*held.numbers.shape)
    _, steps = held.others(gradient)[0]
    _, of_steps = held.others(gradient)[1]
    found = torch.autograd.grad(steps, fitter.context.network.biases2, of_steps)[0][-3:]
    # values are numbers + noise · step; a step is base · 2^r, so it moves by step · ln 2
    each = gradient[held.which] * held.noise * held.steps.detach() * math.log(2)
    share = len(gradient) / len(held.steps)
    expected = [share * each[:, fitter.kinds == kind].sum() for kind in range(3)]
    assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert len(held.steps) == (sampled if sampled == 50 else fitter.grid.num)


def test_bits_of_some_seeds_stand_for_all(monkeypatch):
    monkeypatch.setattr(sgi, "FEWEST_SAMPLED", 200)
    image = picture(48, 64)
    method = SGI(features=8, per_seed=2)
    made = fit_image(image, method=method, num_gaussians=800, iterations=100)
    assert psnr(draw(made, 48, 64), image) > 28 and float(made.bits.mean()) < 6


@pytest.mark.parametrize("paper", [False, True])
def test_gradient_of_the_loss_is_right(paper):
    image = picture(24, 30, 1)
    fitter = SGI(levels=1, rate=0.0, features=4, per_seed=2, paper=paper)
    fitter.start(image, None, 40, seed=0)
    for _ in range(5):
        fitter.step(0.1)
    values = fitter._numbers().detach().requires_grad_()
    networks = [
        each.map(lambda t: t.detach().requires_grad_()) for each in (fitter.colors, fitter.shapes)
    ]
    fitter._draw(values, *networks)
    again = values.detach().clone().requires_grad_()
    made = fitter._made(again, slice(None), *networks)
    difference = rasterize(made, 24, 30) - image
    loss = difference.abs().mean() if paper else difference.square().mean().sqrt()
    assert values.grad is not None
    assert_close(values.grad, torch.autograd.grad(loss, again)[0], rtol=1e-3, atol=1e-7)


def test_a_few_more_steps_do_not_spoil_seeds():
    random = torch.Generator().manual_seed(2)
    image = (picture(96, 128) + 0.05 * torch.randn(3, 96, 128, generator=random)).clamp(0, 1)
    made = fit_image(image, method=SGI(), num_gaussians=2100, iterations=150)
    again = fit_image(image, made, method=SGI(), iterations=3)
    before, after = (psnr(draw(each, 96, 128), image) for each in (made, again))
    assert after > before - 0.2
    assert float(again.bits.sum()) < 1.1 * float(made.bits.sum())


@pytest.mark.parametrize("scene", [(400, 50, 90), (57, 3, 1000), (91, 1000, 2), (33, 700, 3)])
def test_the_first_seeds_are_those_of_the_grid(scene):
    num, height, width = scene
    whole = SeedGrid(num, height, width, 1).places
    for first in (1, 2, 17, num - 1, num):
        some = SeedGrid(num, height, width, 1, first=first)
        assert torch.equal(some.places, whole[:first])


def test_a_fit_goes_on_from_seeds():
    image = picture(48, 64)
    made = fit_image(image, method=SGI(per_seed=2), num_gaussians=600, iterations=60)
    same = fit_image(image, made, method="sgi", iterations=0)
    assert torch.equal(flat(same).means, made.flat().means)
    finer = fit_image(image, made.to(torch.float64), method=SGI(), iterations=240)
    assert psnr(draw(finer, 48, 64), image) > psnr(draw(made, 48, 64), image)
    with pytest.raises(ValueError, match="sgi starts from seeds, not from other"):
        fit_image(image, made.flat(), method="sgi", iterations=1)
    some = dataclasses.replace(made.grid, first=100)
    parts = (made.features[:100], made.scalings[:100], made.offsets[:100])
    first = Seeds(some, *parts, made.colors, made.shapes, made.bases, made.context)
    with pytest.raises(ValueError, match="beginning of a file; decode the whole of it"):
        fit_image(image, first, method="sgi", iterations=1)
    with pytest.raises(ValueError, match="init is of 64x48 pixels, the image of 30x20"):
        fit_image(picture(20, 30), made, method="sgi", iterations=1)
    with pytest.raises(ValueError, match="instantgi starts from .* their sum, not from seeds"):
        fit_image(image, made, method="instantgi", iterations=1)


def test_a_number_of_gaussians_is_an_upper_limit():
    for num, seeds in ((50, 7), (49, 7), (48, 6), (3, 1)):
        fitter = SGI()
        fitter.start(picture(20, 30), None, num, seed=0)
        assert fitter.grid.num == seeds


def test_a_fit_without_a_schedule_is_refused():
    image = picture(20, 30)
    with pytest.raises(ValueError, match="SGI needs iterations or seconds"):
        fit_image(image, method="sgi", num_gaussians=70, patience=20)
    made = fit_image(image, method="sgi", num_gaussians=70, patience=20, iterations=5)
    assert isinstance(made, Seeds)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"levels": 5}, "levels must be from 1 to 4, got 5"),
        ({"rate": -1.0}, "rate must be from 0 to 10000, got -1.0"),
        ({"rate": 1e39}, "rate must be from 0 to 10000, got 1e[+]39"),
        ({"rate": math.nan}, "rate must be from 0 to 10000, got nan"),
        ({"features": 0}, "features must be from 1 to 255, got 0"),
        ({"per_seed": 300}, "per_seed must be from 1 to 255, got 300"),
    ],
)
def test_what_sgi_cannot_do_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SGI(**options)
