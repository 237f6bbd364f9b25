import math

import pytest
import torch
from scenes import random_gaussians
from torch.testing import assert_close

from instantgi.gaussians import Gaussians
from instantgi.models import look as look_module
from instantgi.models.fields import (
    FittedEllipses,
    LocalFields,
    PublishedFields,
    canonical_corners,
    describe_triangles,
    describe_triangles_reference,
    sample,
    scale_factor,
    three_channels,
)
from instantgi.models.widen import widen
from instantgi.points import Mesh, fit_published_ellipses, make_mesh
from instantgi.render import rasterize


def scene(height: int = 40, width: int = 56, channels: int = 3) -> tuple[torch.Tensor, Mesh]:
    random = torch.Generator().manual_seed(height + width)
    image = rasterize(random_gaussians(60, height, width, channels=channels), height, width)
    mesh = make_mesh(torch.rand(height, width, generator=random) + 0.05, 3, 200)
    return image.float().clamp(0, 1), mesh


def local(channels: int = 0, **options) -> LocalFields:
    torch.manual_seed(1)
    fields = LocalFields(channels, hidden=16, **options)
    torch.nn.init.normal_(fields.out.weight, std=0.3)
    return fields


# check values of the published code


@pytest.mark.parametrize(
    "said, factor", [(-2, 0.18404), (0, 0.5), (1, 0.74997), (5, 1.70672), (10, 2.63675), (50, 3.0)]
)
def test_scale_factor(said, factor):
    assert float(scale_factor(torch.tensor(float(said)))) == pytest.approx(factor, abs=1e-4)


def test_published_ellipse_angle_is_an_eighth_turn():
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    ellipse = fit_published_ellipses(points, torch.tensor([[0, 1, 2]]))
    assert_close(ellipse.angles / (2 * math.pi), torch.tensor([0.125]))
    assert_close(ellipse.semi_axes, torch.tensor([[1.3038, 2.2583]]), rtol=0, atol=1e-4)


def test_published_field_sizes():
    fields = PublishedFields()
    sizes = {
        name: sum(p.numel() for p in getattr(fields, name).parameters())
        for name in ("reduction", "barycentric", "shape", "opacity")
    }
    assert sizes == {
        "reduction": 107_072,
        "barycentric": 15_225,
        "shape": 18_145,
        "opacity": 17_955,
    }


def test_published_means_stay_in_their_triangles():
    image, mesh = scene()
    torch.manual_seed(0)
    fields = PublishedFields(8, centers="shared")
    means = fields(torch.randn(8, 40, 56), image, mesh).means.detach()
    corners = mesh.points[mesh.triangles]
    a, b, c = corners.unbind(1)

    def side(p, q):
        return (q - p)[:, 0] * (means - p)[:, 1] - (q - p)[:, 1] * (means - p)[:, 0]

    assert (torch.stack([side(a, b), side(b, c), side(c, a)]) >= -1e-3).all()


def test_published_centers_are_half_a_pixel_off():
    image, mesh = scene()
    made = []
    for centers in ("corner", "shared"):
        torch.manual_seed(0)
        made.append(PublishedFields(8, centers=centers)(torch.ones(8, 40, 56), image, mesh).means)
    assert_close(made[0], made[1] + 0.5)


def test_a_flat_ellipse_turns_only_with_the_safe_rotation():
    # an angle of 0 is where the published correction has no effect
    turns, said = torch.tensor([1e-5]), torch.tensor([1.0])
    logit, angle = (
        PublishedFields(4, rotation=kind)._rotations(turns, said) for kind in ("logit", "angle")
    )
    assert float(logit) < 1e-3
    assert float(angle) == pytest.approx(math.pi / 2 * math.tanh(1), abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "border"}, {"rotation": "angle"}, {"triangle": "pixels"}, {"color": "field"}],
)
def test_published_fields_give_finite_gradients(options):
    image, mesh = scene()
    fields = PublishedFields(8, **options)
    features = torch.randn(8, 40, 56, requires_grad=True)
    made = fields(features, image, mesh)
    torch.stack([part.square().mean() for part in made[:4]]).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fields.parameters())


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match='rotation must be one of logit, angle, got "left"'):
        PublishedFields(8, rotation="left")


def test_canonical_corners_do_not_depend_on_the_order():
    corners = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [1.0, 2.0]]])
    expected = canonical_corners(corners)
    assert_close(expected[0, 0], torch.tensor([1.0, 2.0]))  # opposite the longest edge
    for turn in (1, 2):
        assert_close(canonical_corners(corners.roll(turn, 1)), expected)


# sampling


def test_sample_uses_pixel_centers():
    planes = torch.arange(12.0).reshape(1, 3, 4)
    places = torch.tensor([[0.5, 0.5], [2.5, 1.5], [2.0, 0.5], [-9.0, 0.5], [9.0, 9.0]])
    assert_close(sample(planes, places, 3, 4)[:, 0], torch.tensor([0.0, 6.0, 1.5, 0.0, 11.0]))


# what a triangle sees


def precise(mesh: Mesh) -> Mesh:
    return Mesh(*(part.double() if part.is_floating_point() else part for part in mesh))


@pytest.mark.parametrize("height, width", [(2, 9), (23, 31), (60, 40)])
@pytest.mark.parametrize("channels, side", [(1, 8), (2, 12), (3, 8), (4, 8)])
def test_description_matches_its_definition(height, width, channels, side):
    image = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0))
    mesh = make_mesh(image[0] + 0.05, 3, 150)
    grid = LocalFields(0, grid=side).grid
    expected = describe_triangles_reference(image.double(), precise(mesh), grid.double())
    actual = describe_triangles(image, mesh, grid)
    for part, reference in zip(actual, expected, strict=True):
        # the smallest deviation, 0.01, magnifies what neighboring pixels differ by
        assert_close(part.double(), reference, rtol=1e-4, atol=1e-4)
    some = describe_triangles(image, mesh, grid, 3, 2)
    for part, whole in zip(some, actual, strict=True):
        assert torch.equal(part, whole[3:5])


def test_description_of_no_number_stays_inside():
    image, mesh = scene()
    grid = LocalFields(0).grid
    for bad in (math.nan, math.inf, -math.inf, 1e30):
        centers = mesh.centers.clone()
        centers[0] = bad
        made = describe_triangles(image, mesh._replace(centers=centers), grid)
        inside = (made.nine[0] >= image.min() - 1e-6) & (made.nine[0] <= image.max() + 1e-6)
        assert inside.all()


@pytest.mark.parametrize("name", ["triangles", "neighbors"])
@pytest.mark.parametrize("index", [-1, 10**6])
def test_description_refuses_what_is_not_in_the_mesh(name, index):
    image, mesh = scene()
    indices = getattr(mesh, name).clone()
    indices[5, 1] = index
    with pytest.raises(ValueError, match="names a point or a neighbor that is not there"):
        describe_triangles(image, mesh._replace(**{name: indices}), LocalFields(0).grid)


def test_description_refuses_wrong_shapes():
    image, mesh = scene()
    for grid in (torch.zeros(17, 2), torch.zeros(36, 2), torch.zeros(16, 2), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match="a grid .* whose side is 8, 12 or 16"):
            describe_triangles(image, mesh, grid)
    for first, num in ((-1, 2), (0, 10**6), (5, -1)):
        with pytest.raises(ValueError, match="a range of these"):
            describe_triangles(image, mesh, LocalFields(0).grid, first, num)


# our fields


def test_local_fields_do_not_see_where_they_are():
    image, mesh = scene(48, 48)
    wide = torch.nn.functional.pad(image, (30, 30, 20, 20), mode="replicate")
    shift = torch.tensor([30.0, 20.0])
    moved = mesh._replace(points=mesh.points + shift, centers=mesh.centers + shift)
    fields = local()
    here, there = fields(None, image, mesh), fields(None, wide, moved)
    assert_close(there.means, here.means + shift, rtol=0, atol=1e-3)
    assert_close(there.cholesky, here.cholesky, rtol=1e-3, atol=1e-3)


def test_local_fields_do_not_see_contrast():
    image, mesh = scene()
    fields = local()
    # all but the deviation and the mean, which are told: so shapes differ, but not by much
    known = describe_triangles(image, mesh, fields.grid).known
    paler = describe_triangles(0.5 * image + 0.2, mesh, fields.grid).known
    patch = 3 * 8 * 8
    assert_close(paler[:, patch : patch + 15], known[:, patch : patch + 15])
    # a deviation above e⁻² = 0.135: the floor of 0.01 is 7 % of it, or 7 more where it is halved
    strong = known[:, patch + 15] > 0
    assert strong.any()
    assert_close(paler[strong, :patch], known[strong, :patch], rtol=0.08, atol=0.02)


def test_local_fields_start_as_twice_the_triangle():
    image, mesh = scene()
    torch.manual_seed(0)
    made = LocalFields(0, hidden=16)(None, image, mesh)
    assert_close(made.means, mesh.centers, rtol=0, atol=0.1)
    determinants = made.cholesky[:, 0] * made.cholesky[:, 2]
    xx, xy, yy = mesh.covariances.unbind(1)
    assert_close(determinants, 4 * (xx * yy - xy * xy).sqrt(), rtol=0.4, atol=0.5)


def test_local_fields_by_chunks_are_the_same(monkeypatch):
    image, mesh = scene()
    fields, features = local(4), torch.randn(4, 20, 28)
    with torch.no_grad():
        whole = fields(features, image, mesh)
        monkeypatch.setattr(look_module, "CHUNK", 37)
        for kept in (0, 100):
            monkeypatch.setattr(look_module, "KEPT", kept)
            for part, expected in zip(fields(features, image, mesh), whole, strict=True):
                assert_close(part, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_local_fields_color_any_number_of_channels(channels):
    image, mesh = scene(channels=channels)
    made = local()(None, image, mesh)
    assert made.colors.shape == (len(mesh.triangles), channels)
    if channels == 4:  # opacity is colored like the others, but not looked at
        rgb = local()(None, image[:3], mesh)
        assert_close(rgb.means, made.means)
        assert_close(rgb.colors, made.colors[:, :3])


def test_widened_fields_say_the_same():
    image, mesh = scene()
    narrow = local(4)
    narrow.get_parameter("alone.0.weight").data[:, -4:] = 0  # they look at no features either
    wide = LocalFields(6, hidden=48)
    widen(wide, narrow)
    features = torch.randn(6, 40, 56)
    made, expected = wide(features, image, mesh), narrow(features[:4], image, mesh)
    for part, reference in zip(made, expected, strict=True):
        assert_close(part, reference, rtol=1e-3, atol=1e-3)
    torch.stack([part.sum() for part in made[:4]]).sum().backward()
    gradient = wide.get_parameter("alone.2.weight").grad
    assert gradient is not None
    assert not torch.allclose(gradient[:16], gradient[16:32])  # the copies part
    with pytest.raises(ValueError, match="24 units and 64 samples do not start from 16 units"):
        widen(LocalFields(0, hidden=24), narrow)


def test_a_color_field_says_rgb():
    image, mesh = scene()
    fields = local(color="field")
    made = fields(None, image, mesh)
    assert made.colors.shape == (len(mesh.triangles), 3)
    brighter = fields(None, image + 0.3, mesh)  # the mean is all it can tell this by
    assert not torch.allclose(brighter.colors, made.colors)
    with pytest.raises(ValueError, match="says RGB, the picture has 1 channels"):
        fields(None, image[:1], mesh)


def test_fitted_ellipses_take_the_color_of_their_center():
    image, mesh = scene()
    made = FittedEllipses()(torch.empty(0, 1, 1), image, mesh)
    assert_close(made.means, mesh.centers)
    assert_close(made.colors, sample(image, mesh.centers, 40, 56))


def test_networks_look_at_three_channels():
    assert three_channels(torch.rand(1, 2, 2)).shape == (3, 2, 2)
    image = torch.rand(4, 2, 2)
    assert_close(three_channels(image), image[:3])


def test_overlapping_colors_are_shared_out():
    # each Gaussian says the picture's color; the sum is about that color, not two or three times it
    image, mesh = torch.full((3, 40, 56), 0.5), scene()[1]
    torch.manual_seed(0)
    made = LocalFields(0, hidden=16)(None, image, mesh)
    drawn = rasterize(Gaussians(*made[:3]), 40, 56)[:, 4:-4, 4:-4].detach()
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(drawn.std()) < 0.1
