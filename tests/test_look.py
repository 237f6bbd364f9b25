import math

import pytest
import torch
from scenes import random_gaussians
from torch.testing import assert_close

from instantgi.fit import solve_colors
from instantgi.gaussians import Gaussians
from instantgi.metrics import psnr
from instantgi.models import look as module
from instantgi.models.look import MEMORY, Look, look_target
from instantgi.render import rasterize

HEIGHT, WIDTH, NUM = 40, 56, 150


def scene(channels: int = 3) -> tuple[torch.Tensor, Gaussians]:
    """A picture, and Gaussians near those it is made of."""
    true = random_gaussians(NUM, HEIGHT, WIDTH, channels=channels).to(torch.float32)
    image = rasterize(true, HEIGHT, WIDTH)
    random = torch.Generator().manual_seed(1)
    means = true.means + 0.3 * torch.randn(NUM, 2, generator=random)
    return image, Gaussians(means, true.cholesky * 1.1, true.colors * 0.9)


def neighbors() -> torch.Tensor:
    return torch.randint(0, NUM, (NUM, 3), generator=torch.Generator().manual_seed(2))


def look_at(look: torch.nn.Module, gaussians: Gaussians, image: torch.Tensor) -> Gaussians:
    memory = torch.randn(NUM, MEMORY, generator=torch.Generator().manual_seed(3))
    return look(gaussians, memory, neighbors(), look_target(image), HEIGHT, WIDTH)


def strong() -> Look:
    torch.manual_seed(0)
    look = Look(16)
    torch.nn.init.normal_(look.out.weight, std=0.3)
    return look


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_untrained_look_follows_the_gradient(channels):
    image, gaussians = scene(channels)
    with torch.no_grad():
        after = look_at(Look(), gaussians, image)
    drawn = [rasterize(g, HEIGHT, WIDTH) for g in (gaussians, after)]
    errors = [float((picture - image).square().mean()) for picture in drawn]
    assert errors[1] < 0.8 * errors[0]


def test_a_picture_without_error_moves_nothing_along_the_gradient():
    _, gaussians = scene()
    look = Look()
    torch.nn.init.zeros_(look.out.weight)
    with torch.no_grad():
        after = look_at(look, gaussians, rasterize(gaussians, HEIGHT, WIDTH))
    for a, b in ((after.means, gaussians.means), (after.colors, gaussians.colors)):
        assert_close(a, b, rtol=0, atol=1e-4)


def test_any_share_of_the_color_gradient_lowers_the_error():
    image, gaussians = scene()
    for said in (-3.0, 0.0, 5.0):
        look = Look()
        torch.nn.init.zeros_(look.out.weight)
        torch.nn.init.zeros_(look.out.bias)
        torch.nn.init.constant_(look.out.bias[10:], said)
        errors, after = [], gaussians
        for _ in range(4):
            with torch.no_grad():
                after = look_at(look, after, image)
            errors.append(float((rasterize(after, HEIGHT, WIDTH) - image).square().mean()))
        assert errors == sorted(errors, reverse=True), said


def test_moves_are_bounded():
    image, gaussians = scene()
    look = strong()
    torch.nn.init.normal_(look.out.weight, std=1e3)
    with torch.no_grad():
        after = look_at(look, gaussians, 1e6 * image)
    l11, l21, l22 = gaussians.cholesky.unbind(1)
    shift = after.means - gaussians.means
    assert (shift[:, 0].abs() <= l11 * 1.001).all()
    assert (shift[:, 1].abs() <= (l21.abs() + l22) * 1.001).all()
    ratio = after.cholesky[:, [0, 2]] / gaussians.cholesky[:, [0, 2]]
    assert (ratio.log().abs() <= 0.601).all()


def test_gradients_reach_the_look_and_the_memory():
    image, gaussians = scene()
    memory = torch.randn(NUM, MEMORY, requires_grad=True)
    look = strong()
    after = look(gaussians, memory, neighbors(), look_target(image), HEIGHT, WIDTH)
    rasterize(after, HEIGHT, WIDTH).square().mean().backward()
    for parameter in (*look.parameters(), memory):
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        assert float(parameter.grad.abs().max()) > 0


@pytest.mark.parametrize("kept", [0, 100])
def test_chunks_change_nothing(monkeypatch, kept):
    image, gaussians = scene()
    look = strong()
    with torch.no_grad():
        whole = look_at(look, gaussians, image)
        monkeypatch.setattr(module, "CHUNK", 37)
        monkeypatch.setattr(module, "KEPT", kept)
        parts = look_at(look, gaussians, image)
    assert_close(parts.means, whole.means, rtol=1e-4, atol=1e-4)
    assert_close(parts.cholesky, whole.cholesky, rtol=1e-4, atol=1e-4)
    assert_close(parts.colors, whole.colors, rtol=1e-4, atol=1e-4)


def test_looks_learn_to_lower_the_error():
    image, gaussians = scene()
    torch.manual_seed(0)
    looks = torch.nn.ModuleList(Look(32) for _ in range(2))
    optimizer = torch.optim.Adam(looks.parameters(), lr=3e-3)

    def errors() -> torch.Tensor:
        made, after = [], gaussians
        for look in looks:
            after = look_at(look, after, image)
            made.append((rasterize(after, HEIGHT, WIDTH) - image).square().mean())
        return torch.stack(made)

    before = errors().detach()
    for _ in range(30):
        optimizer.zero_grad()
        errors().log().sum().backward()
        optimizer.step()
    assert (errors().detach() < 0.6 * before).all()


def test_black_and_tiny_gaussians_stay_finite():
    image, gaussians = scene()
    colors, cholesky = gaussians.colors.clone(), gaussians.cholesky.clone()
    colors[:20] = 0
    cholesky[10:30] = torch.tensor([1e-3, 0.0, 1e-3])
    with torch.no_grad():
        after = look_at(strong(), Gaussians(gaussians.means, cholesky, colors), image)
    solved = solve_colors(after, image, 3)
    assert all(part.isfinite().all() for part in (after.means, after.cholesky, after.colors))
    assert math.isfinite(psnr(rasterize(solved, HEIGHT, WIDTH), image))
