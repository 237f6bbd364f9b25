import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import HOSTILE, on_cutoff, one_gaussian, random_gaussians
from torch.testing import assert_close

from instantgi.gaussians import RADIUS, Gaussians
from instantgi.render import rasterize, rasterize_reference
from instantgi.render.ops import (
    COLORS_ONLY,
    LOCAL,
    PARAMETERS,
    from_blocks,
    mean_squared_error,
    rasterize_error,
    rasterize_error_backward,
    rasterize_sum,
    rasterize_sum_backward,
    to_blocks,
)
from instantgi.render.reference import published_tile_limits

EPS = 2.0**-24
FIELDS = ("means", "cholesky", "colors")


def fields(gaussians: Gaussians) -> list[torch.Tensor]:
    return [getattr(gaussians, name) for name in FIELDS]


def leaves(gaussians: Gaussians, dtype: torch.dtype = torch.float64) -> Gaussians:
    return gaussians.map(lambda field: field.detach().to(dtype).clone().requires_grad_())


def away_from_cutoff(num: int, height: int, width: int, **options) -> Gaussians:
    """A scene without a weight so close to 1/255 that gradcheck's step of 1e-6 could cross it."""
    for seed in range(100):
        gaussians = random_gaussians(num, height, width, seed=seed, dtype=torch.float64, **options)
        if not on_cutoff(gaussians, height, width, rtol=3e-5).any():
            return gaussians
    raise AssertionError("no such scene")


def assert_matches_reference(
    gaussians: Gaussians, height: int, width: int, device: str, rtol: float
):
    image = rasterize(gaussians.to(device), height, width).cpu().double()
    expected = rasterize_reference(gaussians.to(torch.float64), height, width)
    keep = ~on_cutoff(gaussians, height, width, rtol=rtol)
    assert_close(image[:, keep], expected[:, keep], rtol=rtol, atol=1e-6)
    assert_close(image, expected, rtol=rtol, atol=1 / 255 + 1e-6)
    assert keep.float().mean() > 0.9


# Terms are non-negative, so errors stay relative: one of 3e-6 per term (16 roundings of a quadratic
# form whose condition is (2.55 / 0.85)² = 9, and the polynomial's 7.5e-8), and N · 2**-24 for the
# additions.
@pytest.mark.parametrize("channels", range(1, 10))
def test_rasterize_matches_reference_in_any_number_of_channels(device, channels):
    assert_matches_reference(random_gaussians(150, 29, 37, channels=channels), 29, 37, device, 1e-5)


@pytest.mark.parametrize(
    "num, height, width",
    [
        (0, 5, 7),
        (1, 16, 16),
        (1, 1, 1),
        (30, 1, 1),
        (200, 1, 77),
        (200, 77, 1),
        (50, 3, 5),
        (500, 31, 33),
    ]
    + [(400, 63, 65), (400, 97, 18), (300, 2, 4097), (300, 1030, 3)],
)
def test_rasterize_matches_reference(device, num, height, width):
    assert_matches_reference(random_gaussians(num, height, width), height, width, device, 3e-5)


@pytest.mark.parametrize("scales", [(0.05, 0.2), (0.3, 0.6), (5, 20), (200, 400)])
def test_rasterize_matches_reference_at_any_scale(device, scales):
    # aspect up to 4: the condition of the quadratic form is 16
    gaussians = random_gaussians(300, 45, 70, scales=scales)
    assert_matches_reference(gaussians, 45, 70, device, 3e-5)


@pytest.mark.parametrize("aspect", [30, 1000])
def test_rasterize_matches_reference_for_thin_gaussians(device, aspect):
    angles = torch.linspace(-3.2, 3.2, 200, dtype=torch.float64)
    means = torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 64
    scales = torch.tensor([[0.3 * aspect, 0.3]], dtype=torch.float64).expand(200, 2)
    gaussians = Gaussians.from_scales_rotations(means, scales, angles, torch.ones(200, 2).double())
    # An offset of 64 px over 0.3 px makes terms of 200 that cancel to some 3: each rounding of
    # 200 · 2**-24 moves the exponent z²/2 by three times that, some 4 of them by 1.5e-4.
    assert_matches_reference(gaussians.to(torch.float32), 64, 64, device, 2e-4)


def test_gaussians_across_band_borders_and_picture_edges(device):
    # one every half pixel along lines through the 32 rows of a band and across all four edges
    t = torch.arange(-6, 75, 0.5)
    lines = [
        torch.stack([t, t], -1),
        torch.stack([t, 32 + t * 0], -1),
        torch.stack([t * 0 + 0.2, t], -1),
    ]
    means = torch.cat([*lines, torch.stack([66.8 + t * 0, t], -1)])
    num = len(means)
    cholesky = torch.tensor([[1.5, 0.7, 2.0]]).expand(num, 3)
    gaussians = Gaussians(
        means, cholesky, torch.rand(num, 3, generator=torch.Generator().manual_seed(0))
    )
    assert_matches_reference(gaussians, 69, 67, device, 2e-5)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_gaussians_are_drawn_right_or_not_at_all(device, name):
    gaussians = one_gaussian(*HOSTILE[name])
    image = rasterize(gaussians.to(device), 37, 45).cpu().double()
    expected = rasterize_reference(gaussians.to(torch.float64), 37, 45)
    l11, l21, l22 = gaussians.cholesky[0].double().tolist()
    x, y = gaussians.means[0].double().tolist()
    # z1 and z2 are rounded to 2**-24 of the terms that they are made of; a mean outside rounds the
    # offset
    dx, dy = max(abs(x), 45), max(abs(y), 37)
    terms = dx / abs(l11 or 1), dy / abs(l22 or 1) + abs(l21) * dx / abs((l11 * l22) or 1)
    rtol = min(3 * 4 * EPS * max(terms) + 1e-6, 1)
    keep = ~on_cutoff(gaussians, 37, 45, rtol=2 * rtol)
    assert_close(image[:, keep], expected[:, keep], rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HOSTILE)
def test_gradients_of_hostile_gaussians_are_finite(device, name, dtype):
    gaussians = leaves(one_gaussian(*HOSTILE[name]).to(device), dtype)
    rasterize(gaussians, 37, 45).sum().backward()
    assert all(
        field.grad is not None and field.grad.isfinite().all() for field in fields(gaussians)
    )


@pytest.mark.parametrize("value", [1e-45, 1e-40, -1e-38])
def test_denormals_stay_finite(device, value):
    gaussians = random_gaussians(5, 9, 8)
    gaussians.colors[:] = value
    gaussians.means[0] = value
    gaussians.cholesky[1, 0] = gaussians.cholesky[2, 1] = gaussians.cholesky[3, 2] = value
    gaussians = leaves(gaussians.to(device), torch.float32)
    image = rasterize(gaussians, 9, 8)
    image.sum().backward()
    assert image.isfinite().all()
    assert all(
        field.grad is not None and field.grad.isfinite().all() for field in fields(gaussians)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", range(3))
def test_a_parameter_that_is_not_finite_is_named(device, field, value):
    gaussians = random_gaussians(5000, 40, 40)
    for n in (4321, 3210, 4900):
        fields(gaussians)[field][n, -1] = value
    message = "Gaussian 3210 has a parameter that is not finite"
    with pytest.raises(ValueError, match=message):
        rasterize(gaussians.to(device), 40, 40)
    with pytest.raises(ValueError, match="Gaussian [0-9]+ has a parameter that is not finite"):
        rasterize_sum_backward(
            torch.ones(3, 40, 40, device=device), *fields(gaussians.to(device)), None
        )


def test_large_finite_numbers_are_not_called_infinite(device):
    gaussians = one_gaussian((3e38, 3e38), (3e38, 3e38, 3e38), (3e38, 3e38))
    assert rasterize(gaussians.to(device), 4, 4).isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"height": 0}, "a picture has at least 1x1 pixels, got height 0, width 9"),
        ({"width": -3}, "a picture has at least 1x1 pixels, got height 8, width -3"),
        ({"step": (0.0, 1.0)}, "step must be two positive numbers, got (0.0, 1.0)"),
        ({"step": (1.0, math.nan)}, "step must be two positive numbers, got (1.0, nan)"),
        ({"origin": (math.inf, 1.0)}, "origin must be two finite numbers, got (inf, 1.0)"),
        ({"max_per_tile": 0}, "max_per_tile must be at least 1, got 0"),
    ],
)
def test_rasterize_checks_its_arguments(options, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        rasterize(random_gaussians(3, 8, 9), **({"height": 8, "width": 9} | options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_floats_are_refused(dtype):
    with pytest.raises(
        ValueError, match=f"the rasterizer works in float32 or float64, got {dtype}"
    ):
        rasterize(random_gaussians(3, 8, 9, dtype=dtype), 8, 9)


def test_float64_kernel_is_the_reference(device):
    gaussians = random_gaussians(300, 31, 45, channels=5, dtype=torch.float64)
    image = rasterize(gaussians.to(device), 31, 45).cpu()
    keep = ~on_cutoff(gaussians, 31, 45, rtol=1e-12)
    assert_close(
        image[:, keep], rasterize_reference(gaussians, 31, 45)[:, keep], rtol=1e-13, atol=1e-14
    )


def test_no_gaussians_give_a_black_picture(device):
    gaussians = leaves(random_gaussians(0, 9, 8, channels=5).to(device))
    image = rasterize(gaussians, 9, 8)
    assert image.shape == (5, 9, 8) and not image.any()
    image.sum().backward()
    assert gaussians.means.grad is not None and gaussians.means.grad.shape == (0, 2)


@pytest.mark.parametrize("num, channels", [(0, 3), (1, 3), (6, 1), (4, 3), (2, 6)])
def test_gradients_match_numerical_ones(device, one_thread, num, channels):
    gaussians = away_from_cutoff(num, 8, 9, channels=channels)
    gaussians.colors.sub_(0.5)
    inputs = [field.to(device).requires_grad_() for field in fields(gaussians)]
    assert torch.autograd.gradcheck(lambda *f: rasterize(Gaussians(*f), 8, 9), inputs)


def test_gradients_reach_scales_and_rotations(device):
    scales = torch.tensor([[1.1, 2.2], [1.7, 0.9]], dtype=torch.float64)
    means = torch.tensor([[3.1, 4.2], [6.3, 2.4]], dtype=torch.float64)
    angles, colors = (
        torch.tensor([0.4, -1.2]).double(),
        torch.tensor([[0.3, -1.0], [2.0, 0.1]]).double(),
    )
    inputs = [t.to(device).requires_grad_() for t in (means, scales, angles, colors)]
    assert not on_cutoff(
        Gaussians.from_scales_rotations(*(t.detach().cpu() for t in inputs)), 8, 9, 3e-5
    ).any()
    assert torch.autograd.gradcheck(
        lambda *f: rasterize(Gaussians.from_scales_rotations(*f), 8, 9), inputs
    )


@pytest.mark.parametrize(
    "num, height, width, channels", [(1, 40, 41, 3), (200, 31, 45, 3), (200, 70, 33, 7)]
)
def test_gradients_match_the_reference(device, num, height, width, channels):
    gaussians = random_gaussians(num, height, width, channels=channels)
    grad_image = torch.randn(channels, height, width, generator=torch.Generator().manual_seed(1))
    # the gradient at a pixel on the cut-off may count or not
    grad_image[:, on_cutoff(gaussians, height, width, rtol=1e-5)] = 0
    single, double = leaves(gaussians.to(device), torch.float32), leaves(gaussians)
    rasterize(single, height, width).backward(grad_image.to(device))
    rasterize_reference(double, height, width).backward(grad_image.double())
    for name, one, other in zip(FIELDS, fields(single), fields(double), strict=True):
        assert one.grad is not None and other.grad is not None
        # Some 60 pixels a Gaussian, terms w q z zᵀ with z up to 3.33 and q of 2√C, rounded to 3e-6
        # each, and the factors L⁻¹ of up to 1/0.85 that lead to the parameters.
        atol = 60**0.5 * 2 * channels**0.5 * 3e-6 * {"means": 4, "cholesky": 12, "colors": 1}[name]
        assert_close(one.grad.cpu().double(), other.grad, rtol=1e-5, atol=atol)


def test_gradients_of_many_channels_add_up(device):
    """Geometry is moved by all groups of channels, so it sums over their gradients."""
    gaussians = random_gaussians(50, 20, 20, channels=9, dtype=torch.float64)
    whole = leaves(gaussians.to(device))
    rasterize(whole, 20, 20).sum().backward()
    parts = leaves(gaussians.to(device))
    for first in range(0, 9, 2):
        some = Gaussians(parts.means, parts.cholesky, parts.colors[:, first : first + 2])
        rasterize(some, 20, 20).sum().backward()
    for one, other in zip(fields(whole), fields(parts), strict=True):
        assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num", [0, 1, 7])
@pytest.mark.parametrize("limited", [False, True])
def test_ops_pass_opcheck(num, limited):
    gaussians = leaves(away_from_cutoff(num, 17, 20))
    limits = published_tile_limits(gaussians, 17, 20, 2) if limited else None
    inputs = (*fields(gaussians), 17, 20, limits)
    torch.library.opcheck(rasterize_sum, inputs)
    grad_image = torch.rand(3, 17, 20, dtype=torch.float64)
    plain = [field.detach() for field in fields(gaussians)]
    torch.library.opcheck(rasterize_sum_backward, (grad_image, *plain, limits))


@pytest.mark.parametrize("num", [0, 1, 7])
def test_error_ops_pass_opcheck(num):
    plain = fields(random_gaussians(num, 17, 20))
    target = to_blocks(torch.rand(3, 17, 20))
    for clamp in (False, True):
        torch.library.opcheck(rasterize_error, (*plain, target, 17, 20, clamp))
    for coordinates in (COLORS_ONLY, LOCAL, PARAMETERS):
        arguments = (target, *plain, 17, 20, 2.0, coordinates)
        torch.library.opcheck(rasterize_error_backward, arguments)


def test_rasterize_compiles_without_a_graph_break():
    gaussians = leaves(random_gaussians(20, 17, 20))
    compiled = torch.compile(
        lambda *f: rasterize_sum(*f, 17, 20, None) * 2, fullgraph=True, backend="aot_eager"
    )
    compiled(*fields(gaussians)).sum().backward()
    expected = leaves(gaussians)
    (rasterize(expected, 17, 20) * 2).sum().backward()
    for one, other in zip(fields(gaussians), fields(expected), strict=True):
        assert_close(one.grad, other.grad, rtol=0, atol=0)


def test_image_is_linear_in_colors(device):
    gaussians = random_gaussians(300, 33, 47, dtype=torch.float64).to(device)
    other = random_gaussians(300, 33, 47, seed=1, dtype=torch.float64).to(device).colors
    draw = lambda colors: rasterize(Gaussians(gaussians.means, gaussians.cholesky, colors), 33, 47)  # noqa: E731
    combined = draw(2 * gaussians.colors - 3 * other)
    assert_close(combined, 2 * draw(gaussians.colors) - 3 * draw(other), rtol=0, atol=1e-12)


def test_order_of_gaussians_is_irrelevant(device):
    gaussians = random_gaussians(500, 33, 47).to(device)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0)).to(device)
    # sums of at most 500 positive terms, so relative
    assert_close(
        rasterize(gaussians[order], 33, 47),
        rasterize(gaussians, 33, 47),
        rtol=2 * 500 * EPS,
        atol=0,
    )


def test_backward_is_the_adjoint_of_forward_in_colors(device):
    gaussians = random_gaussians(300, 33, 47, dtype=torch.float64).to(device)
    residual = torch.randn(
        3, 33, 47, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    grads = rasterize_sum_backward(residual.to(device), *fields(gaussians), None)
    image = rasterize(gaussians, 33, 47)
    forward, backward = (image.cpu() * residual).sum(), (grads[2] * gaussians.colors).sum().cpu()
    assert_close(forward, backward, rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    "scales, angle", [((4.0, 4.0), 0.0), ((9.0, 3.0), 0.6), ((12.0, 2.5), -1.1)]
)
def test_integral_of_a_gaussian(device, scales, angle):
    gaussians = Gaussians.from_scales_rotations(
        torch.tensor([[50.3, 49.8]], dtype=torch.float64),
        torch.tensor([scales], dtype=torch.float64),
        torch.tensor([angle], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
    )
    total = rasterize(gaussians.to(device), 100, 100).sum().item()
    # ∫ = 2π √det Σ, less the 1/255 of it beyond the cut-off. The sum over pixels misses what the
    # step of 1/255 at the border does to a lattice sum: below 1/255 · (border length)^½, some 0.1.
    whole = 2 * math.pi * scales[0] * scales[1]
    assert total == pytest.approx(whole * (1 - 1 / 255), abs=0.1)


def test_bytes_do_not_depend_on_threads_or_runs(num_threads):
    gaussians = random_gaussians(9000, 150, 130, channels=5)
    grad_image = torch.randn(5, 150, 130, generator=torch.Generator().manual_seed(0))
    target = to_blocks(torch.rand(5, 150, 130, generator=torch.Generator().manual_seed(1)))

    def everything() -> list[torch.Tensor]:
        image = rasterize(gaussians, 150, 130)
        grads = rasterize_sum_backward(grad_image, *fields(gaussians), None)
        residual, squares = rasterize_error(*fields(gaussians), target, 150, 130, True)
        local = rasterize_error_backward(residual, *fields(gaussians), 150, 130, 0.5, LOCAL)
        return [image, *grads, residual, squares, *local]

    here = everything()
    torch.set_num_threads(1)
    alone = everything()
    torch.set_num_threads(num_threads)
    for repeat in (alone, everything(), everything()):
        assert all(torch.equal(one, other) for one, other in zip(here, repeat, strict=True))


def test_inputs_need_not_be_contiguous(device):
    gaussians = random_gaussians(100, 20, 30).to(device)
    strided = gaussians.map(
        lambda field: field.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    )
    assert not strided.means.is_contiguous()
    assert torch.equal(rasterize(strided, 20, 30), rasterize(gaussians, 20, 30))
    grad_image = torch.randn(20, 30, 3, device=device).permute(2, 0, 1)
    grads = rasterize_sum_backward(grad_image, *fields(strided), None)
    expected = rasterize_sum_backward(grad_image.contiguous(), *fields(gaussians), None)
    assert all(torch.equal(one, other) for one, other in zip(grads, expected, strict=True))


def test_expanded_gradients_are_read_right(device):
    gaussians = leaves(random_gaussians(30, 20, 30).to(device))
    rasterize(gaussians, 20, 30).sum().backward()  # autograd hands over a stride of 0
    expected = rasterize_sum_backward(
        torch.ones(3, 20, 30, dtype=torch.float64, device=device), *fields(gaussians.detach()), None
    )
    for field, grad in zip(fields(gaussians), expected, strict=True):
        assert field.grad is not None and torch.equal(field.grad, grad)


@pytest.mark.parametrize("max_per_tile", [1, 3, 256])
def test_the_published_cap_matches_the_reference(device, max_per_tile):
    gaussians = random_gaussians(600, 40, 50)
    limits = published_tile_limits(gaussians, 40, 50, max_per_tile)
    image = rasterize(gaussians.to(device), 40, 50, max_per_tile=max_per_tile).cpu().double()
    expected = rasterize_reference(gaussians.to(torch.float64), 40, 50, limits)
    keep = ~on_cutoff(gaussians, 40, 50, rtol=3e-5)
    assert_close(image[:, keep], expected[:, keep], rtol=3e-5, atol=1e-6)
    single, double = leaves(gaussians.to(device), torch.float32), leaves(gaussians)
    grad_image = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(1)) * keep
    rasterize(single, 40, 50, max_per_tile=max_per_tile).backward(grad_image.to(device))
    rasterize_reference(double, 40, 50, limits).backward(grad_image.double())
    for one, other in zip(fields(single), fields(double), strict=True):
        assert one.grad is not None
        # as above, with the cut-off of N = 600 taken out
        assert_close(one.grad.cpu().double(), other.grad, rtol=1e-5, atol=1e-3)


def test_without_the_cap_every_gaussian_of_a_tile_is_drawn(device):
    gaussians = random_gaussians(1000, 16, 16).to(device)
    last = gaussians[torch.arange(1000) >= 500]
    difference = rasterize(gaussians, 16, 16) - rasterize(
        gaussians[torch.arange(1000) < 500], 16, 16
    )
    assert_close(difference, rasterize(last, 16, 16), rtol=0, atol=1e-3)  # 2000 · 2**-24 of some 50
    capped = rasterize(gaussians, 16, 16, max_per_tile=256)
    assert_close(
        capped, rasterize(gaussians[torch.arange(1000) < 256], 16, 16), rtol=1e-6, atol=1e-6
    )
    assert (rasterize(gaussians, 16, 16) - capped).max() > 1


@given(channels=st.integers(1, 9), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_from_blocks_inverts_to_blocks(channels, height, width):
    image = torch.rand(channels, height, width)
    blocks = to_blocks(image)
    assert blocks.numel() == channels * -(-height // 4) * -(-width // 4) * 16
    assert torch.equal(from_blocks(blocks, height, width), image)


def error_reference(gaussians: Gaussians, target: torch.Tensor, clamp: bool) -> torch.Tensor:
    height, width = target.shape[1:]
    image = rasterize_reference(gaussians, height, width)
    return ((image.clamp(0, 1) if clamp else image) - target).square().sum()


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(
    "channels, height, width", [(3, 31, 45), (1, 1, 1), (7, 66, 5), (4, 32, 64)]
)
def test_error_and_its_gradient_match_autograd(clamp, channels, height, width):
    gaussians = random_gaussians(150, height, width, channels=channels, dtype=torch.float64)
    gaussians.colors.mul_(3).sub_(1)  # so that both clamps are active somewhere
    target = torch.rand(
        channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    residual, squares = rasterize_error(*fields(gaussians), to_blocks(target), height, width, clamp)
    double = leaves(gaussians)
    expected = error_reference(double, target, clamp)
    expected.backward()
    assert_close(squares, expected.detach(), rtol=1e-12, atol=0)
    arguments = residual, *fields(gaussians), height, width
    geometry, grad_colors = rasterize_error_backward(*arguments, 2.0, PARAMETERS)
    assert_close(geometry[:, :2], double.means.grad, rtol=1e-9, atol=1e-9)
    assert_close(geometry[:, 2:], double.cholesky.grad, rtol=1e-9, atol=1e-9)
    assert_close(grad_colors, double.colors.grad, rtol=1e-9, atol=1e-9)
    nothing, only_colors = rasterize_error_backward(*arguments, 2.0, COLORS_ONLY)
    assert nothing.shape == (0, 5) and torch.equal(only_colors, grad_colors)


@pytest.mark.parametrize("clamp", [False, True])
def test_residual_is_the_picture_minus_the_target(clamp):
    gaussians = random_gaussians(300, 30, 41, dtype=torch.float64)
    target = torch.rand(3, 30, 41, dtype=torch.float64)
    residual, _ = rasterize_error(*fields(gaussians), to_blocks(target), 30, 41, clamp)
    image = rasterize(gaussians, 30, 41)
    inside = (image >= 0) & (image <= 1) if clamp else torch.ones_like(image, dtype=torch.bool)
    assert torch.equal(from_blocks(residual, 30, 41), (image - target) * inside)
    outside = to_blocks(torch.ones(3, 30, 41)) == 0
    assert not residual[outside].any()


def test_error_in_float32_is_summed_without_loss():
    gaussians = random_gaussians(4000, 300, 200)
    target = torch.rand(3, 300, 200, generator=torch.Generator().manual_seed(1))
    residual, squares = rasterize_error(*fields(gaussians), to_blocks(target), 300, 200, False)
    # a row of blocks is added in float32, 50 blocks of 12 terms a lane; rows in float64
    assert_close(squares, residual.double().square().sum(), rtol=50 * 12 * EPS / 10, atol=0)


def test_local_gradient_matches_numerical_one():
    """Geometry (u, S): mean + L u and covariance L (I + S) Lᵀ, at 0."""
    gaussians = away_from_cutoff(5, 12, 13, channels=2)
    target = torch.rand(2, 12, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    residual, _ = rasterize_error(*fields(gaussians), to_blocks(target), 12, 13, False)
    local, _ = rasterize_error_backward(residual, *fields(gaussians), 12, 13, 2.0, LOCAL)
    lower = torch.zeros(5, 2, 2, dtype=torch.float64)
    lower[:, [0, 1, 1], [0, 0, 1]] = gaussians.cholesky

    def moved(steps: torch.Tensor) -> torch.Tensor:
        u1, u2, s11, s12, s22 = steps.unbind(-1)
        means = gaussians.means + (lower @ torch.stack([u1, u2], -1)[..., None])[..., 0]
        grown = torch.stack([1 + s11, s12, s12, 1 + s22], -1).reshape(-1, 2, 2)
        covariances = (lower @ grown @ lower.mT).reshape(-1, 4)[:, [0, 1, 3]]
        return error_reference(
            Gaussians.from_covariances(means, covariances, gaussians.colors), target, False
        )

    step = (
        1e-6  # the error of central differences: step² · third derivative, and 1e-15 · 100 / step
    )
    for n in range(5):
        for k in range(5):
            at = torch.zeros(5, 5, dtype=torch.float64)
            at[n, k] = step
            numerical = (moved(at) - moved(-at)) / (2 * step)
            assert local[n, k].item() == pytest.approx(numerical.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("clamp", [False, True])
def test_mean_squared_error_matches_autograd(clamp):
    gaussians = leaves(random_gaussians(100, 20, 31, dtype=torch.float64))
    target = torch.rand(3, 20, 31, dtype=torch.float64)
    means, cholesky, colors = fields(gaussians)
    error = mean_squared_error(means, cholesky, colors, to_blocks(target), 20, 31, clamp)
    (3 * error).backward()
    double = leaves(gaussians)
    expected = error_reference(double, target, clamp) / target.numel()
    (3 * expected).backward()
    assert_close(error, expected, rtol=1e-12, atol=0)
    for one, other in zip(fields(gaussians), fields(double), strict=True):
        assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_ops_refuse_tensors_of_another_size():
    means, cholesky, colors = fields(random_gaussians(9, 20, 31))
    with pytest.raises(ValueError, match=r"of one dtype, got \[9, 2\] .*, \[9, 3\] .*, \[4, 3\]"):
        rasterize_sum(means, cholesky, colors[:4], 20, 31, None)
    with pytest.raises(ValueError, match="of one dtype, got .*float64"):
        rasterize_sum(means, cholesky, colors.double(), 20, 31, None)
    with pytest.raises(ValueError, match=r"tile_limits must be \[2, 2\] torch.int32, got \[1, 2\]"):
        rasterize_sum(means, cholesky, colors, 20, 31, torch.ones(1, 2, dtype=torch.int32))
    for target in (to_blocks(torch.rand(3, 20, 27)), to_blocks(torch.rand(3, 20, 31)).double()):
        message = r"3 channels of 20x31 pixels are \[1920\] torch.float32 in blocks, got "
        with pytest.raises(ValueError, match=message):
            rasterize_error(means, cholesky, colors, target, 20, 31, False)
        with pytest.raises(ValueError, match=message):
            rasterize_error_backward(target, means, cholesky, colors, 20, 31, 1.0, LOCAL)


def test_gradient_of_zero_residual_is_zero():
    gaussians = random_gaussians(300, 30, 41)
    target = to_blocks(rasterize(gaussians, 30, 41))
    residual, squares = rasterize_error(*fields(gaussians), target, 30, 41, False)
    assert squares == 0 and not residual.any()
    assert not any(
        g.any() for g in rasterize_error_backward(residual, *fields(gaussians), 30, 41, 1.0, LOCAL)
    )


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_memory_does_not_grow():
    gaussians = leaves(random_gaussians(2000, 400, 500), torch.float32)
    for repeat in range(55):
        rasterize(gaussians, 400, 500).sum().backward()
        if repeat == 4:
            before = resident_megabytes()
    # one leaked picture a call would be 50 · 2.3 MB
    assert resident_megabytes() - before < 20


def test_threads_may_draw_at_once():
    scenes = [random_gaussians(3000, 90, 110, seed=seed) for seed in range(2)]
    expected = [rasterize(scene, 90, 110) for scene in scenes]
    expected_grads = [
        rasterize_sum_backward(torch.ones(3, 90, 110), *fields(s), None) for s in scenes
    ]
    wrong = []

    def draw(which: int) -> None:
        for _ in range(30):
            grads = rasterize_sum_backward(torch.ones(3, 90, 110), *fields(scenes[which]), None)
            same = [torch.equal(a, b) for a, b in zip(grads, expected_grads[which], strict=True)]
            if not (torch.equal(rasterize(scenes[which], 90, 110), expected[which]) and all(same)):
                wrong.append(which)

    threads = [threading.Thread(target=draw, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PROCESSES = """
import multiprocessing, sys
import torch
from scenes import random_gaussians
from instantgi.render import rasterize

gaussians = random_gaussians(5000, 200, 300)

def pixel():
    return rasterize(gaussians, 200, 300)[0, 9, 9].item()

def child(queue):
    queue.put(pixel())

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = pixel()
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=60) == expected
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_process_can_draw(tmp_path, start):
    """A forked child has none of the threads of the OpenMP runtime and must not wait for them."""
    if start == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    (tmp_path / "draw.py").write_text(PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(tmp_path / "draw.py"), start]
    subprocess.run(command, env=environment, check=True, timeout=120)


def test_extent_of_a_gaussian_is_that_of_the_cutoff(device):
    for sigma in (0.7, 3, 11.3):
        gaussians = one_gaussian((50.5, 50.5), (sigma, 0, sigma), dtype=torch.float64)
        drawn = rasterize(gaussians.to(device), 101, 101)[0, 50] > 0
        assert drawn.sum() == 2 * math.floor(RADIUS * sigma) + 1
