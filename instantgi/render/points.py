"""Gaussians at any points, without drawing the picture."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians, kind_of
from instantgi.native import call_cpu
from instantgi.render import cuda
from instantgi.render.mixture import (
    EPSILON,
    TOP_K,
    check_mixture,
    cutoff_of,
    mixture_at_reference,
)
from instantgi.render.ops import check_fields
from instantgi.render.reference import weights_at

SUM = 0  # in the place of top_k


def sum_at(gaussians: Gaussians, points: Float[Tensor, "P 2"]) -> Float[Tensor, "P C"]:
    """The sum of all Gaussians at every point; at pixel centers what `rasterize` draws.

    Args:
        points: (x, y) in pixels of the Gaussians, anywhere, in any order.

    Returns:
        Differentiable in every field of `gaussians`, not in the points.

    Raises:
        ValueError: if the points are not [P, 2] of the Gaussians' dtype and finite, or a parameter
            is not finite.
    """
    return _values_at(gaussians, points, SUM, 1.0)


def mixture_at(
    gaussians: Gaussians,
    points: Float[Tensor, "P 2"],
    *,
    top_k: int = TOP_K,
    epsilon: float = EPSILON,
) -> Float[Tensor, "P C"]:
    """The mixture at every point; at pixel centers what `rasterize_mixture` draws. See `sum_at`."""
    check_mixture(top_k, epsilon)
    return _values_at(gaussians, points, top_k, epsilon)


def _values_at(gaussians: Gaussians, points: Tensor, top_k: int, epsilon: float) -> Tensor:
    is_tensor = isinstance(points, Tensor)
    if not is_tensor or points.shape[1:] != (2,) or points.dtype != gaussians.means.dtype:
        raise ValueError(
            f"points must be [P, 2] {gaussians.means.dtype} as the means are, got {kind_of(points)}"
        )
    if not points.isfinite().all():
        raise ValueError("points has values that are not finite")
    fields = gaussians.means, gaussians.cholesky, gaussians.colors
    return torch.ops.instantgi.rasterize_points(*fields, points, top_k, epsilon)[0]


def values_at_reference(
    gaussians: Gaussians, points: Float[Tensor, "P 2"], top_k: int = SUM, epsilon: float = 1.0
) -> Float[Tensor, "P C"]:
    """The definition: of `sum_at`, or with a top_k of `mixture_at`."""
    if top_k == SUM:
        return weights_at(gaussians, points) @ gaussians.colors
    return mixture_at_reference(gaussians, points, top_k, epsilon)


# --- the operator ------------------------------------------------------------------------------

SCENE = "Tensor means, Tensor cholesky, Tensor colors, Tensor points"
torch.library.define(
    "instantgi::rasterize_points",
    f"({SCENE}, int top_k, float epsilon) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "instantgi::rasterize_points_backward",
    f"(Tensor grad, Tensor values, Tensor limits, Tensor totals, {SCENE}, int top_k, "
    "float epsilon) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("instantgi::rasterize_points", "cpu")
def _(means, cholesky, colors, points, top_k, epsilon):
    """Values [P, C], and for the gradient where the terms end [P] and their totals [P]."""
    values = colors.new_empty(len(points), colors.shape[1])
    limits, totals = colors.new_empty(len(points)), colors.new_empty(len(points))
    scene = _scene(means, cholesky, colors, points, top_k, epsilon)
    call_cpu("rasterize_points", *scene, epsilon, values, limits, totals)
    return values, limits, totals


@torch.library.impl("instantgi::rasterize_points_backward", "cpu")
def _(grad, values, limits, totals, means, cholesky, colors, points, top_k, epsilon):
    scene = _scene(means, cholesky, colors, points, top_k, epsilon)
    geometry, grad_colors = means.new_empty(len(means), 5), means.new_empty(colors.shape)
    saved = values, limits, totals, grad.contiguous()
    call_cpu("rasterize_points_backward", *scene, *saved, geometry, grad_colors)
    return geometry[:, :2].clone(), geometry[:, 2:].clone(), grad_colors


def rasterize_points_cuda(means, cholesky, colors, points, top_k, epsilon):
    if top_k != SUM:
        check_mixture(top_k, epsilon)
    scene, cutoff = _scene_on_cuda(means, cholesky, colors), _cutoff(top_k, epsilon)
    return cuda.rasterize_points(scene, cutoff, points.contiguous(), top_k, epsilon)


torch.library.impl("instantgi::rasterize_points", "cuda", rasterize_points_cuda)


def rasterize_points_backward_cuda(
    grad, values, limits, totals, means, cholesky, colors, points, top_k, epsilon
):
    scene, cutoff = _scene_on_cuda(means, cholesky, colors), _cutoff(top_k, epsilon)
    shares = grad / totals[:, None]
    common = None if top_k == SUM else (shares * values).sum(1)
    arguments = (points.contiguous(), shares, limits, common)
    geometry, grad_colors = cuda.rasterize_points_backward(scene, cutoff, *arguments)
    return geometry[:, :2].clone(), geometry[:, 2:].clone(), grad_colors


torch.library.impl("instantgi::rasterize_points_backward", "cuda", rasterize_points_backward_cuda)


def _scene_on_cuda(means, cholesky, colors):
    check_fields(means, cholesky, colors)
    fields = means.contiguous(), cholesky.contiguous(), colors.contiguous()
    return len(means), colors.shape[1], 0, 0, *fields, None


def _cutoff(top_k, epsilon):
    return math.log2(255) if top_k == SUM else cutoff_of(epsilon)


def _scene(means, cholesky, colors, points, top_k, epsilon):
    check_fields(means, cholesky, colors)
    fields = means.contiguous(), cholesky.contiguous(), colors.contiguous()
    is_double = int(means.dtype == torch.float64)
    return (
        is_double,
        len(means),
        colors.shape[1],
        *fields,
        _cutoff(top_k, epsilon),
        len(points),
        points.contiguous(),
        top_k,
    )


@torch.library.register_fake("instantgi::rasterize_points")
def _(means, cholesky, colors, points, top_k, epsilon):
    num = points.shape[0]
    return colors.new_empty(num, colors.shape[1]), colors.new_empty(num), colors.new_empty(num)


@torch.library.register_fake("instantgi::rasterize_points_backward")
def _(grad, values, limits, totals, means, cholesky, colors, points, top_k, epsilon):
    return torch.empty_like(means), torch.empty_like(cholesky), torch.empty_like(colors)


def _save(ctx, inputs, output):
    *scene, ctx.top_k, ctx.epsilon = inputs
    ctx.save_for_backward(*output, *scene)


def _backward(ctx, grad, *_):
    backward = torch.ops.instantgi.rasterize_points_backward
    return *backward(grad, *ctx.saved_tensors, ctx.top_k, ctx.epsilon), None, None, None


torch.library.register_autograd("instantgi::rasterize_points", _backward, setup_context=_save)
