import json
import math
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import random_gaussians
from torch.testing import assert_close

from data import datamodule
from data.datamodule import DIV2K, Crops, CropStream, Folder, Kodak, Targets, thin
from data.images import list_pictures, read_rgb
from data.prepare import (
    Item,
    TargetRecipe,
    distance_to_neighbor,
    prepare_picture,
    read_items,
    target_map,
    write_manifest,
)

QUICK = TargetRecipe(iterations=3)


def write_pictures(folder, count=6, height=40, width=56):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for path in list_pictures(write_pictures(root / "pictures")):
        prepare_picture(path, root / "targets", QUICK)
    return root / "targets"


# folders


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        list_pictures(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        list_pictures(tmp_path)


def test_pictures_of_all_kinds_become_rgb(tmp_path):
    kinds = {"L": 128, "LA": (128, 0), "RGB": (9, 8, 7), "RGBA": (9, 8, 7, 0)}
    for mode, color in kinds.items():
        Image.new(mode, (5, 4), color).save(tmp_path / f"{mode}.png")
        assert read_rgb(tmp_path / f"{mode}.png").shape == (3, 4, 5)
    assert_close(read_rgb(tmp_path / "RGBA.png"), torch.ones(3, 4, 5))


def test_thin_is_even():
    assert thin(list("abcdef"), 3) == ["a", "c", "e"]
    assert thin(list("ab"), 5) == ["a", "b"]


def test_folder_gives_paths_to_prepare_and_pictures_to_score(tmp_path):
    root = write_pictures(tmp_path / "a", 3)
    module = Folder([str(root)], largest=32)
    assert [path for batch in module.predict_dataloader() for path in batch] == [
        str(root / f"{number}.png") for number in range(3)
    ]
    assert next(iter(module.val_dataloader()))["image"].shape == (1, 3, 32, 32)


def test_kodak_is_checked(tmp_path):
    write_pictures(tmp_path / "a", 2)
    with pytest.raises(ValueError, match="must hold kodim01.png to kodim24.png"):
        Kodak(str(tmp_path / "a")).paths()


def test_div2k_is_checked_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(datamodule, "DIV2K_SETS", {"train": (1, 3), "valid": (801, 801)})
    folder = tmp_path / "DIV2K_train_LR_bicubic" / "X2"
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (8, 8)).save(folder / f"000{number}x2.png")
    module = DIV2K(str(tmp_path), scales=(2,))
    with pytest.raises(FileNotFoundError, match="1 of 3 pictures are missing, the first is 0003x2"):
        module.predict_dataloader()
    Image.new("RGB", (8, 8)).save(folder / "0003x2.png")
    assert len(module.predict_dataloader()) == 3
    with pytest.raises(ValueError, match="scales must be some of 1, 2, 3, 4"):
        DIV2K(str(tmp_path), scales=(8,))


# targets


def test_distance_to_neighbor_matches_brute_force():
    means = random_gaussians(30, 17, 23).means
    y, x = torch.meshgrid(torch.arange(17) + 0.5, torch.arange(23) + 0.5, indexing="ij")
    apart = (torch.stack([x, y], 2)[:, :, None].double() - means.double()).norm(dim=3)
    expected = apart.sort(2).values[:, :, 9].clamp_min(0.5)
    assert_close(distance_to_neighbor(means, 17, 23, 10), expected)
    assert_close(
        distance_to_neighbor(means[:4], 17, 23, 10), apart[:, :, :4].amax(2).clamp_min(0.5)
    )


def test_absolute_density_expects_the_points_of_the_fit():
    # a regular grid of one Gaussian per 9 pixels: half a point per 3x3 cell
    y, x = torch.meshgrid(torch.arange(30) * 3 + 1.5, torch.arange(30) * 3 + 1.5, indexing="ij")
    gaussians = random_gaussians(900, 90, 90)
    gaussians = type(gaussians)(
        torch.stack([x.flatten(), y.flatten()], 1).float(), gaussians.cholesky, gaussians.colors
    )
    made = target_map(gaussians, 90, 90, 40.0, TargetRecipe(psnr=40))
    assert float(made[20:70, 20:70].mean()) == pytest.approx(0.5, rel=0.15)
    # 4 dB short: twice as many
    more = target_map(gaussians, 90, 90, 38.0, TargetRecipe(psnr=40))
    assert_close(more, (made * 2**0.5).clamp(max=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density, power", [("code", -0.5), ("paper", -2.0)])
def test_published_densities_are_stretched_to_the_whole_range(density, power):
    gaussians = random_gaussians(200, 40, 40)
    made = target_map(gaussians, 40, 40, 30.0, TargetRecipe(density=density))
    raw = distance_to_neighbor(gaussians.means, 40, 40, 10) ** power
    low = max(float(raw.mean() - 3 * raw.std()), float(raw.min()))
    high = min(float(raw.mean() + 3 * raw.std()), float(raw.max()))
    assert_close(made, ((raw - low) / (high - low)).clamp(0, 1).float(), rtol=1e-4, atol=1e-5)


def test_items_keep_picture_and_map(targets, tmp_path):
    items = read_items(targets)
    assert len(items) == 6
    picture, position_map = items[0].read()
    original = Image.open(targets.parent / "pictures" / items[0].record["source"])
    assert (picture.movedim(0, 2).numpy() == np.asarray(original)).all()
    assert position_map.shape == (40, 56) and position_map.dtype == torch.uint8
    assert items[0].record["settings"]["iterations"] == 3


def test_preparing_again_does_only_what_is_missing(targets, tmp_path, monkeypatch):
    source = targets.parent / "pictures" / "0.png"
    times = {path: path.stat().st_mtime_ns for path in targets.iterdir()}
    prepare_picture(source, targets, QUICK)
    assert times == {path: path.stat().st_mtime_ns for path in targets.iterdir()}
    other = tmp_path / "targets"
    first = prepare_picture(source, other, QUICK)
    (other / f"{first['name']}.map.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match="missing or not what was written"):
        read_items(other)[0].read()
    assert prepare_picture(source, other, QUICK) == first
    read_items(other)[0].read()
    assert prepare_picture(source, other, TargetRecipe(iterations=4)) != first


def test_the_manifest_names_what_was_left_out(targets):
    (targets / "failures-0.json").write_text('[{"path": "x.png", "error": "is empty"}]')
    manifest = write_manifest(targets)
    (targets / "failures-0.json").unlink()
    assert manifest["pictures"] == 6 and manifest["failures"][0]["path"] == "x.png"
    assert json.loads((targets / "manifest.json").read_text()) == manifest
    assert len(read_items(targets)) == 6  # it is not an item itself


def test_no_targets_is_an_error_that_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.py predict"):
        read_items(tmp_path)
    with pytest.raises(ValueError, match="density must be one of"):
        TargetRecipe(density="thick")


# crops


def test_a_crop_depends_on_its_number_alone(targets):
    items = read_items(targets)
    first, again = Crops(items, 16, seed=1), Crops(items, 16, seed=1)
    again[5]
    for name in ("image", "position_map"):
        assert torch.equal(first[3][name], again[3][name])
        assert not torch.equal(first[3][name], first[4][name])
        assert not torch.equal(first[3][name], Crops(items, 16, seed=2)[3][name])
    assert first[3]["uniform"] == again[3]["uniform"] != first[4]["uniform"]


def test_picture_and_map_are_cropped_and_turned_together(targets):
    item = read_items(targets)[0]
    picture, position_map = item.read()
    planes = torch.cat([picture, position_map[None]]).float() / 255
    seen = Crops([item], 16, seed=0)[0]
    crop = torch.cat([seen["image"], seen["position_map"][None]])
    turned = [torch.rot90(flip, k, (1, 2)) for k in range(4) for flip in (crop, crop.flip(2))]
    windows = planes.unfold(1, 16, 1).unfold(2, 16, 1)  # [4, rows, cols, 16, 16]
    assert any(bool((windows == one[:, None, None]).all(0).all(-1).all(-1).any()) for one in turned)


def test_a_damaged_item_is_left_out(targets, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(targets, folder)
    for path in sorted(folder.glob("*.map.png"))[:5]:
        path.write_bytes(b"torn")
    crops = Crops(read_items(folder), 16, seed=0)
    with pytest.warns(UserWarning, match="left out: .*missing or not what was written"):
        seen = [crops[index]["image"] for index in range(5)]
    assert len(seen) == 5
    for path in folder.glob("*.webp"):
        path.unlink()
    with (
        pytest.raises(ValueError, match="none of the pictures can be read"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        Crops(read_items(folder), 16, seed=0)[0]


def test_whole_pictures_come_once_a_round(targets):
    crops = Crops(read_items(targets), None, seed=0)
    rng = random.Random(0)
    rounds = [[next(crops._numbers(6 * r + i, rng)) for i in range(6)] for r in range(2)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(6))
    assert rounds[0] != rounds[1]
    assert crops[0]["image"].shape[1:] in ((40, 56), (56, 40))


def test_scenes_are_not_split_by_their_scale():
    def item(source):
        return Item("", Path(), {"source": source})

    draw = Targets._draw
    assert draw(item("0001x2.png")) == draw(item("0001x4.png")) == draw(item("0001.png"))
    assert draw(item("0001x2.png")) != draw(item("0002x2.png"))


def test_crops_larger_than_all_pictures_are_refused(targets):
    with pytest.raises(ValueError, match="no picture has 64x64 pixels"):
        Crops(read_items(targets), 64, seed=0)


def test_processes_share_the_stream_without_overlap(targets):
    class Numbers:
        def __getitem__(self, number):
            return {"number": number}

    streams = [CropStream(Numbers(), 2, 5, rank, 2) for rank in range(2)]  # pyright: ignore
    seen = [[crop["number"] for crop in stream] for stream in streams]
    assert sorted(sum(seen, [])) == list(range(20))
    assert seen[0][:2] == [0, 1] and seen[1][:2] == [2, 3]


def test_pictures_set_aside_are_never_trained_on(targets):
    module = Targets(str(targets), crop=16, validation_share=0.5)
    module.setup("fit")
    aside = {item.name for item in module.validation}
    kept = {item.name for item in module.items}
    assert aside and kept and not aside & kept and len(aside | kept) == 6
    for share, number in ((0.0, 1), (1.0, 5)):  # at least one on either side
        module = Targets(str(targets), validation_share=share)
        module.setup("fit")
        assert (len(module.validation), len(module.items)) == (number, 6 - number)


def test_workers_give_the_same_crops(targets):
    batches = []
    for workers in (0, 2):
        module = Targets(
            str(targets),
            crop=16,
            batch_size=2,
            steps_per_epoch=4,
            workers=workers,
            validation_share=0.5,
        )
        module.setup("fit")
        batches.append([batch["image"] for batch in module.train_dataloader()])
    for alone, shared in zip(*batches, strict=True):
        assert torch.equal(alone, shared)
    assert len(batches[0]) == 4 and not math.isnan(float(batches[0][0].sum()))
