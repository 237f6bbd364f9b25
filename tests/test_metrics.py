import inspect
import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.testing import assert_close

from instantgi.metrics import (
    bits_per_pixel,
    flip,
    lpips,
    ms_ssim,
    psnr,
    psnr_from_mse,
    psnr_of_levels,
    ssim,
)

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def picture_pair(channels: int, height: int, width: int, seed: int = 0) -> tuple:
    """A smooth picture and a noisy one, float64 in [0, 1]."""
    random = np.random.default_rng(seed)
    noise = random.random((2, channels, height, width))
    target = ndimage.gaussian_filter(noise[0], (0, 2, 2), mode="wrap")
    target = (target - target.min()) / max(np.ptp(target), 1e-9)
    return torch.from_numpy(np.clip(target + 0.2 * noise[1] - 0.1, 0, 1)), torch.from_numpy(target)


def window(size: int) -> np.ndarray:
    radius = min(11, size if size % 2 else size - 1) // 2
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
    return weights / weights.sum()


def similarity_reference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Means of SSIM and of its factor cs over [H, W], from the definition, window by window."""
    weights = np.outer(window(a.shape[0]), window(a.shape[1]))
    views = [np.lib.stride_tricks.sliding_window_view(x, weights.shape) for x in (a, b)]
    mean_a, mean_b = [(view * weights).sum((-2, -1)) for view in views]
    apart_a, apart_b = views[0] - mean_a[..., None, None], views[1] - mean_b[..., None, None]
    var_a, var_b = [(apart**2 * weights).sum((-2, -1)) for apart in (apart_a, apart_b)]
    covariance = (apart_a * apart_b * weights).sum((-2, -1))
    structure = (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return (luminance * structure).mean(), structure.mean()


def halve_reference(a: np.ndarray) -> np.ndarray:
    a = np.pad(a, [(side % 2, side % 2) for side in a.shape])
    rows, columns = a.shape[0] // 2 * 2, a.shape[1] // 2 * 2
    return (a[0:rows:2] + a[1:rows:2])[:, :columns].reshape(rows // 2, -1, 2).sum(-1) / 4


def ms_ssim_reference(a: np.ndarray, b: np.ndarray) -> float:
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        similarity, structure = similarity_reference(a, b)
        product *= max(similarity if scale == 4 else structure, 0) ** weight
        a, b = halve_reference(a), halve_reference(b)
    return product


def mean_over_channels(function, image, target) -> float:
    pairs = zip(image.numpy(), target.numpy(), strict=True)
    return float(np.mean([function(*pair) for pair in pairs]))


# --- PSNR


def test_psnr_is_of_the_pictures_as_8_bits():
    target = torch.rand(3, 17, 13, generator=torch.Generator().manual_seed(0))
    image = torch.rand(3, 17, 13, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2
    stored = [np.rint(x.clamp(0, 1).numpy() * 255).astype(int) for x in (image, target)]
    expected = 10 * math.log10(255**2 / np.mean((stored[0] - stored[1]) ** 2))
    # both sums are exact, so only the rounding of a few float64 operations remains
    assert psnr(image, target) == pytest.approx(expected, rel=1e-14)


def test_psnr_of_one_level_everywhere():
    target = torch.full((3, 4, 5), 100 / 255)
    assert psnr(target + 1 / 255, target) == pytest.approx(20 * math.log10(255), rel=1e-14)
    assert psnr(target + 0.4 / 255, target) == math.inf


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_psnr_of_black_and_white_is_0(channels):
    assert psnr(torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)) == 0


def test_psnr_from_mse():
    assert psnr_from_mse(0.01) == pytest.approx(20, rel=1e-15)
    assert psnr_from_mse(0.0) == math.inf


def test_psnr_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        psnr(torch.full((1, 1, 1), math.nan), torch.zeros(1, 1, 1))


# --- SSIM


@pytest.mark.parametrize(
    "channels, height, width",
    [(3, 40, 51), (1, 11, 11), (4, 12, 11), (1, 1, 1), (3, 1, 30), (3, 30, 2), (2, 10, 4)],
)
def test_ssim_matches_reference(channels, height, width):
    image, target = picture_pair(channels, height, width)
    expected = mean_over_channels(lambda a, b: similarity_reference(a, b)[0], image, target)
    # float64: E[x²] - E[x]² cancels to 1e-16 where C₂ = 9e-4 is the smallest divisor
    assert ssim(image, target).item() == pytest.approx(expected, rel=1e-12)
    # float32: 4 roundings of 2**-24 in E[x²] and E[x]² over a variance of 0.2² / 12, the noise, are
    # 7e-5 at one pixel; they have both signs, and the mean is off by less than a tenth of that
    assert ssim(image.float(), target.float()).item() == pytest.approx(expected, abs=7e-6)


def test_ssim_matches_scipy():
    image, target = picture_pair(1, 60, 70)
    a, b = image[0].numpy(), target[0].numpy()
    # truncate=3.5 cuts σ = 1.5 at 5 pixels: 11 taps
    moments = [ndimage.gaussian_filter(x, 1.5, truncate=3.5) for x in (a, b, a * a, b * b, a * b)]
    mean_a, mean_b, aa, bb, ab = [x[5:-5, 5:-5] for x in moments]
    top = (2 * mean_a * mean_b + 1e-4) * (2 * (ab - mean_a * mean_b) + 9e-4)
    bottom = (mean_a**2 + mean_b**2 + 1e-4) * (aa - mean_a**2 + bb - mean_b**2 + 9e-4)
    assert ssim(image, target).item() == pytest.approx((top / bottom).mean(), rel=1e-12)


@pytest.mark.parametrize("height, width", [(161, 161), (256, 176), (161, 200), (174, 163)])
def test_ms_ssim_matches_reference(height, width):
    image, target = picture_pair(2, height, width)
    expected = mean_over_channels(ms_ssim_reference, image, target)
    value, coarse = ms_ssim(image, target), ms_ssim(image.float(), target.float())
    assert value is not None and coarse is not None
    # tolerances as for SSIM above
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert coarse.item() == pytest.approx(expected, abs=7e-6)


@pytest.mark.parametrize("height, width", [(160, 300), (300, 160), (1, 1)])
def test_small_pictures_have_no_ms_ssim(height, width):
    assert ms_ssim(*picture_pair(1, height, width)) is None


def test_ms_ssim_of_opposites_is_0():
    image, _ = picture_pair(1, 161, 161)
    assert ms_ssim(image, 1 - image) == 0


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_similarity_is_1_for_equal_pictures_and_symmetric(measure):
    image, target = picture_pair(3, 170, 190)
    # a mean of 3e4 ratios x / x
    assert measure(target, target).item() == pytest.approx(1, abs=1e-12)
    assert measure(image, target).item() == pytest.approx(measure(target, image).item(), rel=1e-12)
    assert measure(image, target) < 0.99


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_similarity_has_the_gradient_of_finite_differences(measure):
    image, target = picture_pair(1, 161, 165)
    image.requires_grad_()
    measure(image, target).backward()
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).double()
    step = 1e-6 * direction
    with torch.no_grad():
        difference = (measure(image + step, target) - measure(image - step, target)) / 2e-6
    assert image.grad is not None
    # the third derivative adds step² * (1 / C₂)² = 1e-6, the rounding of the sums 1e-16 / 1e-6
    assert_close((image.grad * direction).sum(), difference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim, lpips, flip])
def test_shapes_must_agree_and_hold_pixels(measure):
    measure = inspect.unwrap(measure)  # without the check of shapes that tests add
    with pytest.raises(ValueError, match=r"same shape, got \[3, 4, 5\] and \[1, 4, 5\]"):
        measure(torch.zeros(3, 4, 5), torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match=r"shape \[3, 0, 5\] has no pixels"):
        measure(torch.zeros(3, 0, 5), torch.zeros(3, 0, 5))


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim, lpips, flip])
@pytest.mark.parametrize(
    "wrong, came",
    [
        (torch.zeros(3, 4, 5).byte(), r"\[3, 4, 5\] torch.uint8"),
        (np.zeros((3, 4, 5)), "ndarray"),
        (torch.zeros(4, 5), r"\[4, 5\] torch.float32"),
    ],
)
def test_pictures_of_another_kind_are_refused(measure, wrong, came, without_shape_checks):
    right = torch.zeros(3, 4, 5)
    for name, pair in (("image", (wrong, wrong)), ("target", (right, wrong))):
        message = rf"^{name} must be a float tensor \[C, H, W\] in \[0, 1\], got {came}$"
        with pytest.raises(ValueError, match=message):
            measure(*pair)


def test_levels_are_of_8_bits(without_shape_checks):
    with pytest.raises(ValueError, match=r"image must be a uint8 tensor \[C, H, W\], got"):
        psnr_of_levels(torch.zeros(3, 4, 5), torch.zeros(3, 4, 5))


# --- LPIPS


@pytest.fixture
def fresh_lpips(monkeypatch):
    """Forgets the network before and after, and puts a stand-in for the package in its place."""
    from instantgi import metrics

    network = inspect.unwrap(metrics._lpips_network)
    monkeypatch.setattr(metrics, "_lpips_network", network)

    def replace(package):
        monkeypatch.setitem(sys.modules, "lpips", package)

    return replace


def test_lpips_without_its_package_says_how_to_install_it(fresh_lpips):
    fresh_lpips(None)
    with pytest.raises(ImportError, match=r'pip install "instantgi\[metrics\]"'):
        lpips(torch.zeros(3, 64, 64), torch.zeros(3, 64, 64))


def test_lpips_without_its_weights_says_so(fresh_lpips):
    def no_connection(**options):
        raise OSError("no route to host")

    fresh_lpips(types.SimpleNamespace(LPIPS=no_connection))
    with pytest.raises(RuntimeError, match="weights of AlexNet .*no route to host"):
        lpips(torch.zeros(3, 64, 64), torch.zeros(3, 64, 64))


def test_lpips_announces_downloads_beside_the_results(fresh_lpips, capsys):
    def offline(**options):
        print("Downloading: ...")
        raise OSError("no route to host")

    fresh_lpips(types.SimpleNamespace(LPIPS=offline))
    with pytest.raises(RuntimeError):
        lpips(torch.zeros(3, 64, 64), torch.zeros(3, 64, 64))
    assert capsys.readouterr().out == ""


def test_lpips_hands_over_rgb_in_0_to_1(fresh_lpips):
    class Network(torch.nn.Module):
        def forward(self, image, target, normalize):
            assert image.shape == target.shape == (1, 3, 31, 40) and normalize
            return (image - target).mean().reshape(1, 1, 1, 1)

    fresh_lpips(types.SimpleNamespace(LPIPS=lambda net, verbose: Network()))
    for channels in (1, 3):
        assert lpips(torch.ones(channels, 31, 40), torch.zeros(channels, 31, 40)) == 1
    with pytest.raises(ValueError, match="LPIPS needs 31 pixels on each side, got 40x30"):
        lpips(torch.ones(3, 40, 30), torch.zeros(3, 40, 30))


@pytest.mark.parametrize("measure", [lpips, flip])
def test_perceptual_measures_refuse_opacity(measure):
    with pytest.raises(ValueError, match="gray or RGB, got C = 4; use flatten_alpha"):
        measure(torch.ones(4, 31, 40), torch.zeros(4, 31, 40))


# --- FLIP, from its definition: Andersson et al. 2020, constants as in NVIDIA's python/flip_api.py

PIXELS_PER_DEGREE = 0.7 * (3840 / 0.7) * math.pi / 180
WHITE = np.array([0.950428545, 1, 1.088900371])  # D65
PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # x and y of red, green and blue in sRGB


def xyz_of_rgb() -> np.ndarray:
    """[3, 3], from linear RGB to XYZ in units of white."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES]).T
    return columns * np.linalg.solve(columns, WHITE) / WHITE[:, None]


def transform(matrix: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return np.einsum("ij,jhw->ihw", matrix, picture)


def opponents(xyz: np.ndarray) -> np.ndarray:
    """YCxCz of XYZ, L*a*b* of its roots: light, red to green, yellow to blue."""
    x, y, z = xyz
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def blur_kernel(*gaussians: tuple[float, float]) -> np.ndarray:
    """Sum of a √(π / b) exp(-π² d² / b) at d degrees, out to 3 σ of the widest there is."""
    radius = math.ceil(3 * math.sqrt(0.04 / (2 * math.pi**2)) * PIXELS_PER_DEGREE)
    steps = np.arange(-radius, radius + 1) / PIXELS_PER_DEGREE
    squares = steps**2 + steps[:, None] ** 2
    parts = [a * math.sqrt(math.pi / b) * np.exp(-(math.pi**2) * squares / b) for a, b in gaussians]
    return np.sum(parts, axis=0) / np.sum(parts)


def seen_from_afar(xyz: np.ndarray) -> np.ndarray:
    """Linear RGB after the contrast sensitivity of the eye."""
    kernels = [blur_kernel((1, 0.0047)), blur_kernel((1, 0.0053))]
    kernels.append(blur_kernel((34.1, 0.04), (13.5, 0.025)))
    planes = zip(opponents(xyz), kernels, strict=True)
    light, cx, cz = [ndimage.correlate(plane, kernel, mode="nearest") for plane, kernel in planes]
    y = (light + 16) / 116
    blurred = np.stack([y + cx / 500, y, y - cz / 200])
    return transform(np.linalg.inv(xyz_of_rgb()), blurred).clip(0, 1)


def appearance(rgb: np.ndarray) -> np.ndarray:
    """L*a*b* of linear RGB, dark colors less colorful (Hunt)."""
    xyz = transform(xyz_of_rgb(), rgb)
    line = xyz / (3 * (6 / 29) ** 2) + 4 / 29
    light, a, b = opponents(np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), line))
    return np.stack([light, 0.01 * light * a, 0.01 * light * b])


def hyab(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    light, a, b = one - other
    return abs(light) + np.hypot(a, b)


def color_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """ΔE_c of two pictures in XYZ: small differences get most of the range."""
    green, blue = np.eye(3)[1:, :, None, None]
    largest = hyab(appearance(green), appearance(blue)) ** 0.7
    distance = hyab(*[appearance(seen_from_afar(xyz)) for xyz in (one, other)]) ** 0.7
    return np.interp(distance / largest, [0, 0.4, 1], [0, 0.95, 1])


def feature_kernels() -> list[np.ndarray]:
    """Of vertical edges and points: derivatives of a Gaussian, either sign summing to 1."""
    sigma = 0.082 / 2 * PIXELS_PER_DEGREE
    x = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    bell = np.exp(-(x**2 + x[:, None] ** 2) / (2 * sigma**2))
    kernels = [x * bell, (x**2 / sigma**2 - 1) * bell]
    return [np.where(k < 0, k / -k[k < 0].sum(), k / k[k > 0].sum()) for k in kernels]


def feature_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """ΔE_f of two luminances."""

    def strength(luminance, kernel):
        both = [ndimage.correlate(luminance, k, mode="nearest") for k in (kernel, kernel.T)]
        return np.hypot(*both)

    apart = [abs(strength(one, kernel) - strength(other, kernel)) for kernel in feature_kernels()]
    return np.sqrt(np.maximum(*apart) / math.sqrt(2))


def flip_reference(image: torch.Tensor, target: torch.Tensor) -> float:
    pair = [picture.double().numpy() for picture in (image, target)]
    pair = [np.where(s > 0.04045, ((s + 0.055) / 1.055) ** 2.4, s / 12.92) for s in pair]
    one, other = [transform(xyz_of_rgb(), linear) for linear in pair]
    errors = color_difference(one, other) ** (1 - feature_difference(one[1], other[1]))
    return errors.mean()


def full_colors() -> tuple:
    """Blocks of red, green and blue, and the same in another order."""
    blocks = torch.eye(3).repeat_interleave(9, dim=1).repeat_interleave(9, dim=0).reshape(3, 9, 27)
    return blocks, blocks.flip(2)


def nearly_equal() -> tuple:
    image, target = picture_pair(3, 33, 30, seed=1)
    return torch.lerp(target, image, 0.02), target


# Roundings to 2**-24 are 500 times that in a*, 3e-5 of a distance of some 5; they have both signs,
# and the mean over a hundred pixels is off by a tenth.
TEXTURED = 1e-6
# On flat pictures features are nothing but roundings, about 1e-8, of which ΔE_f is the root.
FLAT = 1e-4


@pytest.mark.parametrize(
    "pair, tolerance",
    [
        (picture_pair(3, 40, 51), TEXTURED),
        (picture_pair(3, 1, 50), TEXTURED),
        (picture_pair(3, 60, 2), TEXTURED),
        (full_colors(), TEXTURED),
        (nearly_equal(), 50 * TEXTURED),  # of a fiftieth of the distance
        (picture_pair(3, 1, 1), FLAT),
        ((torch.zeros(3, 4, 5), torch.ones(3, 4, 5)), FLAT),
    ],
)
def test_flip_matches_reference(pair, tolerance):
    image, target = [picture.float() for picture in pair]
    assert flip(image, target) == pytest.approx(flip_reference(image, target), rel=tolerance)


def test_flip_is_0_for_equal_pictures_and_symmetric():
    image, target = picture_pair(3, 40, 51)
    assert flip(target, target) == 0
    assert flip(image, target) == pytest.approx(flip(target, image), rel=1e-12)


def test_flip_grows_with_noise_up_to_1():
    image, target = picture_pair(3, 40, 51)
    values = [flip(target + scale * (image - target), target) for scale in (0, 0.1, 0.3, 1, 3, 100)]
    assert values == sorted(set(values)) and values[0] == 0 and values[-1] < 1


def test_flip_takes_gray_as_rgb_and_clamps():
    image, target = picture_pair(1, 20, 30)
    assert flip(image, target) == flip(image.expand(3, -1, -1), target.expand(3, -1, -1)) > 0
    wide = 3 * image - 1
    assert flip(wide, target) == flip(wide.clamp(0, 1), target) != flip(image, target)


def test_flip_is_a_mean_of_many_pixels():
    # a sum in float32, which is the package's own, is 1e-3 off here and 1e-2 at 1024x1024
    black, white = torch.zeros(1, 400, 400), torch.ones(1, 400, 400)
    expected = flip(black[:, :3, :3], white[:, :3, :3])
    assert flip(black, white) == pytest.approx(expected, rel=1e-6)


def test_flip_refuses_nan():
    with pytest.raises(ValueError, match="holds NaN"):
        flip(torch.full((1, 1, 1), math.nan), torch.zeros(1, 1, 1))


def test_flip_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    with pytest.raises(ImportError, match=r'pip install "instantgi\[metrics\]"'):
        flip(torch.zeros(3, 4, 5), torch.zeros(3, 4, 5))


# --- bits


def test_bits_per_pixel_counts_pixels_and_not_values():
    assert bits_per_pixel(num_bytes=100, height=10, width=20) == 4
