"""Prints the PSNR of other choices than those of the recipe "instantgi", on a few pictures.

python tests/bench/recipes.py --images DIR [--names A,B] [--steps 50,300] [--num-gaussians N]
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from bench.tables import Table, save_tables
from bench.timing import conditions

from instantgi.fit import LocalAdam, fit_image, solve_colors
from instantgi.fit import start as start_module
from instantgi.gaussians import Gaussians
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.render import rasterize
from instantgi.render.ops import LOCAL, rasterize_error, rasterize_error_backward, to_blocks


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


class LevenbergMarquardt(LocalAdam):
    """Matrix-free Levenberg–Marquardt in the same coordinates, with a closed-form preconditioner.

    A step counts as one forward and one backward pass, as everywhere: J v and Jᵀ (J v) in an inner
    iteration, the residual and its gradient in an outer one. After `inner` conjugate-gradient
    iterations on (Jᵀ J + λ D) d = −Jᵀ r the move is taken if the error fell (λ ← 0.6 λ, at least
    0.001), and undone otherwise (λ ← 4 λ). D is the diagonal of the preconditioner: Jᵀ J of a
    Gaussian that is alone, from the moments of its square.
    """

    def __init__(self, inner: int = 8, damping: float = 0.3):
        super().__init__(relocations=())
        self.inner, self.damping = inner, damping

    def start(self, image, init, num_gaussians, seed):
        super().start(image, init, num_gaussians, seed)
        self.left, self.before = 0, None

    def step(self, progress: float) -> torch.Tensor:
        if self.left:
            self._conjugate_gradient_iteration()
            self.left -= 1
            if not self.left:
                self._move()
            return self.squares
        size = (self.height, self.width)
        scene = (self.means, self.cholesky, self.colors)
        residual, squares = rasterize_error(*scene, self.target, *size, False)
        if self.before is not None and squares > self.squares:
            self.means, self.cholesky, self.colors = self.before
            self.before, self.damping = None, self.damping * 4
            return self.squares
        if self.before is not None:
            self.damping = max(0.001, 0.6 * self.damping)
        self.squares, self.left = squares, self.inner
        grads = rasterize_error_backward(residual, *scene, *size, 1.0, LOCAL)
        self.blocks = self._gram_blocks()
        self.direction = torch.zeros(len(self.means), 8, dtype=torch.float64)
        self.rest = -torch.cat(grads, 1).double()
        self.search = self._precondition(self.rest)
        self.product = (self.rest * self.search).sum()
        return squares

    def _gram_blocks(self) -> torch.Tensor:
        """Jᵀ J of every Gaussian alone [N, 8, 8]; D = π det L is the integral of its square."""
        c, det = self.colors.double(), (self.cholesky[:, 0] * self.cholesky[:, 2]).abs()
        power = (c * c).sum(1)
        block = torch.zeros(len(c), 8, 8, dtype=torch.float64)
        block[:, 0, 0] = block[:, 1, 1] = power / 2
        block[:, 2, 2] = block[:, 4, 4] = power * 3 / 16
        block[:, 2, 4] = block[:, 4, 2] = power / 16
        block[:, 3, 3] = power / 4
        for k in range(3):
            block[:, 5 + k, 5 + k] = 1
            for s in (2, 4):
                block[:, s, 5 + k] = block[:, 5 + k, s] = c[:, k] / 4
        return block * (torch.pi * det.double() + 1e-9)[:, None, None]

    def _damped(self) -> torch.Tensor:
        diagonal = self.blocks.diagonal(dim1=1, dim2=2)
        return self.damping * diagonal + 1e-9

    def _precondition(self, vector: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(self.blocks + torch.diag_embed(self._damped()), vector)

    def _conjugate_gradient_iteration(self) -> None:
        size, scene = (self.height, self.width), (self.means, self.cholesky, self.colors)
        change = to_blocks(self._derivative(self.search).float())
        curved = torch.cat(rasterize_error_backward(change, *scene, *size, 1.0, LOCAL), 1)
        curved = curved.double() + self._damped() * self.search
        length = self.product / (self.search * curved).sum()
        self.direction += length * self.search
        self.rest -= length * curved
        ahead = self._precondition(self.rest)
        product, before = (self.rest * ahead).sum(), self.product
        self.search = ahead + product / before * self.search
        self.product = product

    def _derivative(self, move: torch.Tensor) -> torch.Tensor:
        """How the picture changes with the parameters [N, 8], exactly: J `move`, [3, H, W].

        Σ w (δc + c (z · u + ½ zᵀ S z)) is Σ w times a quadratic in the pixel's place, so six drawn
        pictures per channel hold it; in float64, since the six nearly cancel.
        """
        means, cholesky, c = (x.double() for x in (self.means, self.cholesky, self.colors))
        l11, l21, l22 = cholesky.unbind(1)
        rows = [1 / l11, torch.zeros_like(l11), -l21 / (l11 * l22), 1 / l22]
        inverse = torch.stack(rows, 1).reshape(-1, 2, 2)
        stretch = move[:, [2, 3, 3, 4]].reshape(-1, 2, 2)
        # in d = p − m: linear · d + ½ dᵀ square d
        linear = torch.einsum("nij,ni->nj", inverse, move[:, :2])
        square = torch.einsum("nki,nkl,nlj->nij", inverse, stretch, inverse)
        constant = -(linear * means).sum(1) + torch.einsum("ni,nij,nj->n", means, square, means) / 2
        linear = linear - torch.einsum("nij,nj->ni", square, means)
        terms = [constant, linear[:, 0], linear[:, 1]]
        terms += [square[:, 0, 0] / 2, square[:, 0, 1], square[:, 1, 1] / 2]
        fields = torch.stack([term[:, None] * c for term in terms], 1)  # [N, 6, 3]
        fields[:, 0] += move[:, 5:]
        planes = rasterize(Gaussians(means, cholesky, fields.flatten(1)), self.height, self.width)
        y, x = torch.meshgrid(
            torch.arange(self.height).double() + 0.5,
            torch.arange(self.width).double() + 0.5,
            indexing="ij",
        )
        powers = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])
        return torch.einsum("khw,kchw->chw", powers, planes.unflatten(0, (6, 3)))

    def _move(self) -> None:
        self.before = (self.means, self.cholesky, self.colors)
        u1, u2 = self.direction[:, :2].clamp(-1, 1).float().unbind(1)
        s11, s12, s22 = self.direction[:, 2:5].clamp(-0.6, 0.6).float().unbind(1)
        l11, l21, l22 = self.cholesky.unbind(1)
        a = (1 + s11).sqrt()
        b = s12 / a
        d = (1 + s22 - b * b).clamp(min=0.05).sqrt()
        turned = torch.stack([l11 * a, l21 * a + l22 * b, l22 * d], 1)
        shifted = self.means + torch.stack([l11 * u1, l21 * u1 + l22 * u2], 1)
        sensible = (torch.minimum(turned[:, 0].abs(), turned[:, 2].abs()) > 0.01)[:, None]
        self.means = torch.where(sensible, shifted, self.means)
        self.cholesky = torch.where(sensible, turned, self.cholesky)
        self.colors = self.colors + self.direction[:, 5:].float()


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
    "Levenberg–Marquardt, 8 inner iterations": LevenbergMarquardt,
    "Levenberg–Marquardt, 4 inner iterations": lambda: LevenbergMarquardt(4),
    "Levenberg–Marquardt, damping from 1": lambda: LevenbergMarquardt(damping=1.0),
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
    parser.add_argument("--variants", help="only those whose name has this in it")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    images = [read_image(options.images / f"{name}.png") for name in options.names.split(",")]
    budgets = [int(steps) for steps in options.steps.split(",")]

    table = Table({"variant": "{}"} | {f"{steps} steps": "{:.2f}" for steps in budgets})

    def row(name: str, fit: Callable) -> None:
        if options.variants and options.variants not in name:
            return
        levels = []
        for steps in budgets:
            pictures = [(fit(image, steps), image) for image in images]
            values = [psnr(rasterize(g, *image.shape[1:]), image) for g, image in pictures]
            levels.append(sum(values) / len(values))
        table.add(name, *levels)

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
    note = f"mean PSNR (8 bits) of {options.names}, {options.num_gaussians} Gaussians"
    print(note + "\n")
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
    save_tables(options.output, [table], note)


if __name__ == "__main__":
    main()
