import pytest
import torch
from torch.testing import assert_close

from instantgi.metrics import ssim
from instantgi.similarity import mean_ssim, ssim_map

SIZES = [(1, 1, 1), (3, 5, 7), (1, 40, 3), (2, 11, 16), (3, 17, 33), (4, 140, 20)]


def pair(channels: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Two pictures, alike, and weights."""
    random = torch.Generator().manual_seed(seed)
    size = (channels, height, width)
    picture, noise = (torch.rand(size, generator=random, dtype=torch.float64) for _ in range(2))
    weights = 3 * torch.rand(size[1:], generator=random, dtype=torch.float64)
    return picture, 0.7 * picture + 0.3 * noise, weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind, error", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_mean_and_gradient_are_those_of_the_definition(device, kind, error, size, weighted):
    picture, image, weights = pair(*size)
    picture.requires_grad_()
    expected = (ssim_map(picture, image) * (weights if weighted else 1)).mean()
    (expected_grad,) = torch.autograd.grad(expected, picture)
    moved = picture.detach().to(device, kind).requires_grad_()
    arguments = image.to(device, kind), weights.to(device, kind) if weighted else None
    value = mean_ssim(moved, *arguments)
    (grad,) = torch.autograd.grad(value, moved)
    assert value.dtype == kind
    # variances are differences of numbers up to 1, over 9e-4 and more: some hundred roundings
    assert_close(value.detach().cpu().double(), expected.detach(), rtol=error, atol=error)
    largest = float(expected_grad.abs().max())
    assert_close(grad.cpu().double(), expected_grad, rtol=0, atol=10 * error * largest)
    with torch.no_grad():
        assert torch.equal(mean_ssim(moved, *arguments), value.detach())


def test_gradient_is_that_of_finite_differences():
    picture, image, weights = pair(2, 8, 9)
    assert torch.autograd.gradcheck(
        lambda value: mean_ssim(value, image, weights), picture.requires_grad_()
    )


def test_operator_is_well_behaved():
    picture, image, weights = pair(3, 8, 9)
    picture.requires_grad_()
    for arguments in ((picture, image, weights, True), (picture, image, None, True)):
        torch.library.opcheck(torch.ops.instantgi.ssim.default, arguments)


def test_number_of_threads_changes_nothing(num_threads):
    picture, image, _ = (part.float() for part in pair(3, 400, 50))
    found = torch.ops.instantgi.ssim(picture, image, None, True)
    torch.set_num_threads(1)
    for part, other in zip(
        torch.ops.instantgi.ssim(picture, image, None, True), found, strict=True
    ):
        assert torch.equal(part, other)


def test_equal_pictures_are_fully_similar(device):
    picture = pair(3, 20, 30)[0].to(device)
    assert_close(mean_ssim(picture, picture), torch.ones_like(picture.sum()))


def test_order_of_the_two_pictures_is_irrelevant(device):
    picture, image, weights = (part.to(device) for part in pair(3, 20, 30))
    assert_close(mean_ssim(picture, image, weights), mean_ssim(image, picture, weights))


def test_definition_is_the_metric_where_the_window_fits():
    picture, image, _ = pair(3, 24, 31)
    inner = ssim_map(picture, image)[:, 5:-5, 5:-5].mean()
    assert_close(inner, ssim(picture, image), rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_within_its_window(device, value):
    picture, image, _ = (part.to(device) for part in pair(1, 40, 40))
    picture[0, 20, 20] = value
    picture.requires_grad_()
    similarity = mean_ssim(picture, image)
    similarity.backward()
    assert similarity.isnan() and picture.grad is not None
    assert picture.grad[0, :9].isfinite().all() and picture.grad[0, :, 31:].isfinite().all()


def test_half_precision_is_taken_as_float():
    picture, image, _ = pair(1, 12, 12)
    rounded = picture.bfloat16()
    assert_close(mean_ssim(rounded, image), mean_ssim(rounded.float(), image))


def test_what_does_not_fit_is_refused(without_shape_checks):
    picture, image, weights = pair(1, 12, 12)
    with pytest.raises(ValueError, match=r"must be \[C, H, W\] of equal size, got \(1, 12, 12\)"):
        mean_ssim(picture, image[:, 1:])
    with pytest.raises(ValueError, match=r"weights must be torch.float64 \[H, W\] = \(12, 12\)"):
        mean_ssim(picture, image, weights[1:])
    with pytest.raises(ValueError, match="ssim is of two pictures of floats, got torch.float64"):
        torch.ops.instantgi.ssim(picture, image.float(), None, False)
    with pytest.raises(RuntimeError, match="was called without keep"):
        total = torch.ops.instantgi.ssim(picture.requires_grad_(), image, None, False)[0]
        total.backward()
