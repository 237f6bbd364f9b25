import dataclasses
import gc
import math
import weakref
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scenes import random_gaussians
from torch.testing import assert_close

from instantgi.codec import decode, encode
from instantgi.fit import (
    LIG,
    METHODS,
    GaussianImage,
    ImageGS,
    LocalAdam,
    default_count,
    fit_image,
    heuristic_start,
    imagegs,
    solve_colors,
)
from instantgi.fit.adan import Adan
from instantgi.fit.imagegs import Grids, PublishedShape, draw_places, on_grid
from instantgi.fit.lig import cholesky_of, covariance_gradient, make_valid_, split_count
from instantgi.fit.loop import Progress
from instantgi.gaussians import Gaussians, cholesky_from_scales_rotations
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.points.gradient import gradient_map
from instantgi.render import rasterize, rasterize_reference
from instantgi.render.draw import draw
from instantgi.render.reference import weights_reference
from instantgi.representations import Levels, Mixture, flat

PICTURE = Path(__file__).parents[1] / "assets" / "kodim23.png"


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Smooth waves with one hard edge."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    planes = [0.5 + 0.3 * torch.sin(7 * x + 3 * k + 5 * y) for k in range(channels)]
    return torch.stack(planes) + 0.2 * (x > 0.4)


# The start


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (40, 1), (7, 5), (64, 96), (33, 200)])
@pytest.mark.parametrize("num", [2, 50, 3000])
def test_start_has_at_most_the_wanted_number_of_drawable_gaussians(height, width, num):
    gaussians = heuristic_start(picture(height, width), num)
    assert 1 <= len(gaussians) <= num
    assert (gaussians.cholesky[:, [0, 2]] > 0.1).all()
    assert rasterize(gaussians, height, width).isfinite().all()


def test_start_comes_close_to_the_wanted_number():
    for num in (500, 2000, 5000):
        assert 0.99 * num <= len(heuristic_start(picture(256, 256), num)) <= num


def test_start_of_a_constant_picture_covers_it_evenly():
    gaussians = heuristic_start(torch.full((3, 96, 96), 0.5), 1000)
    counts = torch.histogramdd(gaussians.means.double(), [4, 4], range=[0.0, 96.0, 0.0, 96.0]).hist
    assert counts.min() > 0.7 * counts.mean()


def test_start_puts_more_gaussians_where_the_picture_changes():
    image = torch.full((1, 96, 192), 0.5)
    image[:, :, 96:] += 0.2 * torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
    right = heuristic_start(image, 2000).means[:, 0] > 96
    assert right.double().mean() > 0.75


def test_gradient_map_is_positive_and_highest_at_the_edge():
    image = torch.zeros(1, 40, 60)
    image[:, :, 30:] = 1
    density = gradient_map(image)
    assert (density > 0).all()
    assert set(density.argmax(1).tolist()) <= {29, 30}


def test_start_refuses_fewer_than_two():
    with pytest.raises(ValueError, match="num_gaussians must be at least 2, got 1"):
        heuristic_start(picture(8, 8), 1)


@pytest.mark.parametrize("num", [10, 30, 100, 400])
def test_few_gaussians_are_about_as_many_as_asked_for(num):
    found = len(heuristic_start(picture(300, 400), num))
    assert 0.7 * num <= found <= num


def test_default_count_is_the_published_density():
    assert abs(default_count(512, 768) - 42_857) < 500
    assert default_count(1, 1) == 2


# Colors


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_solved_colors_are_the_least_squares_solution(channels):
    gaussians = random_gaussians(40, 24, 31, channels=channels, dtype=torch.float64)
    image = picture(24, 31, channels).double()
    solved = solve_colors(gaussians, image, iterations=300)
    matrix = weights_reference(gaussians, 24, 31).reshape(-1, 40)
    expected = torch.linalg.lstsq(matrix, image.reshape(channels, -1).T).solution
    # Compared as pictures: colors of Gaussians that overlap strongly are badly determined.
    torch.testing.assert_close(matrix @ solved.colors, matrix @ expected, rtol=0, atol=1e-6)


def test_every_color_iteration_lowers_the_error():
    image = picture(64, 96)
    start = heuristic_start(image, 800)
    errors = [
        float((rasterize(solve_colors(start, image, n), 64, 96) - image).square().sum())
        for n in (0, 1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_colors_outside_the_picture_stay_as_they_are():
    far = Gaussians(
        torch.tensor([[500.0, 500.0]]), torch.tensor([[1.0, 0.0, 1.0]]), torch.ones(1, 3)
    )
    assert torch.equal(solve_colors(far, picture(16, 16)).colors, far.colors)


def test_solve_colors_names_the_channels_that_differ():
    with pytest.raises(ValueError, match="the image has 1 channels, the Gaussians have 3"):
        solve_colors(random_gaussians(4, 8, 8), picture(8, 8, 1))


# The loop

ON_CPU = [method for method in METHODS if method != "3dgs"]  # which test_splatting is about


@pytest.mark.parametrize("method", ON_CPU)
def test_every_method_improves_on_its_start(method):
    image = picture(48, 64)
    seen: list[Progress] = []
    fit_image(
        image,
        method=method,
        num_gaussians=300,
        iterations=300,
        on_progress=seen.append,
        report_every=20,
    )
    # The published rate moves a scale by 0.001 px a step: slow, but up.
    assert seen[-1].psnr > seen[0].psnr + (6 if method == "instantgi" else 1)
    assert [p.iteration for p in seen] == list(range(20, 301, 20))


@pytest.mark.parametrize(
    "channels, height, width", [(1, 1, 1), (3, 1, 17), (4, 23, 2), (6, 20, 30)]
)
@pytest.mark.parametrize("method", ON_CPU)
def test_fit_works_for_any_size_and_channel_count(method, channels, height, width):
    image = picture(height, width, channels)
    made = fit_image(image, method=method, num_gaussians=60, iterations=12)
    assert draw(made, height, width).shape == image.shape
    gaussians = flat(made)
    assert all(
        field.isfinite().all() for field in (gaussians.means, gaussians.cholesky, gaussians.colors)
    )


@pytest.mark.parametrize("method", ON_CPU)
def test_same_seed_gives_the_same_bytes(method):
    image = picture(40, 56)
    first, second = (
        flat(fit_image(image, method=method, num_gaussians=200, iterations=40)) for _ in range(2)
    )
    for name in ("means", "cholesky", "colors"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_seed_changes_a_random_start():
    image = picture(16, 16)
    fits = [
        fit_image(image, method="gaussianimage", num_gaussians=20, iterations=1, seed=seed)
        for seed in (0, 1)
    ]
    assert not torch.equal(fits[0].means, fits[1].means)


def test_fit_continues_from_given_gaussians():
    image = picture(48, 64)
    rough = solve_colors(heuristic_start(image, 300), image)
    for method in ("instantgi", "gaussianimage", "gaussianimage-rs"):
        finer = fit_image(image, rough, method=method, iterations=0)
        torch.testing.assert_close(
            rasterize(finer, 48, 64), rasterize(rough, 48, 64), rtol=0, atol=2e-4
        )
    for method in ("lig", "imagegs", "imagegs-paper"):  # from what they make themselves
        made = fit_image(image, method=method, num_gaussians=300, iterations=30)
        again = fit_image(image, made, method=method, iterations=0)
        torch.testing.assert_close(draw(again, 48, 64), draw(made, 48, 64), rtol=0, atol=2e-4)
    finer = fit_image(image, rough, iterations=200)
    assert psnr(rasterize(finer, 48, 64), image) > psnr(rasterize(rough, 48, 64), image)


def test_fit_leaves_the_given_gaussians_alone():
    image = picture(24, 24)
    init = heuristic_start(image, 60)
    before = init.map(torch.clone)
    fit_image(image, init, iterations=10)
    assert torch.equal(init.means, before.means) and torch.equal(init.cholesky, before.cholesky)


def test_fit_stops_at_the_psnr_asked_for():
    seen: list[Progress] = []
    fit_image(picture(48, 64), num_gaussians=400, iterations=2000, psnr=30, on_progress=seen.append)
    assert seen[-1].psnr >= 30 and seen[-1].iteration < 2000
    fitted = rasterize(seen[-1].fitter.gaussians(), 48, 64)
    assert (fitted - picture(48, 64)).square().mean() <= 10**-3


def test_a_psnr_out_of_reach_does_not_fit_for_ever():
    seen: list[Progress] = []
    fit_image(picture(16, 16), num_gaussians=4, psnr=90, on_progress=seen.append)
    assert seen[-1].iteration == 300


def test_fit_stops_on_a_plateau():
    seen: list[Progress] = []
    flat = torch.full((3, 20, 20), 0.5)
    fit_image(flat, num_gaussians=2, iterations=5000, patience=50, on_progress=seen.append)
    assert seen[-1].iteration < 5000


def test_fit_stops_after_the_seconds_given():
    seen: list[Progress] = []
    fit_image(picture(64, 64), seconds=0.3, on_progress=seen.append, report_every=1)
    assert 0.2 < seen[-1].seconds < 3


@pytest.mark.parametrize("method", ON_CPU)
def test_what_a_fit_held_is_freed_with_its_last_name(method):
    fitter = METHODS[method]()
    fit_image(picture(16, 16), method=fitter, num_gaussians=20, iterations=3)
    alive = weakref.ref(fitter)
    gc.disable()  # gigabytes must not wait for it
    try:
        del fitter
        assert alive() is None
    finally:
        gc.enable()


def test_time_in_callbacks_does_not_count():
    import time

    seen: list[Progress] = []

    def slow(progress: Progress) -> None:
        seen.append(progress)
        time.sleep(0.2)

    fit_image(picture(16, 16), iterations=20, report_every=5, on_progress=slow)
    assert seen[-1].seconds < 0.5


def test_long_fits_keep_what_they_reached(one_thread):
    image = read_image(PICTURE)[:, 200:212, 300:316]
    levels = []
    for iterations in (1000, 15_000):
        made = fit_image(image, num_gaussians=16, iterations=iterations)
        levels.append(psnr(rasterize(made, 12, 16), image))
    assert levels[0] > 40 and levels[1] > levels[0] - 0.5


def test_long_fits_stay_finite():
    # Momentum that outlives a vanished gradient once sent invisible Gaussians to infinity.
    image = picture(24, 24)
    gaussians = fit_image(image, num_gaussians=150, iterations=3000)
    assert gaussians.means.abs().max() < 1e6 and gaussians.colors.abs().max() < 1e3


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"method": "splat"}, 'method must be one of instantgi, gaussianimage, .* got "splat"'),
        ({"iterations": -1}, "iterations must be a number of at least 0, got -1"),
        ({"seconds": math.nan}, "seconds must be a number of at least 0, got nan"),
        ({"num_gaussians": 1}, "num_gaussians must be at least 2, got 1"),
        ({"num_gaussians": 0}, "num_gaussians must be 1 to 67108864, got 0"),
    ],
)
def test_fit_names_the_argument_that_is_wrong(arguments, text):
    with pytest.raises(ValueError, match=text):
        fit_image(picture(8, 8), **arguments)


def test_fit_refuses_pictures_that_are_not_finite():
    with pytest.raises(ValueError, match="image has values that are not finite"):
        fit_image(picture(8, 8) * float("nan"))
    with pytest.raises(ValueError, match="init has 3 channels, the image has 1"):
        fit_image(picture(8, 8, 1), random_gaussians(4, 8, 8))


# Steps against their definitions


def test_adan_step_follows_its_equations():
    random = torch.Generator().manual_seed(0)
    parameter = torch.randn(7, 3, generator=random)
    x, m, v, n, before = parameter.double(), 0.0, 0.0, 0.0, None
    parameter.requires_grad_()
    optimizer = Adan([parameter], lr=0.01)
    b1, b2, b3 = 0.98, 0.92, 0.99
    for t in range(1, 6):
        gradient = torch.randn(7, 3, generator=random)
        g = gradient.double()
        change = torch.zeros_like(g) if before is None else g - before
        m, v, n = (
            b1 * m + (1 - b1) * g,
            b2 * v + (1 - b2) * change,
            b3 * n + (1 - b3) * (g + b2 * change) ** 2,
        )
        x = x - 0.01 * (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / ((n / (1 - b3**t)).sqrt() + 1e-8)
        before = g
        parameter.grad = gradient
        optimizer.step()
    # five float32 steps of 0.01: some 2**-24 of values near 1
    torch.testing.assert_close(parameter.detach().double(), x, rtol=0, atol=2e-6)


def test_adan_refuses_what_its_kernel_cannot_hold():
    for parameter in (torch.zeros(3, dtype=torch.float64), torch.zeros(4, 3).T):
        parameter.requires_grad_()
        parameter.grad = torch.ones_like(parameter)
        with pytest.raises(ValueError, match="Adan works on"):
            Adan([parameter]).step()


def test_adans_first_step_has_the_length_of_the_rate():
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.tensor([1e-3, -5.0, 100.0])
    Adan([parameter], lr=1e-3).step()
    torch.testing.assert_close(
        parameter.detach(), torch.tensor([-1e-3, 1e-3, -1e-3]), rtol=1e-4, atol=0
    )


def test_local_step_moves_a_single_gaussian_downhill():
    target = Gaussians(
        torch.tensor([[10.7, 9.2]]), torch.tensor([[2.5, 0.6, 1.8]]), torch.ones(1, 3)
    )
    image = rasterize_reference(target, 20, 22)
    init = Gaussians(
        torch.tensor([[10.0, 10.0]]), torch.tensor([[2.0, 0.0, 2.0]]), 0.8 * torch.ones(1, 3)
    )
    fitted = fit_image(image, init, method=LocalAdam(relocations=()), iterations=200)
    torch.testing.assert_close(fitted.means, target.means, rtol=0, atol=0.01)
    torch.testing.assert_close(fitted.covariances, target.covariances, rtol=0.02, atol=0.02)
    torch.testing.assert_close(fitted.colors, target.colors, rtol=0, atol=0.01)


def test_fit_does_not_depend_on_the_size_of_the_gaussians():
    # In local frames a scene twice as large takes the same steps.
    small = random_gaussians(1, 20, 20, scales=(2, 3), seed=3)
    moved = small.translated(0.4, -0.3)
    errors = []
    for factor in (1, 2):
        image = rasterize(moved.scaled(factor, factor), 20 * factor, 20 * factor)
        init = small.scaled(factor, factor)
        method = LocalAdam(relocations=())
        fitted = fit_image(image, init, method=method, iterations=15)
        errors.append((fitted.means / factor - moved.means).norm())
    # equal but for the sampling of the picture
    torch.testing.assert_close(errors[0], errors[1], rtol=0.3, atol=0.02)


def test_gaussianimage_starts_as_published():
    fitter = GaussianImage("rs")
    fitter.start(picture(64, 96), None, 20_000, seed=0)
    gaussians = fitter.gaussians()
    scales, _ = gaussians.scales_rotations
    assert 0.5 <= scales.min() and scales.max() <= 1.5
    assert abs(float(gaussians.colors.mean()) - 0.5) < 0.01
    assert (gaussians.means >= 0).all() and (gaussians.means <= torch.tensor([96, 64])).all()
    assert abs(float(gaussians.means[:, 0].mean()) - 48) < 1
    fitter = GaussianImage("cholesky")
    fitter.start(picture(64, 96), None, 20_000, seed=0)
    low, high = fitter.gaussians().cholesky.aminmax(dim=0)
    torch.testing.assert_close(low, torch.tensor([0.5, 0.0, 0.5]), rtol=0, atol=1e-3)
    torch.testing.assert_close(high, torch.tensor([1.5, 1.0, 1.5]), rtol=0, atol=1e-3)


def activated(raw, height, width, shape):
    """What `GaussianImage` says of its parameters, in torch."""
    means = (raw[:2].tanh() + 1).T * raw.new_tensor([width, height]) / 2
    if shape == "cholesky":
        return torch.cat([means, raw[2:].T + raw.new_tensor([0.5, 0.0, 0.5])], 1)
    scales, angles = (raw[2:4].T + 0.5).abs(), 2 * torch.pi * raw[4].sigmoid()
    return torch.cat([means, cholesky_from_scales_rotations(scales, angles)], 1)


@pytest.mark.parametrize("shape", ["rs", "cholesky"])
@pytest.mark.parametrize("num", [0, 1, 16, 5003])
def test_gaussianimage_parameters_match_autograd(shape, num):
    random = torch.Generator().manual_seed(num)
    rounded, gradient = (
        torch.randn(5, num, generator=random) * 1.5,
        torch.randn(num, 5, generator=random),
    )
    raw = rounded.double().requires_grad_()
    expected = activated(raw, 37, 91, shape)
    (expected_gradient,) = torch.autograd.grad(expected, raw, gradient.double())
    actual = torch.ops.instantgi.gaussianimage(rounded, 37, 91, shape == "rs")
    # a few roundings of numbers up to 91, the width
    torch.testing.assert_close(torch.cat(actual, 1).double(), expected, rtol=1e-5, atol=2e-5)
    actual_gradient = torch.ops.instantgi.gaussianimage_backward(
        rounded, gradient, 37, 91, shape == "rs"
    )
    # the sine and cosine are right to 1e-7, and thin Gaussians multiply that by their aspect
    torch.testing.assert_close(actual_gradient.double(), expected_gradient, rtol=3e-4, atol=1e-4)


def test_gaussianimage_step_is_adan_on_the_mean_squared_error():
    image = picture(20, 28)
    fitter = GaussianImage("rs")
    fitter.start(image, None, 50, seed=3)
    raw = fitter.geometry.clone().requires_grad_()
    colors = fitter.colors.clone().requires_grad_()
    means, cholesky = activated(raw, 20, 28, "rs").split([2, 3], 1)
    error = (rasterize(Gaussians(means, cholesky, colors), 20, 28).clamp(0, 1) - image).square()
    error.mean().backward()
    squares = fitter.step(0.0)
    assert colors.grad is not None
    torch.testing.assert_close(float(squares), float(error.detach().sum()), rtol=1e-5, atol=0)
    last_gradients = [moments[3] for moments in fitter.moments]
    torch.testing.assert_close(last_gradients[0], raw.grad, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(last_gradients[1], colors.grad, rtol=1e-3, atol=1e-8)
    expected = colors.detach() - 1e-3 * colors.grad / (colors.grad.abs() + 1e-8)
    torch.testing.assert_close(fitter.colors, expected, rtol=0, atol=1e-6)


def test_gaussianimage_halves_its_rate():
    fitter = GaussianImage(rate=1e-3, halve_every=3)
    fitter.start(picture(8, 8), None, 5, seed=0)
    rates = []
    for _ in range(7):
        fitter.step(0.0)
        rates.append(float(fitter.schedule.now[0]))
    assert rates == pytest.approx([1e-3] * 3 + [5e-4] * 3 + [2.5e-4])


def test_relocation_moves_idle_gaussians_to_the_error():
    image = torch.zeros(1, 40, 60)
    image[0, 8, 50] = 1.0  # nothing but one bright pixel
    idle = Gaussians(
        torch.tensor([[20.0, 20.0], [30.0, 30.0]]).repeat(10, 1),
        torch.tensor([[1.0, 0.0, 1.0]]).repeat(20, 1),
        torch.zeros(20, 1),
    )
    method = LocalAdam(relocations=(0.1,), relocated=0.05, rate=1e-6)
    fitted = fit_image(image, idle, method=method, iterations=60)
    distances = (fitted.means - torch.tensor([50.5, 8.5])).norm(dim=1)
    assert int((distances < 0.01).sum()) == 1


# LIG


@pytest.mark.parametrize(
    "num, levels, expected",
    [(500_000, 2, [62_500, 437_500]), (1000, 1, [1000]), (6400, 3, [200, 800, 5400])],
)
def test_lig_splits_gaussians_over_levels_as_published(num, levels, expected):
    assert split_count(num, levels) == expected


def test_lig_fits_level_by_level():
    image = picture(44, 70)
    made = fit_image(image, method=LIG(3), num_gaussians=2000, iterations=90)
    assert [(level.height, level.width) for level in made.levels] == [(11, 17), (22, 35), (44, 70)]
    assert (made.levels[0].low, made.levels[0].high) == (0, 1)
    assert made.levels[1].low < 0 < made.levels[1].high
    # the residual of what the levels before draw, by its extremes
    below = draw(Levels(made.levels[:2]), 22, 35)
    enlarged = torch.nn.functional.interpolate(below[None], (44, 70), mode="bilinear")[0]
    residual = image - enlarged
    low, high = made.levels[2].low, made.levels[2].high
    torch.testing.assert_close(torch.tensor([low, high]), torch.stack(residual.aminmax()))


def test_lig_starts_as_published():
    fitter = LIG(1, paper=True)
    fitter.start(picture(40, 60), None, 20_000, seed=0)
    level = fitter.gaussians().levels[0]
    xx, xy, yy = level.gaussians.cholesky.unbind(1)
    indefinite = (xx * yy < xy * xy).double().mean()
    assert abs(float(indefinite) - 5 / 9) < 0.01
    assert not level.gaussians.colors.any()
    assert level.gaussians.means.min() >= 0 and level.gaussians.means[:, 0].max() > 59


def test_lig_keeps_every_gaussian_valid():
    fitter = LIG(1)
    fitter.start(picture(40, 60), None, 2000, seed=0)
    for _ in range(50):
        fitter.step(0.0)
        scales, _ = fitter.gaussians().levels[0].gaussians.scales_rotations
        # a variance of 0.1 px², less the rounding of large ones
        assert scales.min() > 0.1**0.5 - 1e-3


def test_matrices_become_the_closest_valid_ones():
    random = torch.Generator().manual_seed(0)
    covariances = torch.randn(500, 3, generator=random, dtype=torch.float64) * 3
    fixed = covariances.clone()
    make_valid_(fixed, 0.1)

    def matrices(entries):
        return entries[:, [0, 1, 1, 2]].view(-1, 2, 2)

    values, vectors = torch.linalg.eigh(matrices(covariances))
    expected = vectors @ torch.diag_embed(values.clamp_min(0.1)) @ vectors.mT
    torch.testing.assert_close(matrices(fixed), expected)


def test_gradient_of_covariances_is_that_of_their_factors():
    random = torch.Generator().manual_seed(0)
    factors = torch.rand(20, 3, generator=random, dtype=torch.float64) + 0.5
    l11, l21, l22 = factors.unbind(1)
    covariances = torch.stack([l11 * l11, l11 * l21, l21 * l21 + l22 * l22], 1).requires_grad_()
    weights = torch.randn(20, 3, generator=random, dtype=torch.float64)
    (expected,) = torch.autograd.grad(cholesky_of(covariances), covariances, weights)
    torch.testing.assert_close(covariance_gradient(factors, weights), expected)


# Image-GS


def test_imagegs_grows_as_published():
    fitter = ImageGS()
    fitter.start(picture(30, 40), None, 10_000, seed=0)
    assert fitter.stages == [5000] and fitter.waiting == [1250] * 4
    made = fit_image(picture(48, 64), method=ImageGS(), num_gaussians=403, iterations=60)
    assert made.stages == (202, 253, 304, 355, 403)


def test_imagegs_starts_where_the_picture_changes():
    image = torch.full((3, 60, 90), 0.5)
    image[:, :, 45:] = 0.9
    fitter = ImageGS()
    fitter.start(image, None, 400, seed=0)
    gaussians = fitter.gaussians().gaussians
    near = (gaussians.means[:, 0] - 45).abs() <= 1
    assert abs(float(near.double().mean()) - 0.7) < 0.1
    torch.testing.assert_close(gaussians.scales_rotations[0], torch.full((200, 2), 5.0))
    rows, cols = (gaussians.means - 0.5).round().long().flip(1).unbind(1)
    torch.testing.assert_close(gaussians.colors, image[:, rows, cols].T)


def test_places_are_drawn_once_while_there_are_others():
    random = torch.Generator().manual_seed(0)
    density = torch.zeros(8, 8)
    density[2, 3] = density[5, 5] = 1
    assert set(draw_places(density, 2, random).tolist()) == {2 * 8 + 3, 5 * 8 + 5}
    everywhere = draw_places(density, 150, random).bincount(minlength=64)
    assert everywhere.min() == 2 and everywhere.max() == 3
    density = torch.tensor([[1.0, 3.0]])
    first = sum(int(draw_places(density, 1, random)) for _ in range(2000))
    assert abs(first / 2000 - 0.75) < 0.04


def test_parameters_on_a_grid_have_so_many_values():
    value = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    held = on_grid(value, 4)
    assert len(held.detach().mul(1e4).round().unique()) <= 16
    torch.testing.assert_close(held.detach().aminmax(), value.detach().aminmax())
    held.sum().backward()
    assert value.grad is not None and torch.equal(value.grad, torch.ones(5000, 2))
    assert Grids(12, 12, 12, 12).bytes_of(1000, 3) == 1000 * 8 * 12 // 8 + 32
    with pytest.raises(ValueError, match="colors must have from 4 to 32 bits, got 2"):
        Grids(colors=2)


@pytest.mark.parametrize(
    "options",
    [{"samples": 400}, {"grids": Grids(10, 10, 10, 10)}, {"prefixes": 0.5}, {"top_k": 3}],
)
def test_variants_of_imagegs_improve(options):
    image, seen = picture(48, 64), []
    method = ImageGS(**options)
    made = fit_image(
        image, method=method, num_gaussians=200, iterations=150, on_progress=seen.append
    )
    assert psnr(draw(made, 48, 64), image) > 25
    assert seen[-1].psnr > seen[0].psnr + 5


def test_prefixes_stay_good_pictures():
    image, levels = picture(48, 64), []
    for prefixes in (0.0, 0.5):
        method = ImageGS(prefixes=prefixes)
        made = fit_image(image, method=method, num_gaussians=300, iterations=300)
        levels.append(psnr(draw(made.stage(0), 48, 64), image))
    assert levels[1] > levels[0] + 3


def test_the_gradient_of_published_shapes_is_wrong_as_published():
    scales = torch.rand(9, 2, dtype=torch.float64) + 0.5
    weights = torch.randn(9, 3, dtype=torch.float64)
    results = []
    for rotations in (torch.zeros(9, dtype=torch.float64), torch.rand(9, dtype=torch.float64)):
        inputs = [scales.clone().requires_grad_(), rotations.requires_grad_()]
        (s1, s2), (cos, sin) = inputs[0].unbind(1), (inputs[1].cos(), inputs[1].sin())
        right = torch.stack(
            [
                cos**2 * s1**2 + sin**2 * s2**2,
                sin * cos * (s2**2 - s1**2),
                sin**2 * s1**2 + cos**2 * s2**2,
            ],
            1,
        )
        made = PublishedShape.apply(*inputs)
        torch.testing.assert_close(made, right)
        results.append([torch.autograd.grad(each, inputs, weights) for each in (made, right)])
    (wrong, right), (turned_wrong, turned_right) = results
    torch.testing.assert_close(wrong[0], right[0])  # without rotation scales are right
    torch.testing.assert_close(wrong[1], 4 * right[1])  # and rotations four times too large
    assert not torch.allclose(turned_wrong[0], turned_right[0], rtol=0.1)


# Going on


def test_lig_is_whole_at_every_step_and_goes_on_from_there():
    image = picture(44, 70)
    fitter = LIG(2)
    fitter.start(image, None, 800, seed=0)
    fitter.step(0.1)
    early = fitter.gaussians()
    assert [len(level.gaussians) for level in early.levels] == [100, 0]
    assert draw(early, 44, 70).shape == image.shape
    made = fit_image(image, early, method=LIG(2), iterations=40)
    assert [len(level.gaussians) for level in made.levels] == [100, 700]
    fitter.step(1.0)
    fitter.step(1.0)  # the last level has no end
    assert len(fitter.gaussians()) == 800
    again = fit_image(image, made.to(torch.float64), method=LIG(2), iterations=1)
    assert len(again) == 800


def test_imagegs_goes_on_growing_where_it_was():
    image, seen = picture(48, 64), []
    fit_image(
        image,
        method="imagegs",
        num_gaussians=400,
        iterations=100,
        report_every=15,
        on_progress=lambda progress: seen.append(progress.fitter.gaussians()),
    )
    early = seen[0]
    assert early.stages == (200, 250)
    made = fit_image(image, early, method=ImageGS(), num_gaussians=400, iterations=100)
    assert made.stages == (200, 250, 300, 350, 400)
    assert fit_image(image, early, method=ImageGS(), iterations=100).stages == (200, 250)


def test_imagegs_grows_by_what_is_missing():
    image = picture(48, 64)
    made = fit_image(image, method=ImageGS(top_k=3), num_gaussians=400, iterations=20)
    again = fit_image(image, made, method=ImageGS(), num_gaussians=800, iterations=20)
    assert again.stages[-1] == 800 and again.stages[:-1] == made.stages
    assert again.top_k == 3
    begun = dataclasses.replace(made, gaussians=made.gaussians[:250], stages=(200, 250))
    grown = fit_image(image, begun, method=ImageGS(top_k=5), num_gaussians=1000, iterations=60)
    assert grown.stages == (200, 250, 500, 750, 1000) and grown.top_k == 5
    many = Mixture(random_gaussians(40, 48, 64), stages=tuple(range(20, 41)))
    grown = fit_image(image, many, method=ImageGS(), num_gaussians=80, iterations=20)
    assert grown.stages == (*range(20, 41), 80)


@pytest.mark.parametrize("method, counts", [("lig", [50, 350]), ("imagegs", [200, 50, 50, 50, 50])])
def test_patience_goes_on_to_the_next_stage(method, counts):
    image, seen = picture(32, 40), []
    options = {"num_gaussians": 400, "patience": 6, "on_progress": seen.append}
    made = fit_image(image, method=method, **options)
    if isinstance(made, Levels):
        assert [len(level.gaussians) for level in made.levels] == counts
    else:
        assert isinstance(made, Mixture)
        assert list(made.stages) == [sum(counts[: k + 1]) for k in range(5)]
    assert seen[-1].psnr > 15


def test_samples_are_drawn_mostly_evenly():
    """The paper's λ, 0.8, is the share that is even."""
    image = torch.full((3, 10, 100), 0.5)
    image[:, :, 50:] = 0.9
    fitter = ImageGS(samples=10)
    fitter.start(image, None, 20, seed=0)
    columns = fitter.sampling.view(10, 100).sum(0)
    assert_close(columns[[49, 50]].sum(), torch.tensor(0.2 + 0.8 * 2 / 100, dtype=torch.float64))


@pytest.mark.parametrize("samples", [None, 60])
def test_rates_of_imagegs_fall_on_a_plateau(samples, monkeypatch):
    monkeypatch.setattr(imagegs, "CHECK_EVERY", 3)
    monkeypatch.setattr(imagegs, "PATIENCE", 9)
    image = torch.full((3, 12, 12), 0.5)
    fitter = ImageGS(samples=samples, rates=(0.0, 0.0, 0.0, 0.0))
    fitter.start(image, None, 1, seed=0)
    for _ in range(15):
        fitter.step(1.0)
    assert fitter.is_slow
    fitter = ImageGS(prefixes=0.99)
    fitter.start(image, None, 40, seed=0)
    for progress in torch.linspace(0, 1, 60):
        fitter.step(float(progress))
    assert fitter.looked_at == 0 or fitter.best[0] > 0  # only whole mixtures are looked at


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: ImageGS(samples=0), "samples must be a whole number of at least 1, got 0"),
        (lambda: ImageGS(samples=cast(Any, 2.5)), "a whole number of at least 1, got 2.5"),
        (lambda: LIG(cast(Any, True)), "levels must be a whole number from 1 to 8, got True"),
        (lambda: ImageGS(uniform=2), "uniform must be from 0 to 1, got 2"),
        (lambda: ImageGS(prefixes=1), "prefixes must be from 0 to below 1, got 1"),
        (lambda: ImageGS(top_k=0), "top_k must be from 1 to 32, got 0"),
        (lambda: LIG(cast(Any, math.pi)), "levels must be a whole number from 1 to 8, got 3.14"),
        (lambda: LIG(first_share=0), "first_share must be above 0 and at most 1, got 0"),
    ],
)
def test_wrong_choices_of_a_method_are_named(make, text, without_shape_checks):
    with pytest.raises(ValueError, match=text):
        make()


def test_levels_share_as_the_code_or_as_the_text_has_it():
    assert split_count(900_000, 2) == [112_500, 787_500]  # an eighth
    assert split_count(900_000, 2, 4 / 9) == [100_000, 800_000]  # a ninth
    fitter = LIG(first_share=4 / 9)
    fitter.start(picture(30, 40), None, 900, seed=0)
    assert fitter.counts == [100, 800]


def test_levels_that_are_fitted_on_begin_as_they_were():
    image = picture(44, 70)
    made = fit_image(image, method="lig", num_gaussians=500, iterations=60)
    rounded = decode(encode(made, 44, 70, profile="fast"))
    again = fit_image(image, rounded, method="lig", iterations=0)
    assert_close(draw(again, 44, 70), draw(rounded, 44, 70), rtol=0, atol=1e-4)


def test_imagegs_starts_from_a_sum_with_colors_of_the_picture():
    image = picture(32, 40)
    init = random_gaussians(60, 32, 40)  # some lie a little outside
    made = fit_image(image, init, method=ImageGS(), iterations=0).gaussians
    columns, rows = made.means.floor().long().unbind(1)
    expected = image[:, rows.clamp(0, 31), columns.clamp(0, 39)].T
    torch.testing.assert_close(made.covariances, init.covariances, rtol=1e-4, atol=1e-5)
    assert (made.colors == expected).all(1).double().mean() > 0.98  # positions are rounded


@pytest.mark.parametrize("method", ["instantgi", "gaussianimage"])
def test_sums_do_not_start_from_what_is_drawn_otherwise(method):
    image = picture(24, 24)
    for other, kind in (("lig", "levels"), ("imagegs", "a mixture")):
        made = fit_image(image, method=other, num_gaussians=50, iterations=2)
        with pytest.raises(ValueError, match=f"{method} starts from .* their sum, not from {kind}"):
            fit_image(image, made, method=method)
    with pytest.raises(ValueError, match="init is of 24x24 pixels, the image of 30x20"):
        fit_image(picture(20, 30), method="lig", init=fit_image(image, method="lig", iterations=2))


def test_samples_of_a_flat_picture_are_spread_evenly():
    flat_picture = torch.full((3, 20, 20), 0.5)
    made = fit_image(flat_picture, method=ImageGS(samples=50), num_gaussians=20, iterations=5)
    assert flat(made).means.isfinite().all()


def test_fit_takes_a_picture_that_has_a_gradient():
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    one, other = (
        fit_image(each, num_gaussians=10, iterations=2)
        for each in (image, image.clone().requires_grad_())
    )
    assert torch.equal(one.means, other.means) and not other.means.requires_grad
    again = fit_image(image, one, num_gaussians=len(one), iterations=1)  # no other number
    assert len(again) == len(one)
