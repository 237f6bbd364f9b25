import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instantgi import filters
from instantgi.filters import bands, gaussian_blur
from instantgi.points.gradient import gradient_map

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
def test_gradient_map_is_the_same_in_bands(monkeypatch, height, width):
    image = noise(3, height, width)
    whole = gradient_map(image)
    monkeypatch.setattr(filters, "BAND", 1)
    # torch's powers of the last few values of a tensor differ by a rounding or two
    torch.testing.assert_close(gradient_map(image), whole, rtol=3 * 2**-23, atol=0)


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
