"""Gaussians → raster, the second way: the normalised mixture of the K largest at every pixel."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import Gaussians, check_size
from instantgi.native import call_cpu
from instantgi.render import cuda
from instantgi.render.ops import check_fields, from_blocks, to_blocks
from instantgi.render.reference import pixel_centers, weights_at

TOP_K, MOST_TERMS = 10, 32
EPSILON = 1e-4


def rasterize_mixture(
    gaussians: Gaussians,
    height: int,
    width: int,
    *,
    top_k: int = TOP_K,
    epsilon: float = EPSILON,
    origin: tuple[float, float] = (0.0, 0.0),
    step: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, "C {height} {width}"]:
    """Average the colors at every pixel, weighted by the K largest Gaussians there.

    C(p) = Σ wₙ cₙ / (ε + Σ wₙ) over the n whose wₙ = exp(−½ (p − μₙ)ᵀ Σₙ⁻¹ (p − μₙ)) is at least
    the K-th largest at p (Image-GS, 2025, eq. 3 and 4, with the ε of its code). Here Gaussians
    that are equal at the K-th place all count, so that the picture does not depend on their order;
    and a weight below ε/255 is dropped: it could not show even where there is no other. What is
    far from all Gaussians is black.

    Args:
        gaussians: N Gaussians in pixels; N = 0 gives a black picture.
        height, width, origin, step: as in `rasterize`.
        top_k: from 1 to 32.
        epsilon: in (0, 1].

    Returns:
        The picture, not clamped. Differentiable in every field of `gaussians`; which of them are
        the largest is taken as constant.

    Raises:
        ValueError: if an argument is out of range, or a parameter is not finite.
    """
    check_size(height, width)
    check_mixture(top_k, epsilon)
    gaussians = seen_from(gaussians, origin, step)
    fields = gaussians.means, gaussians.cholesky, gaussians.colors
    keep = torch.is_grad_enabled() and any(field.requires_grad for field in fields)
    return torch.ops.instantgi.rasterize_mixture(*fields, height, width, top_k, epsilon, keep)[0]


def mixture_reference(
    gaussians: Gaussians,
    height: int,
    width: int,
    top_k: int = TOP_K,
    epsilon: float = EPSILON,
) -> Float[Tensor, "C H W"]:
    """The definition of `rasterize_mixture` in plain torch, slow and obvious."""
    values = mixture_at_reference(gaussians, pixel_centers(height, width), top_k, epsilon)
    return values.permute(2, 0, 1)


def mixture_at_reference(
    gaussians: Gaussians, points: Float[Tensor, "*P 2"], top_k: int, epsilon: float
) -> Float[Tensor, "*P C"]:
    """The mixture at any points."""
    weights = weights_at(gaussians, points, smallest=epsilon / 255)
    return mix(weights, gaussians.colors, top_k, epsilon)


def mix(
    weights: Float[Tensor, "*P N"], colors: Float[Tensor, "N C"], top_k: int, epsilon: float
) -> Float[Tensor, "*P C"]:
    """The colors averaged by the K largest weights."""
    if len(colors) > top_k:
        least = weights.topk(top_k, dim=-1).values[..., -1:].detach()
        weights = torch.where(weights >= least, weights, 0)
    return (weights @ colors) / (epsilon + weights.sum(-1, keepdim=True))


def seen_from(
    gaussians: Gaussians, origin: tuple[float, float], step: tuple[float, float]
) -> Gaussians:
    """The Gaussians in pixels of a picture with this upper left corner and distance of pixels.

    Raises:
        ValueError: if the step is not positive, or the origin not finite.
    """
    for name, pair in (("step", step), ("origin", origin)):
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"{name} must be two numbers, (x, y), got {pair}")
    if not all(0 < value < float("inf") for value in step):
        raise ValueError(f"step must be two positive numbers, got {tuple(step)}")
    if not all(abs(value) < float("inf") for value in origin):
        raise ValueError(f"origin must be two finite numbers, got {tuple(origin)}")
    if tuple(step) == (1.0, 1.0) and tuple(origin) == (0.0, 0.0):
        return gaussians
    return gaussians.translated(-origin[0], -origin[1]).scaled(1 / step[0], 1 / step[1])


def check_mixture(top_k: int, epsilon: float) -> None:
    if not 1 <= top_k <= MOST_TERMS:
        raise ValueError(f"top_k must be from 1 to {MOST_TERMS}, got {top_k}")
    if not 1e-30 <= epsilon <= 1:
        raise ValueError(f"epsilon must be from 1e-30 to 1, got {epsilon}")


def cutoff_of(epsilon: float) -> float:
    """The exponent s at which a weight 2^−s is epsilon/255."""
    return math.log2(255 / epsilon)


# --- the operator ------------------------------------------------------------------------------

SCENE = "Tensor means, Tensor cholesky, Tensor colors"
torch.library.define(
    "instantgi::rasterize_mixture",
    f"({SCENE}, int height, int width, int top_k, float epsilon, bool keep) -> "
    "(Tensor, Tensor, Tensor)",
)
torch.library.define(
    "instantgi::rasterize_mixture_backward",
    f"(Tensor grad_image, Tensor image, Tensor limits, Tensor totals, {SCENE}, float epsilon) -> "
    "(Tensor, Tensor, Tensor)",
)


@torch.library.impl("instantgi::rasterize_mixture", "cpu")
def _(means, cholesky, colors, height, width, top_k, epsilon, keep):
    """The picture, and in blocks of 4x4 the exponents at which the terms end and their totals.

    These are for the gradient: they are empty if not to be kept.
    """
    return mixture_on_cpu(
        means, cholesky, colors, height, width, cutoff_of(epsilon), top_k, epsilon, keep=keep
    )


@torch.library.impl("instantgi::rasterize_mixture_backward", "cpu")
def _(grad_image, image, limits, totals, means, cholesky, colors, epsilon):
    saved = (image, limits, totals)
    return mixture_backward_on_cpu(grad_image, saved, means, cholesky, colors, cutoff_of(epsilon))


def rasterize_mixture_cuda(means, cholesky, colors, height, width, top_k, epsilon, keep):
    check_mixture(top_k, epsilon)
    scene = _scene_on_cuda(means, cholesky, colors, height, width)
    image, *kept = cuda.rasterize_mixture(scene, cutoff_of(epsilon), top_k, epsilon)
    return image, *(kept if keep else (part.new_empty(0) for part in kept))


torch.library.impl("instantgi::rasterize_mixture", "cuda", rasterize_mixture_cuda)


def rasterize_mixture_backward_cuda(
    grad_image, image, limits, totals, means, cholesky, colors, epsilon
):
    height, width = grad_image.shape[1:]
    # ∂C/∂wₙ = (cₙ − C) / D
    shares = grad_image.to(means.dtype) / from_blocks(totals, height, width)
    common = (shares * image).sum(0, keepdim=True)
    geometry, grad_colors = cuda.rasterize_mixture_backward(
        _scene_on_cuda(means, cholesky, colors, height, width),
        cutoff_of(epsilon),
        to_blocks(shares),
        limits,
        to_blocks(common),
    )
    return geometry[:, :2].clone(), geometry[:, 2:].clone(), grad_colors


torch.library.impl("instantgi::rasterize_mixture_backward", "cuda", rasterize_mixture_backward_cuda)


def mixture_on_cpu(
    means: Tensor,
    shapes: Tensor,
    colors: Tensor,
    height: int,
    width: int,
    cutoff: float,
    top_k: int,
    epsilon: float,
    published: bool = False,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the operator returns; with `published` the shapes are covariances."""
    check_mixture(top_k, epsilon)
    scene = _scene(means, shapes, colors, height, width, published)
    image = colors.new_empty(colors.shape[1], height, width)
    num_kept = _num_kept(height, width, keep)
    limits, totals = (colors.new_empty(num_kept) for _ in range(2))
    call_cpu("rasterize_mixture", *scene, cutoff, top_k, epsilon, image, limits, totals)
    return image, limits, totals


def mixture_backward_on_cpu(
    grad_image: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    means: Tensor,
    shapes: Tensor,
    colors: Tensor,
    cutoff: float,
    published: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of means, shapes and colors."""
    height, width = grad_image.shape[1:]
    scene = _scene(means, shapes, colors, height, width, published)
    geometry, grad_colors = means.new_empty(len(means), 5), torch.empty_like(scene[-1])
    grad_image = grad_image.to(means.dtype).contiguous()
    call_cpu(
        "rasterize_mixture_backward", *scene, cutoff, *saved, grad_image, geometry, grad_colors
    )
    # clone, not contiguous: of a single Gaussian that would be two views of one tensor
    return geometry[:, :2].clone(), geometry[:, 2:].clone(), grad_colors


def _scene(means, shapes, colors, height, width, published):
    check_fields(means, shapes, colors)
    is_double, size = int(means.dtype == torch.float64), (colors.shape[1], height, width)
    fields = means.contiguous(), shapes.contiguous(), colors.contiguous()
    return is_double, int(published), len(means), *size, *fields


def _scene_on_cuda(means, cholesky, colors, height, width):
    return *_scene(means, cholesky, colors, height, width, False)[2:], None


def _num_kept(height, width, keep):
    return -(-height // 4) * -(-width // 4) * 16 if keep else 0


@torch.library.register_fake("instantgi::rasterize_mixture")
def _(means, cholesky, colors, height, width, top_k, epsilon, keep):
    num_kept = _num_kept(height, width, keep)
    image = colors.new_empty(colors.shape[1], height, width)
    return image, colors.new_empty(num_kept), colors.new_empty(num_kept)


@torch.library.register_fake("instantgi::rasterize_mixture_backward")
def _(grad_image, image, limits, totals, means, cholesky, colors, epsilon):
    num, channels = colors.shape
    return means.new_empty(num, 2), means.new_empty(num, 3), means.new_empty(num, channels)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output, *inputs[:3])
    ctx.epsilon = inputs[6]


def _backward(ctx, grad_image, *_):
    image, limits, totals, *scene = ctx.saved_tensors
    if not len(limits):
        raise RuntimeError("rasterize_mixture was called without keep, which a gradient needs")
    backward = torch.ops.instantgi.rasterize_mixture_backward
    grads = backward(grad_image, image, limits, totals, *scene, ctx.epsilon)
    return *grads, None, None, None, None, None


torch.library.register_autograd("instantgi::rasterize_mixture", _backward, setup_context=_save)
