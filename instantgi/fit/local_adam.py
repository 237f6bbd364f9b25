"""Our own way of fitting: Adam in each Gaussian's frame; idle Gaussians go where they help."""

import math

import torch
from torch import Tensor

from instantgi import native
from instantgi.fit.colors import solve_colors
from instantgi.fit.relocation import best_places
from instantgi.fit.replay import SORT_EVERY, Replay, Schedule
from instantgi.fit.start import heuristic_start
from instantgi.gaussians import Gaussians
from instantgi.render.ops import (
    LOCAL,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)
from instantgi.representations import Representation, plain

RELOCATION_GAP = 20  # steps that moved Gaussians get to settle
LAST_RELOCATION = 0.5  # of the fit; later ones no longer pay

torch.library.define(
    "instantgi::local_adam_",
    "(Tensor(a!) means, Tensor(b!) cholesky, Tensor(c!) colors, Tensor grad_geometry, "
    "Tensor grad_colors, Tensor(d!) state, Tensor schedule, float largest) -> ()",
)


@torch.library.impl("instantgi::local_adam_", "cpu")
def _(means, cholesky, colors, grad_geometry, grad_colors, state, schedule, largest):
    """`schedule`: rate, rate of colors, β₁, β₂, and 1 / (1 − product so far) of either."""
    tensors = (means, cholesky, colors, grad_geometry, grad_colors, state, schedule)
    native.call_cpu("local_adam", *colors.shape, *tensors, largest)


def local_adam_cuda(means, cholesky, colors, grad_geometry, grad_colors, state, schedule, largest):
    tensors = (means, cholesky, colors, grad_geometry, grad_colors, state, schedule)
    arguments = ("local_adam", -(-len(means) // 128), 128, *colors.shape, *tensors, largest)
    native.call_cuda("local_adam", *arguments)


torch.library.impl("instantgi::local_adam_", "cuda", local_adam_cuda)


class LocalAdam:
    """Adam on the squared error of the unclamped sum, in frames in which all Gaussians are alike.

    A step moves the mean by L u and turns Σ = L Lᵀ into L (I + S) Lᵀ: u and S have no unit, so one
    rate serves Gaussians of every size and direction, and their gradients are the moments Σ w q z
    and ½ Σ w q z zᵀ that the backward pass sums anyway. |u| ≤ 1 and |S| ≤ 0.6 a step.

    β₁ grows as 1 − 1 / min(4 + t / 10, 200), and β₂ = max(0.9, β₁²): short fits want little memory,
    long ones much. The rate rises over a few steps, then falls with the root of what is left of the
    fit, and after 1,500 steps also as 1 / t: otherwise fits of many thousand steps wander off.
    Up to five times in the first half, at least 20 steps apart, the 5 % of the Gaussians that carry
    least, |c|² π det L, are put where a new one would take most error away. Measured against other
    choices in docs/results.md.

    Args:
        rate: first step size, in standard deviations.
        color_rate: of colors, relative to `rate`.
        beta2: smallest decay of the mean square gradient.
        relocations: shares of the fit at which Gaussians are moved; where two come closer than 20
            steps, one.
        relocated: share of the Gaussians that is moved each time.
        solve_iterations: color iterations before the first step, when the method makes its own
            start.
        warm_up: steps until the full rate: before that, √v̂ says little about a gradient's size.
        memory: steps that the momentum remembers at first; one more for every ten steps.
        most_memory: steps that it remembers at most.
        settled: steps after which the rate also falls as 1 / t.
    """

    def __init__(
        self,
        rate: float = 0.25,
        color_rate: float = 0.08,
        beta2: float = 0.9,
        relocations: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5),
        relocated: float = 0.05,
        solve_iterations: int = 10,
        warm_up: int = 5,
        memory: int = 4,
        most_memory: int = 200,
        settled: int = 1500,
    ):
        self.rate, self.color_rate, self.beta2 = rate, color_rate, beta2
        self.warm_up, self.settled = warm_up, settled
        self.memory, self.most_memory = memory, most_memory
        self.relocations, self.relocated = relocations, relocated
        self.solve_iterations = solve_iterations

    def start(
        self, image: Tensor, init: Representation | None, num_gaussians: int, seed: int
    ) -> None:
        init = None if init is None else plain(init, "instantgi")
        self.height, self.width = image.shape[1:]
        if init is None:
            init = heuristic_start(image, num_gaussians)
            init = solve_colors(init, image, self.solve_iterations)
        self.target = to_blocks(image.detach().float())
        fields = init.detach().to(image.device, torch.float32)
        self.means, self.cholesky, self.colors = (
            field.clone(memory_format=torch.contiguous_format)
            for field in (fields.means, fields.cholesky, fields.colors)
        )
        self.state = self.colors.new_zeros(len(init), 5 + self.colors.shape[1], 2)
        self.iteration, self.last_relocation = 0, 0
        self.waiting = list(self.relocations)
        self.products = [1.0, 1.0]  # of all β₁ and all β₂ so far
        self.order = order_by_place(self.means, self.height, self.width)
        self.schedule = Schedule(6, image.device)
        self.replay = Replay(image.device)

    def step(self, progress: float) -> Tensor:
        self.iteration += 1
        if self._is_relocation_due(progress):
            # Takes the place of an update: its one forward pass is the whole cost.
            residual, squares = self._error()
            self._relocate(residual)
            self._sort()
            return squares
        if self.iteration % SORT_EVERY == 0:
            self._sort()
        rate, betas = self.rate_at(progress), self.betas()
        self.products = [product * beta for product, beta in zip(self.products, betas, strict=True)]
        corrections = [1 / (1 - product) for product in self.products]
        self.schedule.set(rate, rate * self.color_rate, *betas, *corrections)
        return self.replay(self._move)

    def _error(self) -> tuple[Tensor, Tensor]:
        scene = (self.means, self.cholesky, self.colors)
        size = (self.height, self.width)
        return rasterize_error(*scene, self.target, *size, False, self.order)

    def _move(self) -> Tensor:
        scene, size = (self.means, self.cholesky, self.colors), (self.height, self.width)
        residual, squares = self._error()
        torch.ops.instantgi.local_adam_(
            *scene, *self._gradients(residual), self.state, self.schedule.now, math.hypot(*size)
        )
        return squares

    def _gradients(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Of half the squared error, in the frames [N, 5] and of the colors [N, C]."""
        scene, size = (self.means, self.cholesky, self.colors), (self.height, self.width)
        return rasterize_error_backward(residual, *scene, *size, 1.0, LOCAL, self.order)

    def _sort(self) -> None:
        self.order.copy_(order_by_place(self.means, self.height, self.width))

    def rate_at(self, progress: float) -> float:
        """Largest move of this step, in standard deviations."""
        fading = 0.05 + 0.95 * math.sqrt(1 - progress)
        begin, end = self.iteration / self.warm_up, self.settled / self.iteration
        return self.rate * fading * min(1, begin, end)

    def betas(self) -> list[float]:
        """Decay of the mean and of the mean square gradient in this step."""
        beta1 = 1 - 1 / min(self.memory + self.iteration / 10, self.most_memory)
        return [beta1, max(self.beta2, beta1**2)]

    def gaussians(self) -> Gaussians:
        return Gaussians(self.means.clone(), self.cholesky.clone(), self.colors.clone())

    def _is_relocation_due(self, progress: float) -> bool:
        due = [share for share in self.waiting if share <= progress]
        if not due or self.iteration - self.last_relocation < RELOCATION_GAP:
            return False
        self.waiting, self.last_relocation = self.waiting[len(due) :], self.iteration
        return progress <= LAST_RELOCATION

    def _relocate(self, residual: Tensor, deviation: float = 0.6) -> None:
        """Move the Gaussians that carry least to where a small round one gains most."""
        count = int(self.relocated * len(self.means))
        places, colors = best_places(residual, self.height, self.width, count, deviation)
        carried = self.colors.square().sum(1) * (self.cholesky[:, 0] * self.cholesky[:, 2]).abs()
        least = carried.topk(len(places), largest=False).indices
        rows, cols = places // self.width, places % self.width
        self.means[least] = torch.stack([cols, rows], -1) + 0.5
        self.cholesky[least] = self.cholesky.new_tensor([deviation, 0.0, deviation])
        self.colors[least] = colors
        self.state[least] = 0
