"""Seeds → Gaussians: what two small networks make of the attributes of a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import FIELDS, Gaussians, cholesky_from_scales_rotations

THINNEST = 0.05  # px, added in quadrature to both standard deviations
CHUNK = 2**14  # seeds at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Perceptron:
    """x → ReLU(x W₁ + b₁) W₂ + b₂."""

    weights1: Float[Tensor, "I J"]
    biases1: Float[Tensor, " J"]
    weights2: Float[Tensor, "J O"]
    biases2: Float[Tensor, " O"]

    def __call__(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        hidden = torch.addmm(self.biases1, x, self.weights1).relu()
        return torch.addmm(self.biases2, hidden, self.weights2)

    def map(self, function: Callable[[Tensor], Tensor]) -> Perceptron:
        return Perceptron(*(function(part) for part in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.weights1, self.biases1, self.weights2, self.biases2

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of the input, the hidden layer and the output."""
        return self.weights1.shape[0], self.weights1.shape[1], self.weights2.shape[1]


def gaussians_of(
    points: Float[Tensor, "N 2"],
    features: Float[Tensor, "N F"],
    offsets: Float[Tensor, "N K 2"],
    sizes: Float[Tensor, "N 4"],
    colors: Perceptron,
    shapes: Perceptron,
) -> Gaussians:
    """The K Gaussians of each seed, seed by seed; differentiable.

    With sizes (s_o, s_a), two numbers each, of seed i (SGI, 2026, equations 1 to 6):

        μ_k = x + δ_k ⊙ s_o,   c = MLP_c(f),   (a, b, θ)_k = MLP_Σ(f)_k,
        s_k = √((s_a ⊙ sigmoid(a, b))² + 0.05²),   Σ = R(θ) diag(s²) Rᵀ.

    The 0.05 px are ours: without them a size that is rounded to 0 has no ellipse.

    Args:
        sizes: in pixels, any sign.
    """
    num, count = offsets.shape[:2]
    means = points[:, None] + offsets * sizes[:, None, :2]
    a_b_theta = shapes(features).view(num * count, 3)
    reach = sizes[:, None, 2:].expand(num, count, 2).reshape(num * count, 2)
    thinnest = torch.full((), THINNEST, dtype=reach.dtype, device=reach.device)
    scales = torch.hypot(reach * a_b_theta[:, :2].sigmoid(), thinnest)
    cholesky = cholesky_from_scales_rotations(scales, a_b_theta[:, 2])
    return Gaussians(means.view(num * count, 2), cholesky, colors(features).view(num * count, -1))


def joined(parts: list[Gaussians]) -> Gaussians:
    if len(parts) == 1:
        return parts[0]
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))
