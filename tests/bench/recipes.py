"""Prints the PSNR of other choices than those of the recipe "instantgi", on a few pictures.

python tests/bench/recipes.py --images DIR [--names A,B] [--steps 50,300] [--num-gaussians N]
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import conditions

from instantgi.fit import LocalAdam, fit_image, solve_colors
from instantgi.fit import start as start_module
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.render import rasterize


class FixedMemory(LocalAdam):
    """β₁ = 0.9, β₂ = 0.95 throughout."""

    def betas(self) -> list[float]:
        return [0.9, 0.95]


class TextbookMemory(LocalAdam):
    """β₁ = 0.9, β₂ = 0.999, Adam's usual values."""

    def betas(self) -> list[float]:
        return [0.9, 0.999]


class NoWarmUp(LocalAdam):
    def rate_at(self, progress: float) -> float:
        return self.rate * (0.05 + 0.95 * math.sqrt(1 - progress))


class Cosine(LocalAdam):
    def rate_at(self, progress: float) -> float:
        fading = 0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2
        return self.rate * fading * min(1, self.iteration / 5)


VARIANTS: dict[str, Callable[[], LocalAdam]] = {
    "as shipped": LocalAdam,
    "rate 0.1": lambda: LocalAdam(rate=0.1),
    "rate 0.5": lambda: LocalAdam(rate=0.5),
    "memory fixed at 0.9, 0.95": FixedMemory,
    "memory fixed at 0.9, 0.999": TextbookMemory,
    "no warm-up": NoWarmUp,
    "cosine instead of root": Cosine,
    "no relocation": lambda: LocalAdam(relocations=()),
    "10 % relocated": lambda: LocalAdam(relocated=0.1),
    "color rate 0.2": lambda: LocalAdam(color_rate=0.2),
}
SOLVE_AT_THE_END = 8
STRETCHES = (1.0, 4.0, 7.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--names", default="kodim05,kodim13,kodim20,kodim23")
    parser.add_argument("--steps", default="50,300")
    parser.add_argument("--num-gaussians", type=int, default=43_000)
    options = parser.parse_args()
    images = [read_image(options.images / f"{name}.png") for name in options.names.split(",")]
    budgets = [int(steps) for steps in options.steps.split(",")]

    def row(name: str, fit: Callable) -> None:
        means = []
        for steps in budgets:
            pictures = [(fit(image, steps), image) for image in images]
            values = [psnr(rasterize(g, *image.shape[1:]), image) for g, image in pictures]
            means.append(sum(values) / len(values))
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in means) + " |", flush=True)

    def fit_with(make: Callable[[], LocalAdam]) -> Callable:
        count = options.num_gaussians
        return lambda image, steps: fit_image(
            image, method=make(), num_gaussians=count, iterations=steps
        )

    def fit_and_solve(image, steps):
        count = options.num_gaussians
        gaussians = fit_image(image, num_gaussians=count, iterations=steps - SOLVE_AT_THE_END)
        return solve_colors(gaussians, image, SOLVE_AT_THE_END)

    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    print(f"mean PSNR (8 bits) of {options.names}, {options.num_gaussians} Gaussians\n")
    print("| variant | " + " | ".join(f"{steps} steps" for steps in budgets) + " |")
    print("|---" * (len(budgets) + 1) + "|")
    for name, make in VARIANTS.items():
        row(name, fit_with(make))
    row(f"last {SOLVE_AT_THE_END} steps solve colors instead", fit_and_solve)
    shipped = start_module.STRETCH
    for stretch in STRETCHES:
        start_module.STRETCH = stretch
        row(
            f"start: covariance {stretch:g} times the triangle's, not {shipped:g}",
            fit_with(LocalAdam),
        )
    start_module.STRETCH = shipped


if __name__ == "__main__":
    main()
