import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from instantgi.points import fit_ellipses, fit_published_ellipses


def random_triangles(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Separate triangles in a picture of 100 pixels, float64."""
    generator = torch.Generator().manual_seed(seed)
    points = 100 * torch.rand(3 * num, 2, generator=generator, dtype=torch.float64)
    return points, torch.arange(3 * num).reshape(num, 3)


def conic_fit(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Center, semi-axes (minor first) and angle of the minor axis by Instant-GI's least squares.

    A x² + B y² + C x y + D x + E y = 1 for the corners and the edge midpoints, solved by SVD.
    """
    origin = corners.mean(axis=0)
    six = np.concatenate([corners, (corners + np.roll(corners, 1, axis=0)) / 2]) - origin
    x, y = six.T
    design = np.stack([x * x, y * y, x * y, x, y], axis=1)
    a, b, c, d, e = np.linalg.lstsq(design, np.ones(6), rcond=None)[0]
    matrix = np.array([[a, c / 2], [c / 2, b]])
    center = -np.linalg.solve(2 * matrix, [d, e])
    eigenvalues, vectors = np.linalg.eigh(matrix)  # ascending: major axis first
    semi_axes = np.sqrt((1 + center @ matrix @ center) / eigenvalues)[::-1]
    angle = math.atan2(vectors[1, 1], vectors[0, 1]) % math.pi
    return center + origin, semi_axes, angle


def test_published_ellipse_of_a_right_triangle():
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    centers, semi_axes, angles = fit_published_ellipses(points, torch.tensor([[0, 1, 2]]))
    assert_close(centers, torch.tensor([[1.0, 1.0]]))
    assert_close(semi_axes, torch.tensor([[1.3038, 2.2583]]), rtol=0, atol=5e-5)  # 5 digits given
    assert_close(angles, torch.tensor([math.pi / 4]))


def test_published_ellipse_is_the_least_squares_conic():
    points, triangles = random_triangles(300)
    ellipses = fit_published_ellipses(points, triangles)
    for n in range(len(triangles)):
        center, semi_axes, angle = conic_fit(points[triangles[n]].numpy())
        # the SVD squares the aspect ratio, here up to 500: 500**2 * 2**-52 = 6e-11
        aspect = semi_axes[1] / semi_axes[0]
        tolerance = 1e-12 * aspect**2 + 1e-12
        assert np.abs(ellipses.centers[n].numpy() - center).max() < 100 * tolerance
        assert np.abs(ellipses.semi_axes[n].numpy() / semi_axes - 1).max() < 10 * tolerance
        difference = (float(ellipses.angles[n]) - angle + math.pi / 2) % math.pi - math.pi / 2
        assert abs(difference) < 10 * tolerance * aspect / max(aspect - 1, 1e-3)


def test_covariances_are_moments_of_the_filled_triangle():
    points, triangles = random_triangles(20)
    centers, covariances = fit_ellipses(points, triangles)
    # the edge-midpoint rule integrates quadratics over a triangle exactly
    corners = points[triangles]
    midpoints = (corners + corners.roll(1, dims=1)) / 2
    assert_close(centers, midpoints.mean(1))
    x, y = (midpoints - centers[:, None]).unbind(-1)
    assert_close(covariances, torch.stack([x * x, x * y, y * y], -1).mean(1))


def test_both_ellipses_have_the_same_shape():
    points, triangles = random_triangles(50)
    centers, covariances = fit_ellipses(points, triangles)
    ellipses = fit_published_ellipses(points, triangles)
    xx, xy, yy = covariances.unbind(-1)
    matrices = torch.stack([xx, xy, xy, yy], -1).reshape(-1, 2, 2)
    assert_close(centers, ellipses.centers)
    # Σ = S / 4 and the semi-axes are √(1.7 λ(S))
    assert_close(ellipses.semi_axes, (1.7 * 4 * torch.linalg.eigvalsh(matrices)).sqrt())
    minor = torch.stack([ellipses.angles.cos(), ellipses.angles.sin()], -1)[..., None]
    variance = (minor.mT @ matrices @ minor).flatten()
    assert_close(variance, ellipses.semi_axes[:, 0] ** 2 / 6.8)


@pytest.mark.parametrize("corner_order", [[0, 2, 1], [1, 2, 0]])
def test_order_of_corners_is_irrelevant(corner_order):
    points, triangles = random_triangles(20)
    for value, other in zip(
        fit_published_ellipses(points, triangles),
        fit_published_ellipses(points, triangles[:, corner_order]),
        strict=True,
    ):
        assert_close(value, other)


@pytest.mark.parametrize("aspect", [10.0, 1e3, 1e6])
def test_thin_triangles_keep_their_digits_in_float32(aspect):
    points = torch.tensor([[0.0, 0.0], [aspect, 0.0], [0.0, 1.0]])
    triangle = torch.tensor([[0, 1, 2]])
    semi_axes = fit_published_ellipses(points, triangle).semi_axes
    expected = fit_published_ellipses(points.double(), triangle).semi_axes
    determinant = 1.7 * aspect / math.sqrt(27)  # product of the semi-axes
    assert_close(float(expected.prod()), determinant, rtol=1e-12, atol=0)
    assert_close(semi_axes.double(), expected, rtol=1e-6, atol=0)


def test_degenerate_triangles_stay_finite():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    triangles = torch.tensor([[0, 1, 2], [1, 1, 1]])
    ellipses = fit_published_ellipses(points, triangles)
    assert torch.isfinite(torch.cat([value.flatten() for value in ellipses])).all()
    assert ellipses.semi_axes[:, 0].tolist() == [0, 0]
    assert torch.isfinite(fit_ellipses(points, triangles)[1]).all()


def test_equilateral_triangle_is_a_circle():
    points = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    ellipses = fit_published_ellipses(points, torch.tensor([[0, 1, 2]]))
    assert_close(ellipses.semi_axes, torch.full((1, 2), 0.85**0.5))  # Steiner's circle has radius 1


def test_no_triangles_give_no_ellipses():
    centers, covariances = fit_ellipses(torch.zeros(0, 2), torch.zeros(0, 3, dtype=torch.int64))
    assert centers.shape == (0, 2) and covariances.shape == (0, 3)


def test_ellipses_are_differentiable_in_points():
    points, triangles = random_triangles(3)
    points.requires_grad_()
    torch.autograd.gradcheck(lambda points: fit_ellipses(points, triangles), (points,))
