import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instantgi import filters
from instantgi.filters import bands, gaussian_blur, is_peak
from instantgi.fit.relocation import best_places
from instantgi.points.gradient import gradient_map
from instantgi.render.ops import to_blocks

ROOT = str(Path(__file__).parents[1])
SIZES = [(1, 1), (1, 40), (40, 1), (4, 9), (23, 17), (70, 30)]


def noise(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("halo, num_bands", [(0, 18), (1, 18), (4, 9), (16, 3)])
def test_bands_cover_the_picture_once(monkeypatch, halo, num_bands):
    monkeypatch.setattr(filters, "BAND", 1)
    rows = torch.arange(70)
    made = []
    for band in bands(70, 17, halo):
        assert band.begin % 4 == 0
        assert band.first == max(0, band.begin - halo) and band.last == min(70, band.end + halo)
        made.append(rows[band.first : band.last][band.inner])
    assert len(made) == num_bands and torch.equal(torch.cat(made), rows)


def test_blur_is_the_weighted_mean_of_what_lies_around():
    image = noise(2, 9, 14).double()
    offset = torch.arange(-5, 6)
    weights = (-0.5 * (offset.double() / 1.2) ** 2).exp()
    weights /= weights.sum()
    # outside, the border goes on
    rows, cols = ((torch.arange(n)[:, None] + offset).clamp(0, n - 1) for n in (9, 14))
    around = image[:, rows][:, :, :, cols]  # [C, H, 11, W, 11]
    expected = torch.einsum("chiwj,i,j->chw", around, weights, weights)
    torch.testing.assert_close(gaussian_blur(image, 1.2), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("height, width", SIZES)
def test_a_peak_is_as_high_as_the_highest_of_three_by_three(height, width):
    plane = (10 * noise(1, height, width)).round()  # with plateaus
    highest = torch.nn.functional.max_pool2d(plane, 3, 1, 1)
    assert torch.equal(is_peak(plane[0]), (highest == plane)[0])


@pytest.mark.parametrize("height, width", SIZES)
def test_gradient_map_is_the_same_in_bands(monkeypatch, height, width):
    image = noise(3, height, width)
    whole = gradient_map(image)
    monkeypatch.setattr(filters, "BAND", 1)
    # torch's powers of the last few values of a tensor differ by a rounding or two
    torch.testing.assert_close(gradient_map(image), whole, rtol=3 * 2**-23, atol=0)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_best_places_are_the_same_in_bands(monkeypatch, channels, height, width):
    residual = to_blocks(noise(channels, height, width) - 0.5)
    arguments = (residual, height, width, 12, 0.6)
    places, colors = best_places(*arguments)
    monkeypatch.setattr(filters, "BAND", 1)
    places_of_bands, colors_of_bands = best_places(*arguments)
    assert 1 <= len(places) <= 12 and torch.equal(places, places_of_bands)
    assert torch.equal(colors, colors_of_bands)


@pytest.mark.parametrize("num_bands", [1, 6])
def test_best_place_is_where_the_error_is(monkeypatch, num_bands):
    monkeypatch.setattr(filters, "BAND", 10**6 if num_bands == 1 else 1)
    error = torch.zeros(3, 23, 17)
    error[:, 14, 5] = torch.tensor([0.5, -1.0, 0.25])
    error[:, 2, 11] = 0.1
    places, colors = best_places(to_blocks(error), 23, 17, 5, 0.6)
    assert places.tolist() == [14 * 17 + 5, 2 * 17 + 11]
    taps = [math.exp(-0.5 * (offset / 0.6) ** 2) for offset in range(-3, 4)]
    share = 1 / sum(taps) ** 2  # of a pixel in its own blur
    expected = -share * torch.stack([error[:, 14, 5], error[:, 2, 11]])
    torch.testing.assert_close(colors, expected, rtol=1e-5, atol=0)


def test_no_error_has_no_best_place():
    places, colors = best_places(torch.zeros(3 * 64), 8, 8, 5, 0.6)
    assert places.shape == (0,) and colors.shape == (0, 3)


def test_gradient_map_of_a_large_picture_takes_little_memory():
    code = """
import torch
from bench.timing import peak_megabytes
from instantgi.points.gradient import gradient_map

gradient_map(torch.rand(3, 64, 64))
image = torch.rand(1, 4096, 4096)
print(peak_megabytes(lambda: gradient_map(image)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([ROOT, *sys.path])},
    )
    megabytes = float(done.stdout)
    # 64 of the result, and some planes of 4 for either thread; whole, it would be 640
    assert not megabytes > 64 + 150
