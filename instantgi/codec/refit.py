"""Gaussians fitted so that they lose little by being quantised.

What is quantised first is held, and the rest makes up for it: positions, then sizes, then shapes,
then colors, a quarter of the Gaussians at a time, each solved for what the others left.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.codec import quantize
from instantgi.codec.entropy import Ints
from instantgi.codec.header import Steps, is_chroma
from instantgi.codec.quantize import Floats, Quantised
from instantgi.fit import LocalAdam, fit_image, solve_colors
from instantgi.gaussians import Gaussians
from instantgi.render import rasterize
from instantgi.representations import Representation

RATE = 0.1  # of the steps between, in standard deviations
ITERATIONS = 60  # after positions, and again after sizes
SOLVES = 10  # color iterations once the geometry is fixed
ROUNDS = 4  # in which colors are rounded
BITS = 37.0  # of a Gaussian, about
RATE_WEIGHT = 4.0  # of the price of bits in a fit
LUMA_COUNTS = 3.0


class RateAware(LocalAdam):
    """A fit that also pays for bits: half the squared error + Σ λ ½ ln(1 + (a / Δ)²).

    a is a luma or chroma times size, Δ its step: about what coding a / Δ takes, in nats. At equal
    slopes of error and rate λ = π Δ² / 12; luma counts three times, since the two steps of the
    shape shrink as it grows. Colors that cancel each other, which long fits make, cost most.
    """

    def __init__(self, steps: Steps, weight: float = RATE_WEIGHT):
        super().__init__()
        self.steps, self.weight = steps, weight

    def start(
        self, image: Tensor, init: Representation | None, num_gaussians: int, seed: int
    ) -> None:
        super().start(image, init, num_gaussians, seed)
        channels = len(image)
        self.to_luma = _tensor(quantize.to_luma_chroma(np.eye(channels)), image)  # [C, C]
        step = quantize.color_steps(channels, self.steps)
        price = np.where(is_chroma(channels), 1.0, LUMA_COUNTS) * self.weight
        self.price = _tensor(price * np.pi * step**2 / 12, image)  # [C]
        self.squared_steps = _tensor(step**2, image)

    def _gradients(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        geometry, colors = super()._gradients(residual)
        size = (self.cholesky[:, :1] * self.cholesky[:, 2:]).abs().sqrt()
        amounts = self.colors @ self.to_luma * size
        of_rate = self.price * amounts / (self.squared_steps + amounts.square())
        return geometry, colors + (of_rate * size) @ self.to_luma.T


class _Held(LocalAdam):
    """A fit in which means stay where they are, and sizes too if asked."""

    def __init__(self, sizes: bool):
        super().__init__(rate=RATE, relocations=())
        self.holds_sizes = sizes

    def _move(self) -> Tensor:
        means, cholesky = self.means.clone(), self.cholesky.clone()
        squares = super()._move()
        self.means.copy_(means)
        if self.holds_sizes:
            before, after = (each[:, :1] * each[:, 2:] for each in (cholesky, self.cholesky))
            self.cholesky.mul_((before / after).abs().sqrt())
        return squares


def worth_their_bits(gaussians: Gaussians, steps: Steps) -> Gaussians:
    """Those that take more error away than their bits would elsewhere.

    A Gaussian's own energy is π |c|² det L. A bit more of every luma, three channels of π Δ² / 12
    each, takes 2 ln 2 of that away: so much a bit of any Gaussian has to be worth.
    """
    energy = torch.pi * gaussians.colors.square().sum(1) * gaussians.cholesky[:, ::2].prod(1).abs()
    bit = 2 * np.log(2) * min(3, gaussians.colors.shape[1]) * np.pi * steps.luma**2 / 12
    return gaussians[energy >= BITS * bit]


def fit_quantised(
    image: Float[Tensor, "C H W"], gaussians: Gaussians, steps: Steps, iterations: int = ITERATIONS
) -> Quantised:
    """Integers that stand for Gaussians as close to the image as these, or nearly.

    Args:
        gaussians: where a fit ended.
    """
    height, width = image.shape[1:]
    points = quantize.quantise_means(_numbers(gaussians.means), height, width, steps)
    means = _tensor(quantize.means_of(points, steps), image)
    held = Gaussians(means, gaussians.cholesky, gaussians.colors)
    free = fit_image(image, held, method=_Held(sizes=False), iterations=iterations)
    log_sizes, shapes = quantize.log_shape(_numbers(free.cholesky))
    sizes = quantize.quantise_sizes(log_sizes, steps)
    scaled = 2 ** (_tensor(sizes / steps.sizes - log_sizes, image))[:, None]
    held = Gaussians(means, free.cholesky * scaled, free.colors)
    free = fit_image(image, held, method=_Held(sizes=True), iterations=iterations)
    shapes = quantize.log_shape(_numbers(free.cholesky))[1]
    return _with_colors(image, points, sizes, shapes, free.colors, steps)


def _with_colors(
    image: Tensor, points: Ints, sizes: Ints, shapes: Floats, colors: Tensor, steps: Steps
) -> Quantised:
    """Shapes are held in steps that follow from the colors: both are settled in two passes."""
    scale = quantize.sizes_of(sizes, steps)
    chosen = quantize.quantise_colors(_numbers(colors), scale, steps)
    for rounds in (1, ROUNDS):
        levels = quantize.levels_of(chosen)
        quantised = quantize.quantise_shapes(shapes, levels, steps)
        cholesky = _tensor(quantize.cholesky_of(scale, quantised, levels, steps), image)
        means = _tensor(quantize.means_of(points, steps), image)
        scene = solve_colors(Gaussians(means, cholesky, colors), image, SOLVES)
        chosen = _round_colors(image, scene, scale, steps, rounds)
        colors = scene.colors
    final = quantize.quantise_shapes(shapes, quantize.levels_of(chosen), steps)
    return Quantised(points, sizes, chosen, final)


def _round_colors(
    image: Tensor, scene: Gaussians, scale: Floats, steps: Steps, rounds: int
) -> Ints:
    """Some of the colors are rounded, the others solved for what is left, and so on."""
    group = np.random.default_rng(0).integers(0, rounds, len(scene))
    colors, size = scene.colors.clone(), image.shape[1:]
    chosen = np.zeros(colors.shape, np.int64)
    for turn in range(rounds):
        now, later = group == turn, group > turn
        chosen[now] = quantize.quantise_colors(_numbers(colors)[now], scale[now], steps)
        rounded = quantize.colors_of(chosen[now], scale[now], steps)
        colors[torch.from_numpy(now)] = _tensor(rounded, image)
        if later.any():
            rest, done = torch.from_numpy(later), torch.from_numpy(~later)
            fixed = Gaussians(scene.means[done], scene.cholesky[done], colors[done])
            left = image - rasterize(fixed, *size)
            waiting = Gaussians(scene.means[rest], scene.cholesky[rest], colors[rest])
            colors[rest] = solve_colors(waiting, left, SOLVES // 2).colors
    return chosen


def _numbers(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().double().numpy()


def _tensor(numbers: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(like)
