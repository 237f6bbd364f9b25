import math

import pytest
import torch
from scenes import random_gaussians
from torch.testing import assert_close

from instantgi.gaussians import Gaussians
from instantgi.losses import (
    decibel_loss,
    focal_map_loss,
    geometry_distance,
    relative_map_loss,
    scale_penalty,
    weighted_picture_loss,
)
from instantgi.similarity import ssim_map


def test_focal_map_loss_follows_its_equation():
    said, target = torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.4, 0.1, 0.5])
    terms = [(1 - math.exp(-d)) ** 2 * d * d for d in (0.3, 0.8, 0.0)]
    assert_close(focal_map_loss(said, target), torch.tensor(sum(terms) / 3))


def test_relative_map_loss_counts_factors():
    said, target = torch.tensor([0.08, 0.98]), torch.tensor([0.03, 0.48])
    assert_close(relative_map_loss(said, target), torch.tensor(math.log(2) ** 2))


def test_picture_loss_weighs_pixels_by_the_map():
    image = torch.rand(3, 16, 16)
    assert float(weighted_picture_loss(image, image, torch.rand(16, 16))) == pytest.approx(
        0, abs=1e-6
    )
    # weights 10 for maps of 0 (1 / 0.01 cut), 1 for maps of 1
    off = image + 0.1
    sparse = weighted_picture_loss(off, image, torch.zeros(16, 16))
    dense = weighted_picture_loss(off, image, torch.ones(16, 16))
    assert_close(sparse, 10 * dense, rtol=1e-4, atol=0)
    squares = 0.7 * 0.01 + 0.3 * float((1 - ssim_map(off, image)).mean())
    assert float(dense) == pytest.approx(squares, rel=1e-4)


def test_the_map_gets_no_gradient_from_the_picture():
    position_map = torch.rand(16, 16, requires_grad=True)
    drawn = torch.rand(3, 16, 16, requires_grad=True)
    weighted_picture_loss(drawn, torch.rand(3, 16, 16), position_map).backward()
    assert position_map.grad is None and drawn.grad is not None


def test_scales_below_half_a_pixel_are_penalised():
    scales = torch.tensor([[0.1, 3.0], [0.5, 0.6]])
    assert_close(scale_penalty(scales), torch.tensor(10 * 0.4 / 4))


def test_geometry_distance_is_measured_in_the_target():
    target = random_gaussians(40, 30, 30)
    assert float(geometry_distance(target.means, target.cholesky, target)) == pytest.approx(
        0, abs=1e-6
    )
    # a shift by L u costs |u|² whatever the size and direction
    l11, l21, l22 = target.cholesky.unbind(1)
    shift = torch.stack([l11 * 0.3, l21 * 0.3 - l22 * 0.4], 1)
    moved = geometry_distance(target.means + shift, target.cholesky, target)
    energy = target.colors.square().sum(1) * (l11 * l22).abs()
    mean_weight = (energy / energy.mean()).clamp(max=5).mean()
    assert_close(moved, 0.25 * mean_weight, rtol=1e-3, atol=1e-5)
    far = geometry_distance(target.means + 1e4, target.cholesky, target)
    assert_close(far, 4 * mean_weight, rtol=1e-3, atol=1e-5)


def test_geometry_distance_pulls_towards_the_target():
    target = random_gaussians(20, 30, 30)
    means = (target.means + 0.2).requires_grad_()
    cholesky = (target.cholesky * 1.1).requires_grad_()
    optimizer = torch.optim.Adam([means, cholesky], lr=0.02)
    first = geometry_distance(means, cholesky, target)
    for _ in range(60):
        optimizer.zero_grad()
        geometry_distance(means, cholesky, target).backward()
        optimizer.step()
    last = geometry_distance(means, cholesky, target)
    assert float(last.detach()) < 0.02 * float(first.detach())


def test_black_targets_have_a_finite_distance():
    black = Gaussians(torch.rand(3, 2), torch.tensor([[1.0, 0.0, 1.0]] * 3), torch.zeros(3, 3))
    assert geometry_distance(black.means + 1, black.cholesky, black).isfinite()


def test_decibel_loss_is_minus_psnr():
    assert float(decibel_loss(torch.tensor(1e-4))) == pytest.approx(-40, abs=1e-3)
    assert decibel_loss(torch.tensor(0.0)).isfinite()
