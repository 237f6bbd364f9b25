"""Triangles become ellipses: the center and covariance of each, in closed form."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Ellipses(NamedTuple):
    """The ellipses that Instant-GI fits to triangles; semi-axes and not standard deviations."""

    centers: Float[Tensor, "T 2"]  # pixels, (x, y)
    semi_axes: Float[Tensor, "T 2"]  # pixels, minor first
    angles: Float[Tensor, " T"]  # radians of the minor axis from +x towards +y, in [0, π)


def fit_ellipses(
    points: Float[Tensor, "P 2"], triangles: Int[Tensor, "T 3"]
) -> tuple[Float[Tensor, "T 2"], Float[Tensor, "T 3"]]:
    """Centers [T, 2] and covariances [T, 3] (xx, xy, yy) of the triangles as uniform areas.

    c = (1/3) Σ_v v,  Σ = (1/12) Σ_v (v - c)(v - c)ᵀ: the first two moments of a filled triangle.

    Args:
        points: pixels. Differentiable.
        triangles: indices of corners; T = 0 gives empty tensors. A triangle without area gives a
            singular covariance.
    """
    centers, spreads, _ = _moments(points, triangles)
    return centers, spreads / 4


def fit_published_ellipses(points: Float[Tensor, "P 2"], triangles: Int[Tensor, "T 3"]) -> Ellipses:
    """The ellipse that Instant-GI (2025) fits to the corners and edge midpoints of each triangle.

    Its least-squares conic A x² + B y² + C x y = 1 for these six points around their mean is the
    Steiner circumellipse shrunk by √(17/20), because the fit commutes with affine maps: with
    S = (1/3) Σ_v (v - c)(v - c)ᵀ and its eigenvalues λ, the semi-axes are √(1.7 λ). Unlike the
    published solve this loses no digits on thin triangles.

    Args:
        points: pixels.
        triangles: indices of corners; T = 0 gives empty tensors. A triangle without area gives a
            minor semi-axis of 0; a circle has angle 0.
    """
    centers, spreads, doubled_areas = _moments(points, triangles)
    xx, xy, yy = spreads.unbind(-1)
    half_difference = (xx - yy) / 2
    radius = torch.hypot(half_difference, xy)
    major = (xx + yy) / 2 + radius
    # det S = (2 area)² / 27; the difference of the eigenvalue formula would lose the small one
    minor = torch.where(major > 0, doubled_areas**2 / (27 * major), 0)
    angles = torch.where(radius > 0, torch.atan2(-xy, -half_difference) / 2 % torch.pi, 0)
    return Ellipses(centers, (1.7 * torch.stack([minor, major], dim=-1)).sqrt(), angles)


def _moments(points: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centers [T, 2], S = (1/3) Σ_v (v - c)(v - c)ᵀ as (xx, xy, yy) [T, 3], doubled areas [T].

    With the edges p, q from the first corner, S = (2/9) (p pᵀ + q qᵀ - (p qᵀ + q pᵀ) / 2).
    """
    x, y = points.T.contiguous()  # a gather from one long row is twice as fast as one of pairs
    (ax, bx, cx), (ay, by, cy) = x[triangles.T], y[triangles.T]  # [T]
    px, py, qx, qy = bx - ax, by - ay, cx - ax, cy - ay
    centers = torch.stack([ax + (px + qx) / 3, ay + (py + qy) / 3], dim=-1)
    xx = px * px + qx * qx - px * qx
    xy = px * py + qx * qy - (px * qy + qx * py) / 2
    yy = py * py + qy * qy - py * qy
    return centers, torch.stack([xx, xy, yy], dim=-1) * (2 / 9), px * qy - py * qx
