import math

import pytest
import torch
from scenes import HOSTILE, one_gaussian, random_gaussians
from torch.testing import assert_close

from instantgi.gaussians import Gaussians
from instantgi.render import mixture_at, rasterize, rasterize_mixture, sum_at
from instantgi.render.draw import draw
from instantgi.render.mixture import mixture_reference
from instantgi.render.points import SUM, values_at_reference
from instantgi.render.published import (
    published_mixture,
    published_mixture_reference,
    published_sum,
    published_sum_reference,
)
from instantgi.render.reference import pixel_centers
from instantgi.representations import Level, Levels

SCENES = [(0, 5, 7, 3), (1, 1, 1, 1), (40, 24, 31, 3), (300, 33, 47, 4), (200, 20, 70, 7)]


def leaves(gaussians: Gaussians, dtype: torch.dtype) -> Gaussians:
    return gaussians.map(lambda field: field.detach().to(dtype).clone().requires_grad_())


def fields(gaussians: Gaussians) -> list[torch.Tensor]:
    return [gaussians.means, gaussians.cholesky, gaussians.colors]


def assert_gradients_match(picture, scene, expected, reference, rtol, atol=0.0):
    """Gradients of a random sum of the picture, relative to the largest of each field."""
    random = torch.Generator().manual_seed(1)
    weights = torch.randn(expected.shape, generator=random, dtype=torch.float64)
    made = torch.autograd.grad(picture, scene, weights.to(picture))
    wanted = torch.autograd.grad(expected, reference, weights)
    for one, other in zip(made, wanted, strict=True):
        scale = float(other.abs().max()) if other.numel() else 0.0
        assert_close(one.cpu().double(), other, rtol=0, atol=rtol * scale + atol)


# The mixture


@pytest.mark.parametrize("top_k", [1, 10, 11, 32])
@pytest.mark.parametrize("num, height, width, channels", SCENES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_matches_reference(device, num, height, width, channels, top_k, dtype):
    scene = random_gaussians(num, height, width, channels=channels, scales=(1, 6), seed=3)
    scene = scene.to(dtype)
    reference, scene = leaves(scene, torch.float64), leaves(scene.to(device), dtype)
    picture = rasterize_mixture(scene, height, width, top_k=top_k)
    expected = mixture_reference(reference, height, width, top_k)
    # a mean of colors in [0, 1], from weights with a relative error of 1e-6 at the far end
    atol = 2e-6 if dtype == torch.float32 else 1e-13
    assert_close(picture.cpu().double(), expected, rtol=0, atol=atol)
    # c − C of the only Gaussian at a pixel is a difference of equal numbers
    alone = 2e-6 if dtype == torch.float32 else 1e-14
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    assert_gradients_match(picture, fields(scene), expected, fields(reference), rtol, alone)


def test_mixture_of_wide_gaussians_matches_reference(device):
    scene = random_gaussians(60, 70, 90, scales=(8, 40), dtype=torch.float64)
    reference, scene = leaves(scene, torch.float64), leaves(scene.to(device), torch.float64)
    picture, expected = rasterize_mixture(scene, 70, 90), mixture_reference(reference, 70, 90)
    assert_close(picture.cpu(), expected, rtol=0, atol=1e-12)
    assert_gradients_match(picture, fields(scene), expected, fields(reference), 1e-11)


@pytest.mark.parametrize("top_k", [3, 32])
def test_mixture_of_many_at_every_pixel_is_that_of_its_points(top_k):
    # 1,500 over all 8192 blocks of a band: its lists do not fit, and it is drawn in strips
    scene = random_gaussians(1500, 32, 4096, scales=(600, 900), seed=5)
    picture = rasterize_mixture(scene, 32, 4096, top_k=top_k)
    centers = pixel_centers(32, 4096).reshape(-1, 2)
    some = torch.randperm(len(centers), generator=torch.Generator().manual_seed(6))[:400]
    expected = mixture_at(scene, centers[some], top_k=top_k)
    assert_close(picture.reshape(3, -1).T[some], expected, rtol=0, atol=2e-6)


def test_mixture_gradient_passes_gradcheck(device):
    scene = random_gaussians(12, 8, 9, scales=(1, 3), seed=5, dtype=torch.float64)
    inputs = fields(leaves(scene.to(device), torch.float64))

    def draw(means, cholesky, colors):
        return rasterize_mixture(Gaussians(means, cholesky, colors), 8, 9, top_k=4)

    # steps of 1e-7: no two weights at a pixel are so close that one would change places
    assert torch.autograd.gradcheck(draw, inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 7])
def test_mixture_operator_is_well_formed(device, top_k):
    scene = fields(leaves(random_gaussians(9, 10, 13).to(device), torch.float32))
    operator = torch.ops.instantgi.rasterize_mixture.default
    torch.library.opcheck(operator, (*scene, 10, 13, top_k, 1e-4, True))
    constant = [field.detach() for field in scene]
    torch.library.opcheck(operator, (*constant, 10, 13, top_k, 1e-4, False))
    picture, *kept = operator(*constant, 10, 13, top_k, 1e-4, False)
    assert torch.equal(picture, operator(*scene, 10, 13, top_k, 1e-4, True)[0])
    assert [part.numel() for part in kept] == [0, 0]
    with pytest.raises(RuntimeError, match="called without keep"):
        operator(*scene, 10, 13, top_k, 1e-4, False)[0].sum().backward()


def test_one_gaussian_keeps_its_color_and_fades_by_epsilon():
    gaussians = one_gaussian((8.5, 8.5), (2.0, 0.0, 2.0), (0.25, 0.5, 1.0))
    picture = rasterize_mixture(gaussians, 16, 16)
    weight = torch.exp(-((pixel_centers(16, 16) - 8.5) ** 2).sum(-1) / 8)
    expected = gaussians.colors[0][:, None, None] * weight / (weight + 1e-4)
    # dropped below 1e-4/255, where the fraction is 1/255
    assert_close(picture, expected, rtol=2e-6, atol=1 / 255)


def test_equal_gaussians_average_their_colors_however_many_they_are(device):
    scene = one_gaussian((4.0, 4.0), (2.0, 0.5, 2.0), (0.0,)).map(lambda f: f.repeat(20, 1))
    scene = Gaussians(scene.means, scene.cholesky, torch.arange(20.0)[:, None])
    picture = rasterize_mixture(scene.to(device), 8, 8, top_k=3).cpu()
    assert_close(picture[0, 4, 4], torch.tensor(9.5), rtol=1e-4, atol=0)


def test_order_of_gaussians_is_irrelevant_to_the_mixture(device):
    scene = random_gaussians(150, 30, 40, scales=(1, 6)).to(device)
    shuffled = scene[torch.randperm(150, generator=torch.Generator().manual_seed(0)).to(device)]
    pictures = [rasterize_mixture(each, 30, 40, top_k=5) for each in (scene, shuffled)]
    assert_close(pictures[0], pictures[1], rtol=0, atol=1e-6)  # the order of additions


def test_mixture_does_not_depend_on_the_part_that_is_drawn(device):
    scene = random_gaussians(200, 70, 90, scales=(1, 9)).to(device)
    whole = rasterize_mixture(scene, 70, 90)
    part = rasterize_mixture(scene, 30, 50, origin=(21, 13))
    assert_close(part, whole[:, 13:43, 21:71], rtol=0, atol=2e-5)  # means shift by a rounding


def test_mixture_is_a_field_that_scales():
    scene = random_gaussians(60, 20, 30, scales=(1, 4), dtype=torch.float64)
    points = (pixel_centers(40, 60) * 0.5).reshape(-1, 2).double()
    large = rasterize_mixture(scene, 40, 60, step=(0.5, 0.5))
    assert_close(large.flatten(1).T, mixture_at(scene, points), rtol=0, atol=1e-12)


def test_mixture_of_a_turned_scene_is_the_turned_mixture():
    scene = random_gaussians(80, 24, 24, scales=(1, 5), dtype=torch.float64)
    covariances = scene.covariances
    turned = Gaussians.from_covariances(
        torch.stack([24 - scene.means[:, 1], scene.means[:, 0]], -1),
        torch.stack([covariances[:, 2], -covariances[:, 1], covariances[:, 0]], -1),
        scene.colors,
    )
    picture = rasterize_mixture(turned, 24, 24)
    assert_close(picture, rasterize_mixture(scene, 24, 24).rot90(-1, (1, 2)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("mean, cholesky", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_gaussians_stay_finite_in_a_mixture(device, mean, cholesky):
    scene = leaves(one_gaussian(mean, cholesky).to(device), torch.float32)
    picture = rasterize_mixture(scene, 40, 40)
    assert picture.isfinite().all() and picture.min() >= 0 and picture.max() <= 1
    grads = torch.autograd.grad(picture.sin().sum(), fields(scene))
    assert all(grad.isfinite().all() for grad in grads)


def test_same_bytes_on_any_number_of_threads():
    scene = leaves(random_gaussians(3000, 150, 170, scales=(1, 6)), torch.float32)
    before, results = torch.get_num_threads(), []
    points = torch.rand(700, 2) * 160
    for threads in (1, 3):
        torch.set_num_threads(threads)
        picture, values = rasterize_mixture(scene, 150, 170), mixture_at(scene, points)
        grads = torch.autograd.grad(picture.sin().sum() + values.cos().sum(), fields(scene))
        results.append([picture, values, *grads])
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    "options, text",
    [
        ({"top_k": 0}, "top_k must be from 1 to 32, got 0"),
        ({"top_k": 33}, "top_k must be from 1 to 32, got 33"),
        ({"epsilon": 0.0}, "epsilon must be from 1e-30 to 1, got 0.0"),
        ({"step": (1.0, -1.0)}, "step must be two positive numbers"),
    ],
)
def test_mixture_names_the_argument_that_is_wrong(options, text):
    with pytest.raises(ValueError, match=text):
        rasterize_mixture(random_gaussians(3, 8, 8), 8, 8, **options)


def test_mixture_refuses_what_is_not_finite(device):
    scene = random_gaussians(5, 8, 8).to(device)
    scene.colors[3, 1] = math.nan
    with pytest.raises(ValueError, match="Gaussian 3 has a parameter that is not finite"):
        rasterize_mixture(scene, 8, 8)
    with pytest.raises(ValueError, match="Gaussian 3 has a parameter that is not finite"):
        mixture_at(scene, torch.zeros(2, 2, device=device))


# Points


@pytest.mark.parametrize("top_k", [SUM, 1, 10])
@pytest.mark.parametrize("num, height, width, channels", SCENES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_at_points_match_reference(device, num, height, width, channels, top_k, dtype):
    scene = random_gaussians(num, height, width, channels=channels, scales=(1, 6), seed=2)
    scene, random = scene.to(dtype), torch.Generator().manual_seed(0)
    reference, scene = leaves(scene, torch.float64), leaves(scene.to(device), dtype)
    # also outside of the picture, and more than a band of them
    points = (torch.rand(700, 2, generator=random) * 1.5 - 0.25) * torch.tensor([width, height])
    points = points.to(dtype)
    at = points.to(device)
    values = sum_at(scene, at) if top_k == SUM else mixture_at(scene, at, top_k=top_k)
    expected = values_at_reference(reference, points.double(), top_k, 1e-4)
    error = (values.cpu().double() - expected).abs()
    is_far = error > (1e-4 if dtype == torch.float32 else 1e-12)
    # a weight on the edge of being dropped, in float32: 1/255 of a color
    assert is_far.sum() <= 2 * channels and (error < 0.01).all()
    if not is_far.any():
        rtol = 1e-5 if dtype == torch.float32 else 1e-11
        assert_gradients_match(values, fields(scene), expected, fields(reference), rtol, 2e-6)


def test_points_at_pixel_centers_are_the_picture(device):
    scene = random_gaussians(400, 37, 61, scales=(0.5, 5)).to(device)
    points = pixel_centers(37, 61).reshape(-1, 2).to(device)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).to(device)
    for at, rasterized in ((sum_at, rasterize), (mixture_at, rasterize_mixture)):
        values = at(scene, points[order])
        assert_close(values, rasterized(scene, 37, 61).flatten(1).T[order], rtol=1e-5, atol=1e-5)


def test_points_may_be_none_equal_or_far_away(device):
    scene = random_gaussians(30, 16, 16).to(device)
    assert sum_at(scene, torch.zeros(0, 2, device=device)).shape == (0, 3)
    same = mixture_at(scene, torch.full((1000, 2), 8.0, device=device))
    assert torch.equal(same, same[:1].expand(1000, 3))
    assert not sum_at(scene, torch.tensor([[1e30, -1e30], [-1e9, 5.0]], device=device)).any()


@pytest.mark.parametrize("x, y", [(1e6, -3e5), (3e7, 1e7)])
def test_points_far_from_the_origin_see_what_is_there(device, x, y):
    scene = random_gaussians(300, 64, 64, scales=(4, 40), dtype=torch.float64).translated(x, y)
    points, scene = (scene.means[:200] + 7).float(), scene.to(torch.float32)
    expected = values_at_reference(scene.to(torch.float64), points.double())
    error = (sum_at(scene.to(device), points.to(device)).cpu().double() - expected).abs()
    assert (error > 1e-4).sum() <= 4 and (error < 0.01).all()  # some on the cut-off


@pytest.mark.parametrize("mean, cholesky", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_gaussians_stay_finite_at_points(device, mean, cholesky):
    scene = leaves(one_gaussian(mean, cholesky).to(device), torch.float32)
    points = pixel_centers(20, 20).reshape(-1, 2).to(device) * 2
    for values in (sum_at(scene, points), mixture_at(scene, points, top_k=3)):
        assert values.isfinite().all() and values.min() >= 0 and values.max() <= 1 + 1e-6
        grads = torch.autograd.grad(values.sin().sum(), fields(scene))
        assert all(grad.isfinite().all() for grad in grads)


def test_points_operator_is_well_formed(device):
    scene = fields(leaves(random_gaussians(9, 10, 13).to(device), torch.float32))
    operator = torch.ops.instantgi.rasterize_points.default
    for top_k in (SUM, 4):
        torch.library.opcheck(
            operator, (*scene, torch.rand(20, 2, device=device) * 10, top_k, 1e-4)
        )


def test_gradients_need_not_be_contiguous(device):
    scene = leaves(random_gaussians(50, 20, 30).to(device), torch.float32)
    points = pixel_centers(20, 30).reshape(-1, 2).to(device)
    image_weights = torch.rand(20, 30, 3, device=device).permute(2, 0, 1)
    drawn = rasterize_mixture(scene, 20, 30), mixture_at(scene, points).T.view(3, 20, 30)
    wanted, *grads = (
        torch.autograd.grad(picture, fields(scene), weights, retain_graph=True)
        for picture in drawn
        for weights in (image_weights.contiguous(), image_weights)
    )
    for grad in grads:
        for one, other in zip(grad, wanted, strict=True):
            assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def test_points_are_checked():
    scene = random_gaussians(3, 8, 8)
    for points, text in (
        (torch.zeros(4, 2).double(), r"points must be \[P, 2\] torch.float32 .* got .*float64"),
        (torch.tensor([[0.0, math.inf]]), "points has values that are not finite"),
    ):
        with pytest.raises(ValueError, match=text):
            sum_at(scene, points)


# What the published kernels draw


@pytest.mark.parametrize("num, height, width", [(0, 5, 7), (1, 16, 16), (60, 40, 70), (80, 33, 47)])
@pytest.mark.parametrize(
    "draw, define",
    [(published_sum, published_sum_reference), (published_mixture, published_mixture_reference)],
)
def test_published_pictures_match_their_definitions(draw, define, num, height, width):
    random = torch.Generator().manual_seed(num)
    means = torch.rand(num, 2, generator=random) * torch.tensor([float(width), height])
    # more than half of them indefinite, as random ones of LIG are
    covariances = torch.rand(num, 3, generator=random) * 6 - torch.tensor([0.0, 3.0, 0.0])
    determinants = covariances[:, 0] * covariances[:, 2] - covariances[:, 1] ** 2
    covariances[determinants.abs() < 0.3, 1] = 0  # nearly singular ones are lines in float32
    scene = [means, covariances, torch.rand(num, 3, generator=random)]
    made, reference = (
        [field.to(dtype).requires_grad_() for field in scene]
        for dtype in (torch.float32, torch.float64)
    )
    picture, expected = draw(*made, height, width), define(*reference, height, width)
    assert_close(picture.double(), expected, rtol=0, atol=1e-4)
    if num:
        weights = torch.rand(expected.shape, generator=random)
        grads = torch.autograd.grad(picture, made, weights)
        wanted = torch.autograd.grad(expected, reference, weights.double())
        for one, other in zip(grads, wanted, strict=True):
            # 0.99 instead of 0.999 in the gradient of colors, as published
            assert_close(one.double(), other, rtol=0.01, atol=0.01 * float(other.abs().max()))


def test_published_pictures_are_drawn_on_the_cpu_and_whole():
    scene = Gaussians(torch.zeros(1, 2), torch.tensor([[4.0, 0, 4]]), torch.ones(1, 3))
    means, shapes, colors = (field.to("meta") for field in fields(scene))
    for draw_published in (published_sum, published_mixture):
        with pytest.raises(ValueError, match="on the CPU only, not on meta: --device cpu"):
            draw_published(means, shapes, colors, 8, 8)
    level = Levels((Level(scene, 20, 20, is_published=True),))
    assert draw(level, 20, 20).shape == (3, 20, 20)
    for options in ({"origin": (16.0, 0.0)}, {"step": (0.5, 0.5)}):
        with pytest.raises(ValueError, match="is drawn whole and at its own size only"):
            draw(level, 20, 20, **options)


def test_published_values_of_the_method_sheets():
    color = torch.ones(1, 1)
    mean, four, one = torch.tensor([[8.0, 8.0]]), [[4.0, 0.0, 4.0]], [[1.0, 0.0, 1.0]]
    picture = published_sum(mean, torch.tensor(four), color, 16, 16)
    assert_close(picture[0, 7, 7], torch.tensor(0.939413), rtol=1e-5, atol=0)
    assert_close(picture[0, 8, 8], picture[0, 7, 7], rtol=0, atol=0)
    # radius 4 of a round Gaussian of 1 px: it reaches the tile to the left from x = 19, not from 20
    for x, is_there in ((19.0, True), (20.0, False)):
        moved = torch.tensor([[x, 8.0]])
        picture = published_mixture(moved, torch.tensor(one), color, 16, 32)
        assert bool(picture[0, 8, 15] > 0) == is_there
