import math
import re

import pytest
import torch
from scenes import on_cutoff, random_gaussians
from torch.testing import assert_close

from instantgi.gaussians import RADIUS, Gaussians
from instantgi.render import rasterize
from instantgi.render.reference import published_tile_limits

EPS = 2.0**-52


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def from_scales_rotations(scales: torch.Tensor, rotations: torch.Tensor) -> Gaussians:
    num = len(scales)
    return Gaussians.from_scales_rotations(
        uniform(0, 50, num, 2), scales, rotations, uniform(0, 1, num, 3)
    )


def matrices(xx_xy_yy: torch.Tensor) -> torch.Tensor:
    xx, xy, yy = xx_xy_yy.unbind(-1)
    return torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)


# aspect: largest relation of the two scales; an entry of Σ or Σ⁻¹ has the rounding of the larger
# axis
@pytest.mark.parametrize("aspect", [1, 3, 100, 1e4])
def test_covariances_are_those_of_the_axes(aspect):
    minor = uniform(0.1, 5, 300)
    scales = torch.stack([minor * uniform(1, aspect, 300, seed=1), minor], -1)
    rotations = uniform(-7, 7, 300, seed=2)
    gaussians = from_scales_rotations(scales, rotations)
    axes = torch.stack(
        [rotations.cos(), -rotations.sin(), rotations.sin(), rotations.cos()], -1
    ).reshape(-1, 2, 2)
    expected = axes @ torch.diag_embed(scales**2) @ axes.mT
    error = (matrices(gaussians.covariances) - expected).abs().amax((1, 2)) / scales[:, 0] ** 2
    assert error.max() < 20 * EPS


@pytest.mark.parametrize("aspect", [1, 3, 100, 1e4])
def test_conics_invert_covariances(aspect):
    minor = uniform(0.1, 5, 300)
    scales = torch.stack([minor, minor * uniform(1, aspect, 300, seed=1)], -1)
    rotations = uniform(-7, 7, 300, seed=2)
    gaussians = from_scales_rotations(scales, rotations)
    axes = torch.stack(
        [rotations.cos(), -rotations.sin(), rotations.sin(), rotations.cos()], -1
    ).reshape(-1, 2, 2)
    expected = axes @ torch.diag_embed(scales**-2) @ axes.mT
    error = (matrices(gaussians.conics) - expected).abs().amax((1, 2)) * scales[:, 0] ** 2
    # the input's own rounding turns an ellipse by EPS, which moves Σ⁻¹ by EPS · 1/s2²
    assert error.max() < 30 * EPS


@pytest.mark.parametrize("aspect", [1.01, 3, 100, 1e4])
def test_scales_and_rotations_survive_the_way_through_cholesky(aspect):
    minor = uniform(0.1, 5, 300)
    scales = torch.stack([minor * uniform(1.005, aspect, 300, seed=1), minor], -1)
    rotations = uniform(-math.pi / 2, math.pi / 2, 300, seed=2)
    got_scales, got_rotations = from_scales_rotations(scales, rotations).scales_rotations
    # the larger comes from Σ (few roundings), the smaller from the product, which is exact to few
    # too
    assert_close(got_scales, scales, rtol=20 * EPS, atol=0)
    turn = (got_rotations - rotations + math.pi / 2) % math.pi - math.pi / 2
    # a nearly round ellipse has xx − yy as the difference of nearly equal numbers
    gap = 1 - (scales[:, 1] / scales[:, 0]) ** 2
    assert (turn.abs() * gap).max() < 20 * EPS


@pytest.mark.parametrize("aspect", [1, 3, 100, 1e4])
def test_covariances_survive_the_way_through_cholesky(aspect):
    minor = uniform(0.1, 5, 300)
    scales = torch.stack([minor * uniform(1, aspect, 300, seed=1), minor], -1)
    gaussians = from_scales_rotations(scales, uniform(-7, 7, 300, seed=2))
    again = Gaussians.from_covariances(gaussians.means, gaussians.covariances, gaussians.colors)
    assert_close(again.covariances, gaussians.covariances, rtol=1e-12, atol=1e-12 * aspect**2)
    # l22² = det Σ / l11² is a difference of numbers up to (aspect)² times larger
    l22 = gaussians.cholesky[:, 2]
    assert ((again.cholesky[:, 2] - l22).abs() / l22).max() < 10 * EPS * aspect**2


def test_unit_covariance():
    gaussians = from_scales_rotations(
        torch.ones(1, 2, dtype=torch.float64), torch.tensor([0.7]).double()
    )
    for form in (gaussians.covariances, gaussians.conics, gaussians.cholesky):
        assert_close(form, torch.tensor([[1.0, 0, 1]], dtype=torch.float64), atol=1e-15, rtol=0)
    assert_close(gaussians.scales_rotations[0], torch.ones(1, 2).double(), atol=1e-15, rtol=0)


def test_axes_of_a_triangle():
    # Instant-GI: triangle (0, 0), (3, 0), (0, 3): semi-axes 1.3038 and 2.2583, the minor one at 45
    # degrees
    scales = torch.tensor([[1.3038, 2.2583]], dtype=torch.float64)
    angle = torch.tensor([math.pi / 4], dtype=torch.float64)
    gaussians = from_scales_rotations(scales, angle)
    xx, xy, yy = gaussians.covariances[0].tolist()
    assert xx == pytest.approx((1.3038**2 + 2.2583**2) / 2, rel=1e-14)
    assert xy == pytest.approx((1.3038**2 - 2.2583**2) / 2, rel=1e-14)
    assert yy == pytest.approx(xx, rel=1e-14)
    got, rotation = gaussians.scales_rotations
    assert got[0].tolist() == pytest.approx([2.2583, 1.3038], rel=1e-14)
    assert rotation.item() == pytest.approx(-math.pi / 4, rel=1e-14)


def test_radius_is_where_the_weight_is_one_step_of_eight_bits():
    assert RADIUS == pytest.approx(3.329, abs=1e-4)
    assert math.exp(-(RADIUS**2) / 2) == pytest.approx(1 / 255, rel=1e-14)


def test_published_tiles():
    # gsplat: Σ = I at (32, 32) reaches r = 4 pixels, tiles 1 and 2 of each axis
    unit = Gaussians(torch.tensor([[32.0, 32]]), torch.tensor([[1.0, 0, 1]]), torch.ones(1, 3))
    expected = torch.ones(4, 4, dtype=torch.int32)
    expected[1:3, 1:3] = 0  # it is the first Gaussian of these, and there is room for no other
    assert_close(published_tile_limits(unit, 64, 64, 1), expected)
    # Σ = diag(9, 1): λ = 9, r = 9: tiles trunc(7/16) = 0 to trunc(25/16 + 1) = 2
    wide = Gaussians(torch.tensor([[16.0, 16]]), torch.tensor([[3.0, 0, 1]]), torch.ones(1, 3))
    expected = torch.ones(4, 4, dtype=torch.int32)
    expected[:2, :2] = 0
    assert_close(published_tile_limits(wide, 64, 64, 1), expected)


@pytest.mark.parametrize("kind", ["scales and rotations", "covariances"])
def test_conversions_have_right_gradients(kind):
    scales, rotations = uniform(0.5, 4, 6, 2), uniform(-3, 3, 6, seed=1)
    means, colors = uniform(0, 9, 6, 2, seed=2), uniform(-1, 1, 6, 2, seed=3)
    if kind == "covariances":
        shape = [from_scales_rotations(scales, rotations).covariances]
    else:
        shape = [scales, rotations]
    inputs = [tensor.requires_grad_() for tensor in (means, *shape, colors)]

    def forms(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if kind == "covariances":
            gaussians = Gaussians.from_covariances(*inputs)
        else:
            gaussians = Gaussians.from_scales_rotations(*inputs)
        shapes = gaussians.cholesky, gaussians.covariances, gaussians.conics
        return *shapes, *gaussians.scales_rotations

    assert torch.autograd.gradcheck(forms, inputs)


def assert_same_picture(
    one: torch.Tensor, other: torch.Tensor, cutoff: torch.Tensor, coordinate: float
):
    # Moving or scaling rounds a mean to 2**-24 of the largest coordinate, twice, a Gaussian's slope
    # is at most 0.61 per deviation ≥ 0.85 px, and some 60 of them cover a pixel.
    atol = 2 * coordinate * 2**-24 * 0.61 / 0.85 * 60
    assert_close(one[:, ~cutoff], other[:, ~cutoff], atol=atol, rtol=1e-5)
    assert_close(one, other, atol=atol + 2 / 255, rtol=1e-5)
    assert cutoff.float().mean() < 0.02


@pytest.mark.parametrize(
    "x, y, height, width", [(0, 0, 60, 80), (17, 22, 13, 31), (64, 40, 37, 50), (-9, -5, 20, 20)]
)
def test_a_crop_is_that_part_of_the_picture(device, x, y, height, width):
    gaussians = random_gaussians(600, 60, 80)
    padded = gaussians.translated(40.0, 40.0)  # so that there is a picture around the window
    whole = rasterize(padded.to(device), 160, 180).cpu()
    cropped = padded.cropped(x + 40.0, y + 40.0, height, width)
    part = rasterize(cropped.to(device), height, width).cpu()
    window = slice(y + 40, y + 40 + height), slice(x + 40, x + 40 + width)
    cutoff = on_cutoff(cropped, height, width, rtol=3e-4)
    assert_same_picture(part, whole[(slice(None), *window)], cutoff, 180)


def test_a_crop_leaves_out_what_lies_outside():
    gaussians = random_gaussians(2000, 60, 80)
    assert 0 < len(gaussians.cropped(10.0, 10.0, 8, 8)) < 200
    assert len(gaussians.cropped(1000.0, 0.0, 8, 8)) == 0
    with pytest.raises(ValueError, match="at least 1x1 pixels, got height 0"):
        gaussians.cropped(0.0, 0.0, 0, 8)


def test_drawing_in_half_steps_equals_the_scaled_record(device):
    gaussians = random_gaussians(500, 30, 40).to(device)
    fine = rasterize(gaussians, 60, 80, step=(0.5, 0.5))
    assert torch.equal(fine, rasterize(gaussians.scaled(2.0, 2.0), 60, 80))
    squeezed = rasterize(gaussians, 61, 14, step=(3.0, 0.5))
    assert torch.equal(squeezed, rasterize(gaussians.scaled(1 / 3, 2.0), 61, 14))


def test_an_origin_is_a_crop(device):
    gaussians = random_gaussians(500, 30, 40).to(device)
    part = rasterize(gaussians, 9, 11, origin=(7.0, 5.0))
    # the Gaussians that a crop leaves out add nothing, so not a bit differs
    assert torch.equal(part, rasterize(gaussians.cropped(7.0, 5.0, 9, 11), 9, 11))


def test_scaling_keeps_the_picture_at_the_same_places():
    gaussians = random_gaussians(300, 30, 40).to(torch.float64)
    coarse = rasterize(gaussians, 30, 40)
    fine = rasterize(
        gaussians.scaled(3.0, 3.0), 90, 120
    )  # every third center is a center of the coarse one
    keep = ~on_cutoff(gaussians, 30, 40, rtol=1e-9)
    assert_close(fine[:, 1::3, 1::3][:, keep], coarse[:, keep], atol=1e-12, rtol=0)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_scaling_needs_a_positive_number(factor):
    with pytest.raises(ValueError, match=f"scaled by a positive number, got {factor}"):
        random_gaussians(3, 9, 9).scaled(1.0, factor)


def test_indexing_and_moving_keep_the_fields_together():
    gaussians = random_gaussians(10, 9, 9)
    some = gaussians[torch.arange(10) % 2 == 0]
    assert len(some) == 5 and torch.equal(some.colors, gaussians.colors[::2])
    assert len(gaussians[2:4]) == 2
    assert gaussians.to(torch.float64).cholesky.dtype == torch.float64
    assert (
        not random_gaussians(1, 9, 9).map(torch.Tensor.requires_grad_).detach().means.requires_grad
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        (lambda g: (g.means[:, :1], g.cholesky, g.colors), "means must be [N, 2], got [4, 1]"),
        (lambda g: (g.means, g.cholesky[:, :2], g.colors), "cholesky must be [N, 3], got [4, 2]"),
        (lambda g: (g.means, g.cholesky, g.colors[0]), "colors must be [N, C], got [3]"),
        (lambda g: (g.means, g.cholesky, g.colors[:, :0]), "colors must be [N, C], got [4, 0]"),
        (
            lambda g: (g.means, g.cholesky, g.colors[:3]),
            "colors must be [N, C] with N = 4 as in means, got [3, 3]",
        ),
        (
            lambda g: (g.means, g.cholesky, g.colors.int()),
            "colors must be a tensor of floats, got [4, 3] torch.int32",
        ),
        (lambda g: (g.means, g.cholesky, [1.0]), "colors must be a tensor of floats, got list"),
        (
            lambda g: (g.means, g.cholesky.double(), g.colors),
            "cholesky is torch.float64 on cpu, but means is torch.float32 on cpu; "
            "bring them together with .to()",
        ),
    ],
)
def test_fields_must_fit_together(without_shape_checks, fields, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        Gaussians(*fields(random_gaussians(4, 9, 9)))


@pytest.mark.parametrize(
    "bad", [(1.0, 1.0, 1.0), (-1.0, 0.0, 1.0), (1.0, 2.0, 1.0), (math.nan, 0.0, 1.0)]
)
def test_covariances_must_be_positive_definite(bad):
    gaussians = random_gaussians(4, 9, 9)
    covariances = gaussians.covariances
    covariances[2] = torch.tensor(bad)
    message = r"covariances must be positive definite \(xx > 0, xx·yy > xy²\), got \[.*\] at 2$"
    with pytest.raises(ValueError, match=message):
        Gaussians.from_covariances(gaussians.means, covariances, gaussians.colors)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_scales_must_be_positive(bad):
    scales = torch.ones(4, 2)
    scales[3, 1] = bad
    with pytest.raises(
        ValueError, match=re.escape(f"scales must be > 0 pixels, got [1.0, {bad}] at 3") + "$"
    ):
        Gaussians.from_scales_rotations(torch.ones(4, 2), scales, torch.ones(4), torch.ones(4, 3))
