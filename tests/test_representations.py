import pytest
import torch
from scenes import random_gaussians
from torch.testing import assert_close

from instantgi.gaussians import Gaussians
from instantgi.render import mixture_at, rasterize, rasterize_mixture
from instantgi.render.blocks import cut_into_blocks, extents
from instantgi.render.draw import draw, interpolate, pixels, up_sample
from instantgi.representations import Level, Levels, Mixture, flat


def two_levels() -> Levels:
    coarse = random_gaussians(40, 20, 30, scales=(1, 3), seed=1)
    fine = random_gaussians(200, 40, 60, seed=2)
    return Levels((Level(coarse, 20, 30), Level(fine, 40, 60, -0.5, 0.75)))


# Drawing


def test_each_representation_is_drawn_as_it_says():
    scene = random_gaussians(80, 30, 40)
    assert torch.equal(draw(scene, 30, 40), rasterize(scene, 30, 40))
    mixture = Mixture(scene, top_k=3, epsilon=1e-2)
    expected = rasterize_mixture(scene, 30, 40, top_k=3, epsilon=1e-2)
    assert torch.equal(draw(mixture, 30, 40), expected)


def test_levels_are_the_enlarged_first_and_the_mapped_second():
    levels = two_levels()
    below, above = (
        rasterize(level.gaussians, level.height, level.width).clamp(0, 1) for level in levels.levels
    )
    enlarged = torch.nn.functional.interpolate(
        below[None], (40, 60), mode="bilinear", align_corners=False
    )[0]
    assert_close(draw(levels, 40, 60), enlarged + 1.25 * above - 0.5, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 5), (33, 64), (3, 100)])
def test_enlarging_is_that_of_torch(height, width):
    picture = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        picture[None], (height, width), mode="bilinear", align_corners=False
    )[0]
    assert_close(interpolate(picture, (height, width), height, width), expected)
    part = interpolate(picture, (height, width), 1, 1, (width - 1.0, height - 1.0))
    assert_close(part[:, 0, 0], expected[:, -1, -1])


def test_a_part_of_levels_is_that_part_at_any_size():
    levels = two_levels()
    whole = draw(levels, 40, 60)
    part = draw(levels, 11, 17, origin=(23, 19))
    assert_close(part, whole[:, 19:30, 23:40], rtol=0, atol=1e-4)
    twice = draw(levels, 80, 120, step=(0.5, 0.5))
    assert_close(
        draw(levels, 20, 30, origin=(10, 5), step=(0.5, 0.5)),
        twice[:, 10:30, 20:50],
        rtol=0,
        atol=1e-4,
    )
    assert up_sample(levels.levels[:1], (40, 60), 40, 60).shape == (3, 40, 60)


def test_flat_gaussians_are_in_pixels_of_the_picture():
    levels = two_levels()
    together = flat(levels)
    assert len(together) == len(levels) == 240
    assert torch.equal(together.means[:200], levels.levels[1].gaussians.means)
    assert torch.equal(together.means[200:], 2 * levels.levels[0].gaussians.means)


@pytest.mark.parametrize("kind", ["sum", "mixture", "levels"])
def test_pixels_are_those_of_the_picture(kind):
    scene = random_gaussians(200, 40, 60)
    made = {"sum": scene, "mixture": Mixture(scene, top_k=4), "levels": two_levels()}[kind]
    rows, cols = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    points = torch.stack([cols, rows], -1).reshape(-1, 2) + 0.5
    values = pixels(made, points)
    assert_close(values.T.reshape(3, 40, 60), draw(made, 40, 60), rtol=0, atol=2e-5)


# Records


def test_stages_of_a_mixture_are_prefixes():
    scene = random_gaussians(50, 20, 20)
    mixture = Mixture(scene, stages=(20, 35, 50))
    coarse = mixture.stage(0)
    assert len(coarse) == 20 and coarse.stages == (20,)
    assert torch.equal(coarse.gaussians.means, scene.means[:20])
    assert mixture.stage(-1).stages == (20, 35, 50)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda g: Mixture(g, stages=(20, 40)), r"rise to the number of Gaussians, 50, got"),
        (lambda g: Mixture(g, stages=(60, 50)), "stages must rise"),
        (lambda g: Mixture(g, top_k=40), "top_k must be from 1 to 32, got 40"),
        (lambda g: Level(g, 10, 10, 1.0, 0.5), "range must be low ≤ high, got 1.0, 0.5"),
        (lambda g: Levels(()), "has at least one"),
    ],
)
def test_records_that_cannot_be_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make(random_gaussians(50, 20, 20))


# Random access


def test_blocks_by_extent_are_exact(device):
    scene = random_gaussians(600, 60, 90, scales=(0.5, 7), seed=3).to(device)
    mixture = Mixture(scene, top_k=5)
    blocks = cut_into_blocks(mixture, 60, 90, 40)
    random = torch.Generator().manual_seed(0)
    points = (torch.rand(500, 2, generator=random) * torch.tensor([90.0, 60.0])).to(device)
    # the order of additions differs with the Gaussians that are listed
    assert_close(blocks.at(points), mixture_at(scene, points, top_k=5), rtol=0, atol=2e-6)


@pytest.mark.parametrize("most, shell", [(7, None), (7, 0.25), (1, None), (100, 0.0)])
def test_a_point_finds_its_block_and_a_block_who_is_near(most, shell):
    scene = random_gaussians(100, 60, 90, seed=3)
    blocks = cut_into_blocks(Mixture(scene), 60, 90, most, shell=shell)
    corners = blocks.boxes[:, :2]  # belong to the block that begins there
    assert blocks.find(corners).tolist() == list(range(len(corners)))
    assert blocks.at(corners[:0]).shape == (0, 3)
    reach = extents(scene, 1e-4) if shell is None else 0
    for box, members in zip(blocks.boxes, blocks.members, strict=True):
        low, high = box[:2], box[2:]
        grown = (shell or 0) * (high - low)
        near = (scene.means + reach >= low - grown) & (scene.means - reach <= high + grown)
        assert torch.equal(members, near.all(1).nonzero()[:, 0])


def test_blocks_cover_the_picture_and_hold_equal_numbers():
    scene = random_gaussians(640, 60, 90, seed=3)
    blocks = cut_into_blocks(Mixture(scene), 60, 90, 50)
    sides = blocks.boxes[:, 2:] - blocks.boxes[:, :2]
    assert_close(sides.prod(1).sum(), torch.tensor(60.0 * 90), rtol=1e-5, atol=0)
    inside = (scene.means[:, None] >= blocks.boxes[:, :2]) & (
        scene.means[:, None] < blocks.boxes[:, 2:]
    )
    counts = inside.all(-1).sum(0)
    assert counts.max() <= 50 and counts.min() >= 20


def test_blocks_of_equal_columns_are_cut_along_the_other_axis():
    scene = random_gaussians(64, 60, 90, seed=3)
    in_columns = scene.means * torch.tensor([0.0, 1.0]) + torch.tensor([30.0, 0.0])
    in_columns[:40, 0] = 50
    inside = in_columns.clamp(torch.tensor([0.0, 1.0]), torch.tensor([90.0, 59.0]))
    mixture = Mixture(Gaussians(inside, scene.cholesky, scene.colors))
    blocks = cut_into_blocks(mixture, 60, 90, 8)
    low, high = blocks.boxes[:, :2], blocks.boxes[:, 2:]
    held = ((inside[:, None] >= low) & (inside[:, None] < high)).all(-1).sum(0)
    assert held.sum() == 64 and held.max() <= 8


def test_shells_miss_what_is_large():
    small = random_gaussians(400, 60, 90, scales=(0.4, 0.6), seed=3)
    random = torch.Generator().manual_seed(0)
    points = torch.rand(400, 2, generator=random) * torch.tensor([90.0, 60.0])
    errors = []
    for scene in (small, Gaussians(small.means, small.cholesky * 12, small.colors)):
        blocks = cut_into_blocks(Mixture(scene), 60, 90, 20, shell=0.25)
        errors.append(float((blocks.at(points) - mixture_at(scene, points)).abs().mean()))
    assert errors[0] < errors[1] and errors[1] > 1e-3


def test_blocks_of_equal_places_and_points_outside_are_named():
    same = random_gaussians(30, 20, 20)
    same = Gaussians(torch.full_like(same.means, 7.0), same.cholesky, same.colors)
    blocks = cut_into_blocks(Mixture(same), 20, 20, 4)
    assert len(blocks.boxes) == 1
    with pytest.raises(ValueError, match=r"points must lie in the picture, got \[25.0, 3.0\]"):
        blocks.at(torch.tensor([[3.0, 3.0], [25.0, 3.0]]))
    with pytest.raises(ValueError, match="at least 1 mean, got most = 0"):
        cut_into_blocks(Mixture(same), 20, 20, 0)
