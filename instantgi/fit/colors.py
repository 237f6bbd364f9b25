"""Colors in closed form: with the geometry fixed the picture is linear in them."""

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians
from instantgi.render.ops import (
    COLORS_ONLY,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)


def solve_colors(
    gaussians: Gaussians, image: Float[Tensor, "C H W"], iterations: int = 10
) -> Gaussians:
    """The same Gaussians with colors that minimise Σ (picture − image)².

    Conjugate gradients on AᵀA c = Aᵀ image, where A draws (`rasterize`) and Aᵀ is its adjoint, all
    channels side by side, starting from the colors given, preconditioned by the diagonal
    (AᵀA)ₙₙ = π √det Σₙ of a Gaussian that is drawn whole. An iteration costs one forward and one
    backward pass.

    Args:
        gaussians: N Gaussians in pixels of `image`, with its number of channels.
        image: any values; [0, 1] for a picture.
        iterations: 0 leaves the colors as they are.

    Raises:
        ValueError: if the numbers of channels differ.
    """
    channels, height, width = image.shape
    if gaussians.colors.shape[1] != channels:
        raise ValueError(
            f"the image has {channels} channels, the Gaussians have {gaussians.colors.shape[1]}"
        )
    gaussians = gaussians.detach()
    means, cholesky, colors = gaussians.means, gaussians.cholesky, gaussians.colors
    blocks = to_blocks(image.to(colors))
    order = order_by_place(means, height, width)

    def adjoint(residual: Tensor) -> Tensor:
        arguments = (residual, means, cholesky, colors, height, width, 1.0, COLORS_ONLY, order)
        return rasterize_error_backward(*arguments)[1]

    def drawn(weights: Tensor, target: Tensor) -> Tensor:
        return rasterize_error(means, cholesky, weights, target, height, width, False, order)[0]

    diagonal = torch.pi * (cholesky[:, :1] * cholesky[:, 2:]).abs().clamp_min(1e-12)
    # two pictures at a time: no name keeps what is drawn
    gradient = -adjoint(drawn(colors, blocks))  # [N, C]
    black = blocks.zero_()
    direction = ahead = gradient / diagonal
    power = (gradient * ahead).sum(0)  # [C]
    for _ in range(iterations):
        image_of_direction = adjoint(drawn(direction, black))
        curvature = (direction * image_of_direction).sum(0)
        length = torch.where(curvature > 0, power / curvature, 0)
        colors = colors + length * direction
        gradient = gradient - length * image_of_direction
        ahead = gradient / diagonal
        last, power = power, (gradient * ahead).sum(0)
        direction = ahead + torch.where(last > 0, power / last, 0) * direction
    return Gaussians(means, cholesky, colors)
