"""A network that sees what it has drawn: each look at the error moves every Gaussian once more."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from instantgi.gaussians import Gaussians
from instantgi.render.ops import (
    LOCAL,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)

MEMORY = 32  # numbers that the fields hand on to the looks, per Gaussian
CHUNK = 2**13  # Gaussians at a time, without gradients: what is made of them stays in the cache
CUDA_CHUNK = 2**18  # on a GPU: enough for all of it
KEPT = 128  # chunks whose first results are kept; with more they are worked out twice


def look_target(image: Float[Tensor, "C H W"]) -> Tensor:
    """The picture and a black channel, as `to_blocks` makes them."""
    image = image.detach().float()
    return to_blocks(torch.cat([image, torch.zeros_like(image[:1])]))


class Look(nn.Module):
    """The gradient of the squared error, in each Gaussian's frame, becomes a move.

    What a step of a fit would follow, the gradient for (u, S, c) of `LocalAdam`, is divided by the
    sum over the pixels of w_n Σ_m w_m, and by the power of the color: then it has no unit. Those
    sums are the row sums of AᵀA, whose diagonal matrix is above AᵀA because no entry is negative:
    colors that move by less than twice that gradient cannot make the error grow. With what the
    fields remember of the triangle it goes through a small MLP; a second one reads its result and
    messages from the three neighbors, because Gaussians that overlap share one error. What comes
    out is a move along that gradient, a free move, and the colors' share of their gradient, in
    (0, 2).
    """

    alone: nn.Sequential
    message: nn.Linear
    together: nn.Sequential
    out: nn.Linear

    def __init__(self, units: int = 64):
        super().__init__()
        self.alone = nn.Sequential(nn.Linear(MEMORY + 10, units), nn.GELU())
        self.message = nn.Linear(units, units // 2)
        self.together = nn.Sequential(
            *(nn.Linear(units + 3 * (units // 2), units), nn.GELU()),
            *(nn.Linear(units, units), nn.GELU()),
        )
        self.out = nn.Linear(units, 5 + 5 + 1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.out.bias[5:10] = 0.5  # along the gradient

    def forward(
        self,
        gaussians: Gaussians,
        memory: Float[Tensor, "N M"],
        neighbors: Int64[Tensor, "N 3"],
        target: Tensor,
        height: int,
        width: int,
    ) -> Gaussians:
        """The Gaussians after a move. Gradients reach this look and the memory, nothing before:
        every look is trained to do what it can from where it is.

        Args:
            target: what `look_target` makes of the picture.
        """
        scene = gaussians.detach()
        means, cholesky, colors = scene.means, scene.cholesky, scene.colors
        size, white = (height, width), torch.ones_like(means[:, :1])
        # The last channel is drawn white on black: its residual is what all weigh together. Black
        # on the way back, it adds nothing to the gradient of the geometry.
        lit, unlit = torch.cat([colors, white], 1), torch.cat([colors, 0 * white], 1)
        order = order_by_place(means, *size)
        residual, _ = rasterize_error(means, cholesky, lit, target, *size, False, order)
        arguments = (residual, means, cholesky, unlit, *size, 1.0, LOCAL, order)
        gradients = rasterize_error_backward(*arguments)
        geometry, fades, overlap = gradients[0], gradients[1][:, :-1], gradients[1][:, -1:]

        def pulls(chunk: slice) -> tuple[Tensor, ...]:
            shared = overlap[chunk] + 0.1
            power = colors[chunk].square().sum(1, keepdim=True) + 1e-3
            return geometry[chunk] / (shared * power), fades[chunk] / shared, power

        def alone(chunk: slice) -> Tensor:
            pull, fade, power = pulls(chunk)
            area = math.pi * (cholesky[chunk, :1] * cholesky[chunk, 2:]).abs() + 0.1
            seen = [
                (4 * pull).asinh(),
                (20 * fade.mean(1, keepdim=True)).asinh(),
                (20 * fade.square().mean(1, keepdim=True).sqrt()).asinh(),
                area.log() / 2,
                (overlap[chunk] / area).clamp(1e-3, 1e3).log(),
                power.log() / 2,
            ]
            return self.alone(torch.cat([memory[chunk], *seen], 1))

        def together(chunk: slice, alone: Tensor, around: Tensor) -> tuple[Tensor, ...]:
            said = self.out(self.together(torch.cat([alone, around], 1))).float()
            pull, fade, _ = pulls(chunk)
            move = said[:, :5] - said[:, 5:10] * pull.clamp(-2, 2)
            before = scene.map(lambda field: field[chunk])
            moved = _moved(before, move[:, :2].tanh(), 0.6 * (move[:, 2:] / 0.6).tanh())
            return *moved, before.colors - 2 * said[:, 10:].sigmoid() * fade

        parts = in_two_rounds(len(means), alone, self.message, neighbors, together)
        return Gaussians(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _moved(
    gaussians: Gaussians, u: Float[Tensor, "N 2"], s: Float[Tensor, "N 3"]
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N 3"]]:
    """Means and Cholesky factors after mean + L u and L [[e^s₁, 0], [s₂, e^s₃]]."""
    l11, l21, l22 = gaussians.cholesky.unbind(1)
    a, b, c = s[:, 0].exp(), s[:, 1], s[:, 2].exp()
    shift = torch.stack([l11 * u[:, 0], l21 * u[:, 0] + l22 * u[:, 1]], 1)
    return gaussians.means + shift, torch.stack([l11 * a, l21 * a + l22 * b, l22 * c], 1)


def in_two_rounds(
    num: int,
    first: Callable[[slice], Any],
    message: Callable[[Any], Tensor],
    neighbors: Int64[Tensor, "N 3"],
    second: Callable[[slice, Any, Tensor], tuple[Tensor, ...]],
) -> list[tuple[Tensor, ...]]:
    """second(chunk, first(chunk), messages of the neighbors of the chunk) for every chunk.

    Without gradients in small chunks, so that memory stays bounded.
    """
    chunk = CUDA_CHUNK if neighbors.is_cuda else CHUNK
    step = num if torch.is_grad_enabled() else chunk
    chunks = [slice(begin, min(begin + step, num)) for begin in range(0, num, step)]
    kept, parts = {}, []
    for i, chunk in enumerate(chunks):
        seen = first(chunk)
        parts.append(message(seen))
        if len(chunks) <= KEPT:
            kept[i] = seen
    messages = torch.cat(parts)
    return [
        second(
            chunk, kept.pop(i) if i in kept else first(chunk), messages[neighbors[chunk]].flatten(1)
        )
        for i, chunk in enumerate(chunks)
    ]
